"""An unmodified QEMU as the stages see it: we move its RAM, which is a shared file; it moves its device state itself.

On its host it is a directory, `STATE/guests/NAME/`, with guest.json (shape, RAM file, binary), pid, the sockets monitor
and status (QMP) and console, console.log, log (of its start), qemu.log, and a RAM file in `ram_dir`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from config.errors import HostError, RequestError
from workers.fault_injection import point, stops_to_drain
from workers.guests.blocker import Blocker
from workers.guests.contract import IncomingState, OutgoingState, RunState, Send
from workers.guests.control import check_path
from workers.guests.places import make_directory, make_ram, ram_path
from workers.guests.process_identity import ProcessIdentity
from workers.guests.qemu.blockers import Reason, blockers_at_destination, blockers_at_source
from workers.guests.qemu.command import Places, command_line
from workers.guests.qemu.draining import known_to_drain
from workers.guests.qemu.injection import userfaultfd_in
from workers.guests.qemu.inspection import facts_of, needs_of, shape_of
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.needs import Needs
from workers.guests.qemu.own_migration import OwnMigration, leave_no_migration
from workers.guests.qemu.own_settings import SAFE_FOR_EMULATED, WRITES_ARE_LOST_IN
from workers.guests.qemu.probing import START_SECONDS, facts_for
from workers.guests.qemu.queries import images
from workers.guests.qemu.spec import QemuGuestSpec
from workers.guests.qemu.state import IncomingQemuState, OutgoingQemuState, last_words
from workers.ram import BlockFile, RamBlock
from workers.ranges import PAGE_SIZE

BINARY = "qemu-system-x86_64"
QUIT_SECONDS = 10.0
_PAUSED = frozenset({"paused", "prelaunch", "postmigrate", "finish-migrate", "save-vm", "restore-vm"})


_T = TypeVar("_T")
#: In the state directory: which of this host's QEMUs are known to drain (draining.py).
_DRAINING = "qemu-draining.json"


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
        self._outgoing: OutgoingQemuState | None = None
        #: Whether this handle gave it its device state.
        self._incoming = False
        self.stopped_here = False
        #: Whether an empty transaction drains; None: not tried yet.
        self._drains: bool | None = None
        #: There from the moment that QEMU's own migration is begun by a mover until the guest is resumed here.
        self._departed = directory / "departed"

    @property
    def pid(self) -> int:
        """The process whose page tables hold the guest's RAM. Raises HostError when it is gone."""
        return self._living().pid

    @property
    def not_from_outside(self) -> str | None:
        """Only a shared file can be mapped by another process."""
        return "its RAM is not a shared file" if self.spec.memory_backend == "anonymous" else None

    @property
    def not_by_itself(self) -> str | None:
        """An emulated guest must not be left to a QEMU that loses some of its writes."""
        if self.spec.accel != "tcg" or self.spec.memory % WRITES_ARE_LOST_IN:
            return None
        with self._asking() as monitor:
            version = monitor.execute("query-version")["qemu"]
        if (version["major"], version["minor"]) >= SAFE_FOR_EMULATED:
            return None
        found, safe = (".".join(map(str, each)) for each in ((version["major"], version["minor"]), SAFE_FOR_EMULATED))
        return f"QEMU {found} loses writes of an emulated guest (accel tcg) while it moves it, before {safe}"

    def blocks(self) -> list[RamBlock]:
        """One block, QEMU's memory backend."""
        self._living()
        return [RamBlock(self.spec.ram_id, self.spec.memory)]

    def block_files(self) -> list[BlockFile]:
        """The same, with its file. Raises HostError when there is none."""
        if self.not_from_outside:
            raise HostError(f"guest {self.name} cannot be moved from outside: {self.not_from_outside}; use engine=qemu")
        return [BlockFile(block, self.places.ram) for block in self.blocks()]

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

    def blockers(self, *, hold: bool = False) -> list[Blocker]:
        """What of this QEMU keeps its guest from leaving. What is tried, and with `hold` kept, is the monitor."""
        problem = ""
        try:
            self._moving()
        except HostError as error:
            problem = str(error)
        if not hold:
            self.close()
        with self._asking() as monitor:
            facts = facts_of(
                monitor, self.pid, ram_id=self.spec.ram_id, shape=shape_of(self.spec), monitor_problem=problem
            )
        return blockers_at_source(facts)

    def stop(self) -> None:
        """Pause; QEMU drains its disks first, so that no transfer of theirs is under way when this returns.

        Raises HostError also, the guest paused, when a disk is of another file than its shape says: exchanged while the
        guest ran, it would be the shape's again at the destination. What is exchanged from now on is not written to.
        """
        self.stopped_here = True  # also if the answer is lost
        if self._outgoing is not None:
            self._outgoing.pause()
        else:
            self._moving().execute("stop")
        # One question, for the guest is paused: other devices than the shape's would not load at the destination.
        there, shape = images(self._moving()), shape_of(self.spec).disks
        if Counter(there) != Counter(shape):
            has, said = (", ".join(map(str, each)) or "none" for each in (there, shape))
            raise HostError(
                f"the disks of guest {self.name} were exchanged while it moved: they are {has}, its shape says {said}; "
                "undo that, and migrate it again"
            )

    def cont(self) -> None:
        """Resume; a migration of QEMU's own is ended first. Harmless when already running.

        Raises HostError also where somebody else has migrated the guest away: it would run twice, on the same disks.
        """
        monitor = self._moving()
        if not self._incoming:  # else its own migration is complete, and this is the pause
            leave_no_migration(monitor)
            self._refuse_taken_away(monitor)
        monitor.execute("cont")
        self.stopped_here = False
        self._departed.unlink(missing_ok=True)

    def protect(self, protecting: Callable[[], _T]) -> _T:
        """What `protecting` returns; then, or around it, the disks are drained (see draining.py)."""
        if not self.spec.disks:
            return protecting()
        if stops_to_drain():
            self._drains = False
        elif self._drains is None:
            self._drains = known_to_drain(Path(f"/proc/{self.pid}/exe"), self._directory.parents[1] / _DRAINING)
        monitor = self._moving()
        if self._drains:
            protected = protecting()
            monitor.execute("transaction", actions=[])
            return protected
        return self._while_stopped(monitor, protecting)

    @property
    def drained_by(self) -> str:
        """`transaction` or `stop`; empty without a disk, or before the first `protect`."""
        return {None: "", True: "transaction", False: "stop"}[self._drains]

    def _while_stopped(self, monitor: Monitor, protecting: Callable[[], _T]) -> _T:
        """`stop` drains the disks, as documented, and costs a running guest a short pause."""
        self.stopped_here = monitor.execute("query-status")["running"]
        monitor.execute("stop")
        point("source.protecting")
        try:
            protected = protecting()
            if monitor.execute("query-status")["running"]:
                raise HostError(
                    f"somebody resumed guest {self.name} while its disks were held still, so that what they read then "
                    "may have been missed; migrate it again"
                )
            return protected
        finally:
            if self.stopped_here:  # else somebody else had paused it, and will resume it
                monitor.execute("cont")
                self.stopped_here = False

    @contextlib.contextmanager
    def outgoing_state(self, send: Send) -> Iterator[OutgoingState]:
        """QEMU's own migration, without the RAM; within it, `stop` lets QEMU pause the guest for the switch-over."""
        with OutgoingQemuState(self.name, self._moving(), self._last_words, send) as state:
            # Not before: where somebody else's migration is under way that is refused, and ending it is not ours to do.
            self._departs()
            self._outgoing = state
            try:
                yield state
            finally:
                self._outgoing = None

    @contextlib.contextmanager
    def incoming_state(self, send: Send) -> Iterator[IncomingState]:
        """QEMU's own migration, without the RAM; it waits from now on."""
        with IncomingQemuState(self.name, self._moving(), self._last_words, send) as state:
            self._incoming = True
            yield state

    def announce(self) -> None:
        """Let QEMU's network cards say for a second where they are (RARP, and the guest's own driver), as QEMU does."""
        if self.spec.nics:
            self._moving().execute("announce-self", initial=50, max=550, rounds=5, step=100)

    def own_migration(self) -> OwnMigration:
        """QEMU's own way of moving this guest, over this handle's connection."""
        return OwnMigration(self.name, self._moving(), self._directory, self._last_words, self._departs)

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

    def felt_gap(self) -> float | None:
        """Nothing inside of it counts."""
        return None

    def close(self) -> None:
        """Let others have the monitor."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def console_log(self) -> str:
        """All that the guest's serial console said on this host."""
        return self.places.console_log.read_text("utf-8", "replace")

    def _departs(self) -> None:
        """From now on QEMU may pause the guest by itself, and it is a mover's to resume it, be it another one."""
        try:
            self._departed.touch()
        except OSError as error:
            raise HostError(f"{self._departed} cannot be written ({error}): make room, and migrate it again") from None
        self.stopped_here = True

    def _refuse_taken_away(self, monitor: Monitor) -> None:
        if monitor.execute("query-status")["status"] == "postmigrate" and not self._departed.exists():
            raise HostError(
                f"guest {self.name} is not resumed: somebody else migrated it away, and it may run there; tell its "
                "monitor `quit` when it does and `cont` when it does not, `droveway reconcile` then goes on"
            )

    def _last_words(self) -> str:
        return last_words(self.places.log)

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
            path = self.places.monitor if self.places.monitor.exists() else self.places.status
            self._monitor = Monitor(self.name, path)
        return self._monitor


def _block(spec: QemuGuestSpec) -> dict[str, Any]:
    return {"id": spec.ram_id, "size": spec.memory, "page_size": PAGE_SIZE}


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
        if spec.memory_backend == "file":
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
                [*command_line(spec, places, incoming=incoming), "-daemonize"],
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
        raise HostError(f"QEMU of guest {spec.name} did not start: {last_words(log, places.log)}")
    process.write(places.directory / "pid")


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
