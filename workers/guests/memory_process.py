"""The memory guest's own process: one virtual CPU that works on the RAM, and the control socket.

Started by `workers.guests.memory`; ends on the command `quit` and on SIGTERM, and then removes its RAM file, socket and
directory. SIGKILL leaves them, and whoever cleans up can tell from the pid file that nobody is behind them.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from config.errors import DrovewayError, HostError
from workers.dirty import kernel
from workers.guests.contract import RunState
from workers.guests.control import ControlServer, Reply
from workers.guests.heartbeat import Heartbeat, Instant
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.memory_workload import BATCH_PAGES, Workload
from workers.guests.process_identity import ProcessIdentity, boot_id
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE

STATE_VERSION = 1
TICK_SECONDS = 0.001
#: Work is done in whole batches, or at slow rates in what falls due within this time.
SLICE_SECONDS = 0.004
#: What a busy host kept from being written for longer than this is not caught up with in a burst.
CATCH_UP_SECONDS = 0.1
RATE_SAMPLES, SAMPLE_NS = 20, 100_000_000
#: How long `stop` waits for a write fault that a tracker is to serve, before it gives up and the guest runs on.
PARK_SECONDS = 20.0


def now() -> int:
    """Nanoseconds of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Pace:
    """How many pages are due at a rate in bytes a second."""

    def __init__(self, rate: int) -> None:
        self._pages_per_ns = rate / PAGE_SIZE / 1e9
        self._least = min(BATCH_PAGES, max(1, rate * SLICE_SECONDS / PAGE_SIZE))
        self._most = max(BATCH_PAGES, rate * CATCH_UP_SECONDS / PAGE_SIZE)
        self._owed = 0.0
        self._since = now()

    def restart(self) -> None:
        """Nothing became due while the guest was paused."""
        self._since = now()

    def due(self, moment: int) -> int:
        """Pages to do now; 0 until there are enough to be worth a batch."""
        self._owed = min(self._owed + (moment - self._since) * self._pages_per_ns, self._most)
        self._since = moment
        return int(self._owed) if self._owed >= self._least else 0

    def did(self, pages: int) -> None:
        """So many have been done."""
        self._owed -= pages


