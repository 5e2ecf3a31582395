"""An unmodified QEMU as the stages see it: we move its RAM, which is a shared file; it moves its device state itself.

On its host it is a directory, `STATE/guests/NAME/`, with guest.json (shape, RAM file, binary), pid, the sockets monitor
and status (QMP) and console, console.log and log, and a RAM file in `ram_dir`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from config.errors import HostError, RequestError
from workers.guests.blocker import Blocker
from workers.guests.contract import RunState
from workers.guests.control import check_path
from workers.guests.places import make_directory, make_ram, ram_path
from workers.guests.process_identity import ProcessIdentity
from workers.guests.qemu.blockers import Reason, blockers_at_destination, blockers_at_source
from workers.guests.qemu.command import Places, command_line
from workers.guests.qemu.injection import userfaultfd_in
from workers.guests.qemu.inspection import facts_of, needs_of, shape_of
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.needs import Needs
from workers.guests.qemu.probing import facts_for
from workers.guests.qemu.spec import QemuGuestSpec
from workers.ram import BlockFile, RamBlock
from workers.ranges import PAGE_SIZE

BINARY = "qemu-system-x86_64"
START_SECONDS = 60.0
QUIT_SECONDS = 10.0
#: QEMU's own stream: device state and ROMs, 0.3 to 1 MiB, with a used framebuffer up to 17.
_STATE_SECONDS = 60.0
#: Its default of 128 MiB/s would lengthen the pause.
_BANDWIDTH = 10 << 30
_PAUSED = frozenset({"paused", "prelaunch", "postmigrate", "finish-migrate", "save-vm", "restore-vm"})


class QemuGuest:
    """A handle on one QEMU of this host; implements `workers.guests.contract.Guest`."""

    kind: ClassVar[str] = "qemu"
    kernel_writes: ClassVar[bool] = True

    def __init__(self, directory: Path) -> None:
        """Take hold of the guest in this directory. Raises HostError when its description cannot be read."""
        self._directory = directory
        try:
            made = json.loads((directory / "guest.json").read_bytes())
            self.spec = QemuGuestSpec.from_json(made["spec"])
            elsewhere = (Path(made[key]) if made.get(key) else None for key in ("monitor", "status"))
            self.places = Places(str(made["binary"]), Path(made["ram"]), directory, *elsewhere)
        except (OSError, ValueError, KeyError, TypeError, RequestError) as error:
            raise HostError(
                f"{directory} does not describe a QEMU guest ({error}): remove it if no guest is to be there"
            ) from None
        self.name = self.spec.name
        self._process = ProcessIdentity.read(directory / "pid")
        self._monitor: Monitor | None = None

    @property
    def pid(self) -> int:
        """The process whose page tables hold the guest's RAM. Raises HostError when it is gone."""
        return self._living().pid

    def block_files(self) -> list[BlockFile]:
        """One block, QEMU's memory backend."""
        self._living()
        return [BlockFile(RamBlock(self.spec.ram_id, self.spec.memory), self.places.ram)]

    def status(self) -> RunState:
        """Whether it runs. Raises HostError also in a state that is none of ours (a guest that panicked)."""
        self._living()
        with self._asking() as monitor:
            said = monitor.execute("query-status")["status"]
        if said in _PAUSED:
            return RunState.PAUSED
        try:
            return RunState(said)
        except ValueError:
            raise HostError(f"guest {self.name} is {said}: it can be moved when it runs again") from None

    def blockers(self) -> list[Blocker]:
        """What of this QEMU keeps its guest from leaving. Takes the monitor, and keeps it when it can be had."""
        problem = ""
        try:
            self._moving()
        except HostError as error:
            problem = str(error)
        with self._asking() as monitor:
            facts = facts_of(
                monitor, self.pid, ram_id=self.spec.ram_id, shape=shape_of(self.spec), monitor_problem=problem
            )
        return blockers_at_source(facts)

    def stop(self) -> None:
        """Pause; QEMU drains its disks first, so that no transfer of theirs is under way when this returns."""
        self._moving().execute("stop")

    def cont(self) -> None:
        """Resume. Harmless when already running."""
        self._moving().execute("cont")

    def drain(self) -> None:
        """Wait until no disk writes to guest memory: an empty transaction drains all of them (QEMU to date)."""
        self._moving().execute("transaction", actions=[])

    def save_state(self) -> bytes:
        """QEMU's own migration stream of the paused guest, without the RAM."""
        monitor = self._moving()
        _set_up(monitor)
        with _stream(monitor) as ours, ThreadPoolExecutor(1, "state") as reader:
            reading = reader.submit(_read_all, ours)
            try:
                monitor.execute("migrate", uri="fd:stream")
                self._await_completed(monitor)
                return reading.result(_STATE_SECONDS)
            finally:
                with contextlib.suppress(OSError):  # it has ended; else the reader would wait for ever
                    ours.shutdown(socket.SHUT_RDWR)

    def load_state(self, state: bytes) -> None:
        """Give an incoming guest its device state; it stays paused. Raises HostError when QEMU cannot load it."""
        monitor = self._moving()
        _set_up(monitor)
        with _stream(monitor) as ours:
            monitor.execute("migrate-incoming", uri="fd:stream")
            ours.settimeout(_STATE_SECONDS)
            with contextlib.suppress(OSError):  # QEMU tells below why it took no more
                ours.sendall(state)
                ours.shutdown(socket.SHUT_WR)
            self._await_completed(monitor)

    def userfaultfd(self) -> int:
        """A userfaultfd made inside QEMU, as a descriptor of ours; QEMU keeps none."""
        return userfaultfd_in(self.pid)

    def description(self) -> dict[str, Any]:
        """What a destination needs to start the incoming twin."""
        self._living()
        with self._asking() as monitor:
            needs = needs_of(monitor, self.spec)
        said = {"kind": self.kind, "name": self.name, "blocks": [_block(self.spec)], "shape": self.spec.to_json()}
        return said | {"needs": needs.to_json()}

    def resolve_machine(self) -> None:
        """Note which version an alias means here (q35: pc-q35-7.2): another host's QEMU may mean another."""
        with self._asking() as monitor:
            known = monitor.execute("query-machines")
        named = {one["alias"]: one["name"] for one in known if "alias" in one}
        self.spec = self.spec.model_copy(update={"machine": named.get(self.spec.machine, self.spec.machine)})
        describe(self.spec, self.places)

    def quit(self) -> None:
        """End the guest for good and remove its RAM file and directory. Harmless when already gone."""
        if ProcessIdentity.read(self._directory / "pid") != self._process:
            return  # already gone; the directory, if any, belongs to a later guest of this name
        # Whoever started it may have died before it noted which process that is.
        process = self._process or _started(self.places)
        ended = process is None or not process.alive() or (self._asked_to_quit() and process.wait(QUIT_SECONDS))
        if process is not None and not ended and not process.kill():
            raise HostError(f"process {process.pid} of guest {self.name} survives SIGKILL: look at its state")
        self.close()
        self.places.ram.unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def close(self) -> None:
        """Let others have the monitor."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def console_log(self) -> str:
        """All that the guest's serial console said on this host."""
        return self.places.console_log.read_text("utf-8", "replace")

    def _await_completed(self, monitor: Monitor) -> None:
        """Raises HostError with QEMU's reason when its migration failed."""

        def ended(event: dict[str, Any]) -> bool:
            return event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed", "cancelled")

        event = monitor.await_event(ended, _STATE_SECONDS, "move its device state")
        if event["data"]["status"] != "completed":
            try:
                reason = monitor.execute("query-migrate")["error-desc"]
            except (HostError, KeyError):  # an incoming one that cannot load ends, and says why in its log
                reason = _last_words(self._directory / "log")
            raise HostError(f"QEMU of guest {self.name} could not move its device state: {reason}")
        # The event comes before the last step of it, in which `cont` would be refused.
        until = time.monotonic() + _STATE_SECONDS
        while monitor.execute("query-status")["status"] == "finish-migrate" and time.monotonic() < until:
            time.sleep(0.001)

    def _asked_to_quit(self) -> bool:
        if self._process is None:
            return False
        try:
            self._moving().execute("quit", QUIT_SECONDS)
        except HostError:
            return False
        return True

    def _living(self) -> ProcessIdentity:
        if self._process is None or not self._process.alive():
            raise HostError(f"guest {self.name} has no process any more: remove what it left, and start it anew")
        return self._process

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Monitor]:
        """The socket for questions; the one that this handle holds already, where QEMU has only one."""
        if self._monitor is not None and self.places.status == self.places.monitor:
            yield self._monitor
        else:
            with Monitor(self.name, self.places.status) as monitor:
                yield monitor

    def _moving(self) -> Monitor:
        """The connection that this handle keeps from its first command on: making one costs milliseconds of a pause."""
        self._living()
        if self._monitor is None:
            self._monitor = Monitor(self.name, self.places.monitor)
        return self._monitor


