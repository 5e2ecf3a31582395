"""Several hosts on one machine, with directories that nothing else uses, and nothing left of them afterwards.

    /tmp/droveway-fleet-XXXX/       owner (the process that made it), redis.*, HOST/ (state directories)
    /dev/shm/droveway-fleet-XXXX/   HOST/ (RAM files); on another tmpfs when /dev/shm is too small

Workers and Redis end with the process that made the fleet, even when that is killed. Movers and guests have sessions
of their own, on purpose: `close` finds them on disk, and `sweep` does so for a fleet whose maker was killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from config.errors import HostError
from config.settings import RedisSettings, Settings, load_settings
from tasks.ledger.ledger import Ledger
from tasks.one_machine.host import LocalHost, closed
from workers.guests.process_identity import ProcessIdentity
from workers.pairing.contract import Side

_PREFIX = "droveway-fleet-"
#: Where RAM files may lie, the first with room is taken: containers often have 64 MiB of /dev/shm.
_RAM_PLACES = (Path("/dev/shm"), Path("/run"), Path("/tmp"))  # noqa: S108  # looked at for their filesystem


class LocalFleet:
    """Hosts by name, each a `LocalHost`. `close()`, or the end of a `with`, leaves nothing.

    Start it from a thread that lives as long as the fleet shall: the kernel ends the workers with that thread.
    """

    def __init__(
        self,
        redis: RedisSettings,
        names: Sequence[str] = ("alpha", "beta"),
        *,
        directory: Path | None = None,
        ram_bytes: int = 0,
        overrides: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Make the directories; no process yet.

        `directory`: as `fresh_directory` makes them. `ram_bytes`: of guests' RAM, both copies counted. `overrides`:
        settings of every host by `concern.key`. `environment`: added to every process. Raises HostError (no room).
        """
        ram_place = _ram_place(ram_bytes)
        self.directory = directory or fresh_directory()
        self._ram = ram_place / self.directory.name
        self.redis = redis
        self.hosts: dict[str, LocalHost] = {}
        for name in names:
            self.hosts[name] = LocalHost(self._settings(name, overrides or {}), environment)

    @property
    def settings(self) -> Settings:
        """What a producer on this machine needs: the settings of the first host."""
        return next(iter(self.hosts.values())).settings

    def _settings(self, name: str, overrides: Mapping[str, object]) -> Settings:
        own: dict[str, object] = {
            "host.name": name,
            "host.state_dir": str(self.directory / name),
            "host.ram_dir": str(self._ram / name),
            # Two hosts on one address would want the same ports; whoever wants the pages gives each host its own.
            "host.metrics_source_port": 0,
            "host.metrics_destination_port": 0,
        }
        settings = load_settings(Path(os.devnull), {}, own | dict(overrides))
        return settings.model_copy(update={"redis": self.redis})

    def start(self, seconds: float = 60.0) -> None:
        """Start all workers, and wait until the record knows them. Raises HostError, UnreachableError."""
        for host in self.hosts.values():
            host.start()
        self.await_workers(seconds)

    def await_workers(self, seconds: float = 60.0) -> None:
        """Wait until the record knows every worker that was started. Raises HostError when one ended, or time is up."""
        deadline = time.monotonic() + seconds
        with closing(Ledger(self.settings)) as ledger:
            while missing := self._missing(ledger):
                for host, side in missing:
                    if not host.running(side):
                        raise HostError(f"the {side} worker of {host.name} ended: {_last_line(host.log(side))}")
                if time.monotonic() > deadline:
                    names = " and ".join(f"the {side} worker of {host.name}" for host, side in missing)
                    raise HostError(f"{names} did not speak up within {seconds:g} s: is this machine too busy?")
                time.sleep(0.1)

    def _missing(self, ledger: Ledger) -> list[tuple[LocalHost, Side]]:
        known = ledger.fleet().hosts
        return [
            (host, side)
            for host in self.hosts.values()
            for side in Side
            if host.started(side) and (host.name not in known or side not in known[host.name].alive)
        ]

    def logs(self) -> list[Path]:
        """Everything that a process of this fleet wrote for people."""
        return [path for host in self.hosts.values() for path in host.logs()]

    def close(self) -> None:
        """End every process and remove every directory; harmless when repeated. Raises HostError for what survives."""
        failures = closed(list(self.hosts.values()))
        if failures:
            raise failures[0]
        shutil.rmtree(self._ram, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def fresh_directory() -> Path:
    """A directory for one fleet, marked as this process's."""
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    own.write(directory / "owner")
    return directory


def sweep() -> list[Path]:
    """Clear away the fleets of this user whose maker was killed; the directories that were removed."""
    swept = []
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = ProcessIdentity.read(directory / "owner")
        if owner is None or owner.alive() or directory.stat().st_uid != os.getuid():
            continue
        for place in _RAM_PLACES:
            _clear(directory, place / directory.name)
        shutil.rmtree(directory, ignore_errors=True)
        swept.append(directory)
    return swept


def _clear(directory: Path, ram: Path) -> None:
    """End what the hosts of an abandoned fleet left running. Its workers died with their maker."""
    for state in [path for path in directory.iterdir() if path.is_dir() and (ram / path.name).is_dir()]:
        own = {"host.name": state.name, "host.state_dir": str(state), "host.ram_dir": str(ram / state.name)}
        LocalHost(load_settings(Path(os.devnull), {}, own)).close()
    shutil.rmtree(ram, ignore_errors=True)


def _ram_place(needed: int) -> Path:
    """The first tmpfs with room for so many bytes."""
    filesystems = _filesystems()
    places = [path for path in _RAM_PLACES if filesystems.get(path) == "tmpfs"]
    free = {path: os.statvfs(path).f_bavail * os.statvfs(path).f_frsize for path in places}
    for path in places:
        if free[path] >= needed:
            return path
    there = ", ".join(f"{path} has {free[path]} bytes" for path in places) or "there is no tmpfs at all"
    raise HostError(
        f"guests' memory needs {needed} bytes of shared memory, and {there}: choose a smaller --memory, or enlarge it "
        "(for a container: --shm-size)"
    )


def _filesystems() -> dict[Path, str]:
    """Filesystem type by mount point."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {Path(fields[1]): fields[2] for fields in mounts}


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1] if lines else "it said nothing"
