"""QEMU's own migration between two QEMUs of one machine, over TCP and with multifd, told everything that helps it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.errors import HostError
from tests.benchmarks.vm.cases import CHANNELS, DOWNTIME_LIMIT, PATIENCE
from tests.benchmarks.vm.engine import NotMovedError, Outcome, Place
from tests.benchmarks.vm.processor import bury
from workers.guests.qemu.command import Places, command_line
from workers.guests.qemu.guest import BINARY, START_SECONDS
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.spec import QemuGuestSpec

#: Bytes/s; the default is 128 MiB/s.
_UNLIMITED = 100_000_000_000
_ENDED = frozenset({"completed", "failed", "cancelled"})


class QemuEngine:
    """The product's own command line for both QEMUs, but that the incoming one runs the guest by itself, at once."""

    def __init__(self, directory: Path, ram: Path) -> None:
        """Below both directories, which are the caller's, it makes its own."""
        self._places = [
            Places(BINARY, ram / f"peer-{side}.ram", directory / f"peer-{side}") for side in ("source", "destination")
        ]
        self._monitors: dict[int, Monitor] = {}
        self._pids: dict[int, int] = {}
        self._spec: QemuGuestSpec | None = None

    @property
    def consoles(self) -> Sequence[Path]:
        return [place.console for place in self._places]

    def start(self, spec: QemuGuestSpec) -> Place:
        self._spec = spec
        return self._start(0)

    def destination(self) -> Place:
        return Place(self._pids[1], self._places[1].status)

    def move(self) -> Outcome:
        port = _free_port()
        self._start(1)
        for monitor in self._monitors.values():
            on = [{"capability": name, "state": True} for name in ("multifd", "events")]
            monitor.execute("migrate-set-capabilities", capabilities=on)
            monitor.execute(
                "migrate-set-parameters",
                multifd_channels=CHANNELS,
                max_bandwidth=_UNLIMITED,
                downtime_limit=DOWNTIME_LIMIT,
            )
        source, destination = self._monitors[0], self._monitors[1]
        destination.execute("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
        began = time.monotonic()
        source.execute("migrate", uri=f"tcp:127.0.0.1:{port}")
        try:
            status = _ending(source, PATIENCE)
        except TimeoutError:
            status = "cancelled"
            source.execute("migrate_cancel")
            _ending(source, PATIENCE)
        said = source.execute("query-migrate")
        if status == "cancelled":
            raise NotMovedError(f"it was not over after {PATIENCE:g} s")
        if status != "completed" or _ending(destination, PATIENCE) != "completed":
            raise RuntimeError(f"QEMU's migration failed: {said.get('error-desc', 'no reason given')}")
        moving = time.monotonic() - began
        ram = said["ram"]
        spans = {"total": said["total-time"] / 1e3, "setup": said["setup-time"] / 1e3}
        return Outcome(moving, said["downtime"] / 1e3, ram["transferred"], ram["dirty-sync-count"], {"source": spans})

    def end(self) -> None:
        for number, place in enumerate(self._places):
            if number in self._monitors:
                with contextlib.suppress(Exception):  # it may have ended; what counts is that it has
                    self._monitors[number].execute("quit", 10.0)
                self._monitors.pop(number).close()
            if number in self._pids:
                _await_end(self._pids.pop(number))
            place.ram.unlink(missing_ok=True)
            shutil.rmtree(place.directory, ignore_errors=True)

    def _start(self, number: int) -> Place:
        assert self._spec is not None
        places = self._places[number]
        places.directory.mkdir(mode=0o700)
        command = command_line(self._spec, places, incoming=bool(number))
        log = places.directory / "log"
        with log.open("ab") as said:
            ended = subprocess.run(
                [*(word for word in command if word != "-S"), "-daemonize"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=START_SECONDS,
                check=False,
            )
        if places.pid_file.exists():
            self._pids[number] = int(places.pid_file.read_text())
        if ended.returncode or number not in self._pids:
            raise RuntimeError(f"QEMU did not start: {log.read_text()}")
        self._monitors[number] = Monitor(self._spec.name, places.monitor)
        return Place(self._pids[number], places.status)


def _ending(monitor: Monitor, seconds: float) -> str:
    """How its migration ended. TimeoutError when it has not, after so long."""
    deadline = time.monotonic() + seconds
    try:
        event = monitor.await_event(_is_ending, seconds, "end its migration")
    except HostError:
        if time.monotonic() >= deadline:
            raise TimeoutError from None
        raise
    return str(event["data"]["status"])


def _is_ending(event: dict[str, Any]) -> bool:
    return event["event"] == "MIGRATION" and event["data"]["status"] in _ENDED


def _await_end(pid: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        bury(pid)
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