def _read_all(line: socket.socket) -> bytes:
    chunks = []
    while got := line.recv(1 << 20):
        chunks.append(got)
    return b"".join(chunks)


def _block(spec: QemuGuestSpec) -> dict[str, Any]:
    return {"id": spec.ram_id, "size": spec.memory, "page_size": PAGE_SIZE}


def _set_up(monitor: Monitor) -> None:
    # late-block-activate: a destination takes the locks of its disks when it is told to run, not when it has loaded, so
    # that until then the source can always go on.
    on = {"x-ignore-shared": True, "events": True, "late-block-activate": True}
    monitor.execute(
        "migrate-set-capabilities", capabilities=[{"capability": name, "state": state} for name, state in on.items()]
    )
    monitor.execute("migrate-set-parameters", max_bandwidth=_BANDWIDTH)


@contextlib.contextmanager
def _stream(monitor: Monitor) -> Iterator[socket.socket]:
    """A connection to QEMU that it knows as fd:stream."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            monitor.send_descriptor("stream", theirs.fileno())
        yield ours


# --- starting ---------------------------------------------------------------------------------------------------------


def start_qemu_guest(state_dir: Path, ram_dir: Path, spec: QemuGuestSpec) -> QemuGuest:
    """Start a running guest. Raises RefusedError (`guest-exists`) and HostError; a failed start leaves nothing."""
    return _start(state_dir, ram_dir, spec, incoming=False)


def incoming_qemu_guest(state_dir: Path, ram_dir: Path, description: dict[str, Any]) -> QemuGuest:
    """Start the incoming twin of the guest described: its memory all holes, waiting for `load_state`.

    Raises RequestError when the description is not one of a QEMU guest, otherwise as `start_qemu_guest`.
    """
    spec = QemuGuestSpec.from_json(description.get("shape"))
    said = (description.get("kind"), description.get("name"), description.get("blocks"))
    if said != (QemuGuest.kind, spec.name, [_block(spec)]):
        raise RequestError("the source does not describe a QEMU guest: is it of this release?")
    return _start(state_dir, ram_dir, spec, incoming=True)


def obstacles(description: dict[str, Any]) -> list[Blocker]:
    """What keeps the guest described from coming to this host; nothing is started but a QEMU without a machine."""
    try:
        spec, needs = QemuGuestSpec.from_json(description.get("shape")), Needs.from_json(description.get("needs"))
    except RequestError as error:
        return [Blocker(Reason.MALFORMED.value, str(error), "run the same release on both hosts")]
    return blockers_at_destination(facts_for(BINARY, spec, needs))


def _start(state_dir: Path, ram_dir: Path, spec: QemuGuestSpec, *, incoming: bool) -> QemuGuest:
    directory = state_dir.resolve() / "guests" / spec.name
    places = Places(BINARY, ram_path(ram_dir, directory), directory)
    check_path(places.monitor)
    with contextlib.ExitStack() as undo:
        make_directory(directory)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        describe(spec, places)
        make_ram(places.ram, spec.memory, used=spec.memory)
        undo.callback(places.ram.unlink, missing_ok=True)
        undo.callback(end_started, places)
        spawn(spec, places, incoming)
        guest = QemuGuest(directory)
        guest.resolve_machine()
        undo.pop_all()
    return guest


def describe(spec: QemuGuestSpec, places: Places) -> None:
    """Write down what lies in a guest's directory."""
    made = {"kind": QemuGuest.kind, "spec": spec.to_json(), "ram": str(places.ram), "binary": places.binary}
    elsewhere = {"monitor": places.monitor_elsewhere, "status": places.status_elsewhere}
    made |= {key: str(path) for key, path in elsewhere.items() if path}
    fresh = places.directory / "guest.json.new"
    fresh.write_text(json.dumps(made))
    fresh.replace(places.directory / "guest.json")