class VirtualCpu:
    """Runs the workload in a thread of its own, and parks it between two writes.

    One thread is clock, writer and checker, so whatever keeps the guest from working shows up as a gap of its
    heartbeat: a pause, a write fault that waits to be served, a busy host.
    """

    def __init__(self, workload: Workload, state: RunState) -> None:
        self.state = state
        self.workload = workload
        self.heartbeat = Heartbeat(now())
        self._writing, self._checking = Pace(workload.spec.dirty_rate), Pace(workload.spec.check_rate)
        self._samples: deque[tuple[int, int]] = deque(maxlen=RATE_SAMPLES)
        self._held = threading.Event()
        self._changed = threading.Condition()
        self._parked = False
        self._parked_for = 0
        if state is not RunState.RUNNING:
            self._held.set()
        threading.Thread(target=self._run, name="vcpu", daemon=True).start()

    def park(self) -> None:
        """Return when no write is under way and none will begin before `release`.

        Raises HostError when a write does not end in time; the guest then runs on.
        """
        with self._changed:
            self._held.set()
            if not self._changed.wait_for(lambda: self._parked, PARK_SECONDS):
                self._held.clear()
                raise HostError(
                    f"the guest did not pause within {PARK_SECONDS:g} s, as one of its writes waits for a tracker to "
                    "serve it: end that tracker and try again"
                )

    def release(self) -> None:
        """Go on."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def dirty_rate(self) -> float:
        """Bytes a second written over the last two seconds in which the guest ran."""
        samples = list(self._samples)
        if len(samples) < 2 or samples[-1][0] == samples[0][0]:
            return 0.0
        return (samples[-1][1] - samples[0][1]) * PAGE_SIZE * 1e9 / (samples[-1][0] - samples[0][0])

    def _run(self) -> None:
        try:
            while True:
                if self._held.is_set():
                    self._wait_parked()
                self._step()
        finally:  # a guest whose processor fails is dead, and must not look alive
            traceback.print_exc()
            os._exit(1)

    def _wait_parked(self) -> None:
        parked_at = now()
        with self._changed:
            self._parked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._held.is_set())
            self._parked = False
        self._parked_for += now() - parked_at
        self._writing.restart()
        self._checking.restart()

    def _step(self) -> None:
        moment = now()
        self.heartbeat.tick(moment)
        ran = moment - self._parked_for
        if not self._samples or ran - self._samples[-1][0] >= SAMPLE_NS:
            self._samples.append((ran, self.workload.sequence))
        to_write, to_check = self._writing.due(moment), self._checking.due(moment)
        if not self.workload.full:
            self.workload.fill(self._held.is_set)
        elif to_write:
            self._writing.did(self.workload.write(to_write, self._held.is_set))
        if to_check:
            self._checking.did(self.workload.check_next())
        elif self.workload.full and not to_write:
            self._held.wait(TICK_SECONDS)


class MemoryMachine:
    """The guest as its control socket shows it. Commands that change it run one at a time."""

    def __init__(self, spec: MemoryGuestSpec, ram: Ram, state: RunState) -> None:
        self._spec = spec
        self._cpu = VirtualCpu(Workload(spec, ram), state)
        self._boot_id = boot_id()
        self._lock = threading.Lock()
        self.commands = {
            "query-status": self._query_status,
            "stop": self._stop,
            "cont": self._cont,
            "save": self._save,
            "load": self._load,
            "query-oracle": self._query_oracle,
            "reset-gap": self._reset_gap,
            "userfaultfd": self._userfaultfd,
            "quit": self._quit,
        }

    def _query_status(self, _: dict[str, Any]) -> Reply:
        return Reply({"status": self._cpu.state.value})

    def _stop(self, _: dict[str, Any]) -> Reply:
        with self._lock:
            if self._cpu.state is RunState.RUNNING:
                self._cpu.park()
                self._cpu.state = RunState.PAUSED
        return Reply({})

    def _cont(self, _: dict[str, Any]) -> Reply:
        with self._lock:
            if self._cpu.state is RunState.INMIGRATE:
                raise HostError(f"guest {self._spec.name} waits for its device state: load it before `cont`")
            self._cpu.state = RunState.RUNNING
            self._cpu.release()
        return Reply({})

    def _save(self, _: dict[str, Any]) -> Reply:
        with self._lock:
            if self._cpu.state is not RunState.PAUSED:
                raise HostError(f"guest {self._spec.name} is {self._cpu.state}, not paused: `stop` it before `save`")
            state = {
                "version": STATE_VERSION,
                "spec": self._spec.to_json(),
                "workload": self._cpu.workload.to_state(),
                "heartbeat": self._cpu.heartbeat.to_state(self._instant()),
            }
        return Reply({"state": json.dumps(state)})

    def _load(self, arguments: dict[str, Any]) -> Reply:
        with self._lock:
            if self._cpu.state is not RunState.INMIGRATE:
                raise HostError(f"guest {self._spec.name} is {self._cpu.state}: only an incoming guest loads a state")
            try:
                state = json.loads(arguments["state"])
                if state["version"] != STATE_VERSION or state["spec"] != self._spec.to_json():
                    raise ValueError("it is of another guest or of another version")
                self._cpu.heartbeat.load(state["heartbeat"], self._instant())
                self._cpu.workload.load(state["workload"])
            except (ValueError, TypeError, KeyError) as error:
                raise HostError(
                    f"the device state does not fit guest {self._spec.name} ({error}): "
                    "have the source save it anew, with the release that this host runs"
                ) from None
            self._cpu.state = RunState.PAUSED
        return Reply({})

    def _query_oracle(self, arguments: dict[str, Any]) -> Reply:
        full = self._check_all() if arguments.get("full") is True else None
        workload = self._cpu.workload
        report = workload.findings.to_json() | self._cpu.heartbeat.report()
        return Reply(
            report
            | {
                "sequence": workload.sequence,
                "written_bytes": workload.sequence * PAGE_SIZE,
                "dirty_rate_actual": self._cpu.dirty_rate(),
                "filled_bytes": workload.filled * PAGE_SIZE,
                "used_bytes": workload.layout.used * PAGE_SIZE,
                "full_check": full,
            }
        )

    def _check_all(self) -> dict[str, Any]:
        with self._lock:
            held = self._cpu.state is RunState.RUNNING
            if held:
                self._cpu.park()
            try:
                findings, zeros = self._cpu.workload.check_all()
            finally:
                if held:
                    self._cpu.heartbeat.restart(now())
                    self._cpu.release()
        return findings.to_json() | {"untouched_zero_pages": zeros}

    def _reset_gap(self, _: dict[str, Any]) -> Reply:
        self._cpu.heartbeat.reset()
        return Reply({})

    def _userfaultfd(self, _: dict[str, Any]) -> Reply:
        try:
            return Reply({}, kernel.userfaultfd())
        except OSError as error:
            raise kernel.explained(error, "making a userfaultfd in the guest") from None

    def _quit(self, _: dict[str, Any]) -> Reply:
        # The main thread ends the process, perhaps before this answer is out: who asked waits for the process.
        os.kill(os.getpid(), signal.SIGTERM)
        return Reply({})

    def _instant(self) -> Instant:
        return Instant(self._boot_id, now(), time.time_ns())


# --- the process ------------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Become the guest: `memory_process DIRECTORY --ready-fd N [--incoming]`.

    Writes `ready`, or the sentence that says why not, to the descriptor N once the guest can be talked to.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--incoming", action="store_true")
    options = parser.parse_args()
    # The grandchild belongs to init, which reaps it: a starter that lives on collects no zombies.
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server, ram_file = _set_up(options.directory, options.incoming)
    except (DrovewayError, OSError) as error:
        os.write(options.ready_fd, str(error).encode())
        os._exit(1)
    try:
        os.write(options.ready_fd, b"ready")
        os.close(options.ready_fd)
        server.serve()
    except (SystemExit, BrokenPipeError):  # told to end, or who started it died before it was up
        ram_file.unlink(missing_ok=True)
        shutil.rmtree(options.directory, ignore_errors=True)
    finally:
        os._exit(0)  # the virtual CPU may wait in a write fault that nobody serves: there is nothing to join


def _set_up(directory: Path, incoming: bool) -> tuple[ControlServer, Path]:
    faulthandler.enable()
    # How long a thread that wants the interpreter waits for one that computes: the default 5 ms would show as gaps.
    sys.setswitchinterval(0.0005)
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    identity.write(directory / "pid")
    made = json.loads((directory / "guest.json").read_bytes())
    spec, path = MemoryGuestSpec.from_json(made["spec"]), Path(made["ram"])
    ram = Ram([BlockFile(RamBlock("ram", spec.memory), path)])
    machine = MemoryMachine(spec, ram, RunState.INMIGRATE if incoming else RunState.RUNNING)
    return ControlServer(directory / "control", spec.name, machine.commands), path


if __name__ == "__main__":
    main()
