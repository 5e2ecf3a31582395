"""A real systemd, booted for one test: as PID 1 of namespaces of its own, with units of ours and nothing else.

Files are the machine's, but for /run and /var/lib, which are empty. Needs root, and cgroups that may be written. When
this process dies the kernel ends all that runs in there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tasks.one_machine.tied import tied_to_us
from tests.requirements import installed, missing

_SYSTEMD = Path("/usr/lib/systemd/systemd")
_BOOT = """
for group in "$@"; do echo $$ >"$group/cgroup.procs" || exit 1; done
exec unshare --pid --fork --mount --uts --ipc --cgroup --kill-child --propagation private sh -c '
mount -t proc proc /proc && mount -t tmpfs run /run && mount -t tmpfs lib /var/lib || exit 1
mkdir -p /run/systemd /run/lock && cp -R "$UNITS" /run/systemd/system || exit 1
exec env -i PATH="$PATH" container=droveway /usr/lib/systemd/systemd --unit=ours.target --log-target=console \\
    --show-status=no
'
"""


class Booted:
    """`units`: file name → text. `close()`, or the end of a `with`, ends everything in there."""

    def __init__(self, directory: Path, units: Mapping[str, str]) -> None:
        installed("systemctl", "systemd")
        if os.geteuid() != 0 or not _SYSTEMD.exists():
            missing("systemd cannot be booted (root, and /usr/lib/systemd/systemd)")
        (directory / "units").mkdir()
        alone = "[Unit]\nDefaultDependencies=no\n"
        for name, text in {**units, "ours.target": alone}.items():
            (directory / "units" / name).write_text(text)
        self.log = directory / "systemd.log"
        self._groups = _groups()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                tied_to_us(["sh", "-c", _BOOT, "sh", *map(str, self._groups)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"UNITS": str(directory / "units")},
            )
        self._first = self._await_first()

    def _await_first(self) -> int:
        """Its PID 1, as we number it, once it answers; `missing` when it does not."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            with contextlib.suppress(FileNotFoundError, ValueError):
                self._first = int(children.read_text().split()[0]) if children.read_text() else 0
                if self._first and self.run("systemctl", "is-active", "ours.target", check=False) == "active":
                    return self._first
            time.sleep(0.1)
        self.close()
        return missing(f"systemd does not boot in namespaces here ({self.log.read_text()[-300:]})")

    def run(
        self, *words: str, check: bool = True, environment: Mapping[str, str] | None = None, cwd: Path = Path("/")
    ) -> str:
        """Run a command in there; what it printed."""
        enter = ["nsenter", "-t", str(self._first), "-m", "-p", "-u", "-i", f"--wd={cwd}", "--"]
        done = subprocess.run(
            [*enter, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
            env=os.environ | dict(environment or {}),
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def close(self) -> None:
        """End it all."""
        self._process.kill()  # unshare; its child, the PID 1, goes with it, and all that is under that
        self._process.wait()
        for group in self._groups:
            for _ in range(50):
                if group_removed(group):
                    break
                time.sleep(0.1)

    def __enter__(self) -> Booted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _groups() -> list[Path]:
    """A cgroup of its own in every hierarchy that systemd uses, so that it sees no other."""
    name, made = f"droveway-{secrets.token_hex(4)}", []
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point, kind, options in ((fields[1], fields[2], fields[3]) for fields in mounts):
        # cpuset of version 1 takes nobody before it was told of processors; systemd leaves it alone.
        if kind in ("cgroup", "cgroup2") and "cpuset" not in options.split(","):
            group = Path(point) / name
            try:
                group.mkdir()
            except OSError as error:
                missing(f"cgroups may not be written here ({error.strerror})")
            made.append(group)
    return made or missing("no cgroups are mounted here")


def group_removed(group: Path) -> bool:
    """Whether a cgroup is gone, with those below it: not while a process that was killed is still being buried."""
    for path in sorted(group.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