def spawn(spec: QemuGuestSpec, places: Places, incoming: bool) -> None:
    """Start QEMU, which leaves us once it is up (-daemonize): the guest outlives whoever started it."""
    log = places.directory / "log"
    try:
        with log.open("ab") as said:
            ended = subprocess.run(
                command_line(spec, places, incoming=incoming),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                timeout=START_SECONDS,
                check=False,
            )
    except FileNotFoundError:
        raise HostError(
            f"{places.binary} is not installed on this host (Debian: apt install qemu-system-x86)"
        ) from None
    except subprocess.TimeoutExpired:
        raise HostError(
            f"QEMU of guest {spec.name} was not up after {START_SECONDS:g} s: look at the host's load"
        ) from None
    process = _started(places)
    if ended.returncode or process is None:
        raise HostError(f"QEMU of guest {spec.name} did not start: {_last_words(log)}")
    process.write(places.directory / "pid")


def _last_words(log: Path) -> str:
    """QEMU says what is wrong in a line or two, and may add advice."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    return "; ".join([line for line in lines if line][-3:]) or "it ended without a word"


def _started(places: Places) -> ProcessIdentity | None:
    """The QEMU that wrote this guest's pid file; None when there is none, or it has ended."""
    try:
        process = ProcessIdentity.of(int(places.pid_file.read_text()))
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes() if process else b""
    except (OSError, ValueError):
        return None
    return process if os.fsencode(places.pid_file) in command.split(b"\0") else None


def end_started(places: Places) -> None:
    """End the QEMU that `spawn` started at these places, if there is one."""
    if process := _started(places):
        process.kill()
