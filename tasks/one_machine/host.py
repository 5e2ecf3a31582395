"""One host of such a fleet: a state directory, a place for guests' RAM, and a worker process per role."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from config.errors import DrovewayError, HostError
from config.settings import ENVIRONMENT_PREFIX, NOT_SETTINGS, Settings
from tasks.one_machine.tied import tied_to_us
from workers.attempt import Attempt
from workers.guests.local import LocalGuests
from workers.pairing.contract import Side

_ROOT = Path(__file__).resolve().parents[2]
#: Seconds for a worker to stop in order; its movers go on without it.
_STOP_SECONDS = 20.0
#: Seconds in which everything that was started on a host must have ended.
_CLEAR_SECONDS = 20.0


class LocalHost:
    """One host. Workers are started, stopped and killed by role; movers and guests are found on disk."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to that of every process of this host."""
        self.settings = settings
        self.name = settings.host.name
        self.state_dir = settings.host.state_dir
        self.ram_dir = settings.host.ram_dir
        self.environment = dict(environment or {})
        #: Where the program of its workers lies: this one, or that of another release.
        self.program = _ROOT
        self._workers: dict[Side, subprocess.Popen[bytes]] = {}
        for directory in (self.state_dir, self.ram_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def guests(self) -> LocalGuests:
        """The guests of this host."""
        return LocalGuests(self.state_dir, self.ram_dir)

    # --- workers ------------------------------------------------------------------------------------------------------

    def start(self, *sides: Side, environment: Mapping[str, str] | None = None) -> None:
        """Start the workers of these roles (both, when none is named) that do not run."""
        for side in sides or Side:
            if not self.running(side):
                self._workers[side] = self._spawn(side, environment or {})

    def stop(self, *sides: Side) -> None:
        """End these workers in order, as systemd would: SIGTERM, then SIGKILL."""
        self._end(signal.SIGTERM, sides)

    def kill(self, *sides: Side) -> None:
        """End these workers as a crash would. Their movers go on."""
        self._end(signal.SIGKILL, sides)

    def running(self, side: Side) -> bool:
        """Whether this role's worker is there."""
        worker = self._workers.get(side)
        return worker is not None and worker.poll() is None

    def started(self, side: Side) -> bool:
        """Whether this role's worker was ever started, and not ended by us."""
        return side in self._workers

    def pid(self, side: Side) -> int:
        """The process of this role's worker, which was started and not ended by us."""
        return self._workers[side].pid

    def log(self, side: Side) -> Path:
        """What this role's workers say, one after the other."""
        return self.state_dir / f"{side}.log"

    def _spawn(self, side: Side, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tasks.cli.main", "worker", "--role", str(side)]
        with self.log(side).open("ab") as log:
            return subprocess.Popen(
                tied_to_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.program,
                env=_without_settings(os.environ) | self.settings.environment() | self.environment | dict(environment),
                # A terminal's Ctrl-C is for whoever runs this fleet, which then ends it in its own order.
                process_group=0,
            )

    def _end(self, number: signal.Signals, sides: tuple[Side, ...]) -> None:
        workers = [self._workers.pop(side) for side in sides or Side if side in self._workers]
        for worker in workers:
            worker.send_signal(number)
        for worker in workers:
            try:
                worker.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    # --- movers -------------------------------------------------------------------------------------------------------

    def attempts(self, side: Side | None = None) -> list[Attempt]:
        """The attempts that lie on this host, whether their movers live or not; of one side when it is named."""
        return [each for each in Attempt.all(self.state_dir) if side is None or each.job().side is side]

    def kill_movers(self, side: Side | None = None) -> list[Attempt]:
        """End the movers that live, as a crash would; theirs are the attempts returned."""
        return [attempt for attempt in self.attempts(side) if _kill_mover(attempt)]

    # --- the end ------------------------------------------------------------------------------------------------------

    def logs(self) -> list[Path]:
        """Everything that a process of this host wrote for people."""
        patterns = ("*.log", "movers/*/log", "guests/*/log")
        return sorted(path for pattern in patterns for path in self.state_dir.glob(pattern) if path.stat().st_size)

    def close(self) -> None:
        """End workers, movers and guests, and remove what they left. Raises HostError for what survives."""
        self.kill()
        deadline = time.monotonic() + _CLEAR_SECONDS
        # A mover that was just started has not said its process id yet; a killed one may have been starting a guest.
        while any(attempt.alive() for attempt in self.attempts()):
            self.kill_movers()
            if time.monotonic() > deadline:
                raise HostError(f"a mover in {self.state_dir}/movers survives SIGKILL: look at its state")
        for guest in self.guests.list():
            self.guests.stop(guest.name)
        shutil.rmtree(self.ram_dir, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)


def _kill_mover(attempt: Attempt) -> bool:
    """SIGKILL the mover and wait for its end; False when it does not live, or has not said yet which process it is."""
    try:
        said = json.loads((attempt.directory / "pid").read_bytes())
        handle = os.pidfd_open(int(said["pid"]))
    except (OSError, ValueError, KeyError):
        return False
    try:
        if not attempt.alive():  # asked with the pidfd in hand: the number cannot have passed to a stranger
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return attempt.wait(_CLEAR_SECONDS)
    finally:
        os.close(handle)


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment less its settings: a host of this fleet has its own."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX) or name in NOT_SETTINGS
    }


def closed(hosts: list[LocalHost]) -> list[DrovewayError]:
    """Close all of them, whatever happens to one; what could not be ended."""
    failures = []
    for host in hosts:  # no worker may start a mover while another host is cleared
        host.kill()
    for host in hosts:
        try:
            host.close()
        except DrovewayError as error:
            failures.append(error)
    return failures
