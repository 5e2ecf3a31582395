"""A Docker engine of the tests' own, with images made of Debian's packages.

No registry of images is asked: `debian:12-slim` is a new Debian 12, and what Debian has a package of (Redis,
Prometheus) stands in for the image of that name in `ops/compose.yaml`. Grafana is in no Debian.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.one_machine.tied import tied_to_us
from tests.booted import group_removed
from tests.requirements import installed, missing
from tests.until import until

#: The machine's own, so that images can be built behind a proxy that signs for the registries of packages.
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_DEBIAN = """
FROM new-debian
COPY ca-certificates.crt /etc/ssl/certs/
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
"""
_STAND_IN = """
FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends {package} && mkdir -p /prometheus
ENTRYPOINT {entrypoint}
"""
#: With mounts and processes of its own, so that the kernel ends and removes what it leaves. (unshare itself ends by
#: nothing but KILL, and tells the engine.)
_APART = ["unshare", "--fork", "--kill-child=TERM", "--pid", "--mount-proc"]
_NETWORK = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
_GET = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


class Engine:
    """`close()`, or the end of a `with`, ends it and its containers, and removes every file of it. Needs root.

    It begins in the machine's network, where images are built, and touches neither bridges nor firewall there;
    `alone()` gives it a network of its own, in which it does all that an engine does.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            missing("a Docker engine of the tests' own needs root")
        self._daemon = installed("dockerd", "docker.io")
        self.directory = Path(tempfile.mkdtemp(prefix="droveway-engine-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start([], ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def alone(self) -> None:
        """From now on in a network of its own. Containers may publish any port: `get` asks there."""
        self._stop()
        self._start(_NETWORK, [])

    def _start(self, network: list[str], options: list[str]) -> None:
        (self.directory / "daemon.json").write_text("{}")  # not the machine's own settings
        words = [self._daemon, "--host", self._host, "--config-file", f"{self.directory}/daemon.json"]
        words += ["--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/exec"]
        words += ["--pidfile", f"{self.directory}/pid", "--cgroup-parent", f"/{self.directory.name}"]
        with (self.directory / "log").open("ab") as log:
            # In a session of its own: Ctrl-C is for us, and it ends after its containers.
            self._process = subprocess.Popen(
                tied_to_us([*_APART, *network, *words, *options]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until("the Docker engine's answer", self._answers, seconds=60.0, every=0.2)

    @property
    def _host(self) -> str:
        return f"unix://{self.directory}/socket"

    def _first(self) -> int:
        """The engine itself: the only child of what made its namespaces."""
        assert self._process is not None
        return int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
        asked = subprocess.run(["docker", "info"], check=False, capture_output=True, env=self._environment())
        return asked.returncode == 0

    def _environment(self) -> dict[str, str]:
        # BuildKit is an image of its own for an engine as old as Debian's.
        return os.environ | {"DOCKER_HOST": self._host, "DOCKER_BUILDKIT": "0"}

    def run(self, *words: str | Path) -> str:
        """What a command printed whose `docker` is this engine; it may take ten minutes, and must succeed."""
        done = subprocess.run(
            list(words), check=False, capture_output=True, text=True, timeout=600, env=self._environment()
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
        return done.stdout

    def get(self, url: str) -> str | None:
        """What a URL gives, asked from the engine's own machine; None while nobody answers."""
        enter = ["nsenter", "--target", str(self._first()), "--net"]
        asked = subprocess.run(
            [*enter, sys.executable, "-c", _GET, url], check=False, capture_output=True, text=True, timeout=60
        )
        return asked.stdout if asked.returncode == 0 else None

    def build(self, tag: str, dockerfile: str, *files: Path) -> None:
        """An image of these words, which may copy `files`."""
        with tempfile.TemporaryDirectory(prefix="droveway-image-") as context:
            for file in files:
                shutil.copy(file, context)
            (Path(context) / "Dockerfile").write_text(dockerfile)
            self.run("docker", "build", "--network", "host", "-t", tag, context)

    def have_debian(self) -> None:
        """The image `debian:12-slim`: what the distribution calls minimal, from its packages."""
        make = installed("mmdebstrap", "mmdebstrap")
        tar = self.directory / "debian.tar"
        self.run(make, "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", tar)
        self.run("docker", "import", tar, "new-debian")
        tar.unlink()
        self.build("debian:12-slim", _DEBIAN, _AUTHORITIES)

    def have_stand_in(self, image: str, package: str, entrypoint: str = "[]") -> None:
        """`image`, by Debian's `package` of the same program."""
        self.build(image, _STAND_IN.format(package=package, entrypoint=entrypoint))

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._first(), signal.SIGTERM)  # it ends its containers first
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.kill(self._first(), signal.SIGKILL)
                self._process.wait(timeout=30)

    def close(self) -> None:
        """End it; harmless when repeated."""
        self._stop()
        for group in Path("/sys/fs/cgroup").glob(f"**/{self.directory.name}"):
            until(f"the end of {group}", lambda group=group: group_removed(group), seconds=20.0)  # type: ignore[misc]
        shutil.rmtree(self.directory)
