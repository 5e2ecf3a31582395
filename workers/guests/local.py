"""The guests that live on this host, found from its state directory alone: nothing else remembers them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from config.errors import HostError, RefusedError, RequestError
from workers.guests.blocker import Blocker
from workers.guests.contract import Guest, RunState
from workers.guests.memory import DEFAULT_RAM_DIR, MemoryGuest, incoming_memory_guest, start_memory_guest
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.qemu.adoption import Stranger, adopt_qemu_guest
from workers.guests.qemu.guest import QemuGuest, incoming_qemu_guest, start_qemu_guest
from workers.guests.qemu.guest import obstacles as qemu_obstacles
from workers.guests.qemu.spec import QemuGuestSpec
from workers.handover.journal import driving, last_line

_OPEN: Mapping[str, Callable[[Path], MemoryGuest | QemuGuest]] = {
    MemoryGuest.kind: MemoryGuest,
    QemuGuest.kind: QemuGuest,
}
_INCOMING: Mapping[str, Callable[[Path, Path, dict[str, Any]], Guest]] = {
    MemoryGuest.kind: incoming_memory_guest,
    QemuGuest.kind: incoming_qemu_guest,
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LocalGuest:
    """One line of the list of guests.

    Shapes: `memory` bytes. A guest that is dead or does not answer has no status, and `problem` says which it is;
    `LocalGuests.stop` cleans it away. Nor has one that was not asked.
    """

    name: str
    kind: str
    memory: int | None = None
    pid: int | None = None
    status: RunState | None = None
    problem: str = ""
    anti_affinity: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    #: Of a virtual machine; "": not one that can be compared.
    cpu_model: str = ""


class LocalGuests:
    """Starts, finds and ends the guests of one host."""

    def __init__(self, state_dir: Path, ram_dir: Path = DEFAULT_RAM_DIR) -> None:
        self._state_dir = state_dir.resolve()
        self._ram_dir = ram_dir

    def start(self, spec: MemoryGuestSpec) -> MemoryGuest:
        """Start a memory guest. Raises as `start_memory_guest`, and RefusedError (`unresolved`, `busy`)."""
        return self._born(spec.name, lambda: start_memory_guest(self._state_dir, self._ram_dir, spec))

    def start_qemu(self, spec: QemuGuestSpec) -> QemuGuest:
        """Start a virtual machine. Raises as `start_qemu_guest`, and RefusedError (`unresolved`, `busy`)."""
        return self._born(spec.name, lambda: start_qemu_guest(self._state_dir, self._ram_dir, spec))

    def adopt(self, name: str, stranger: Stranger) -> QemuGuest:
        """Take over a QEMU that somebody else started. Raises as `adopt_qemu_guest`, and RefusedError as `start`."""
        ours = next((guest.name for guest in self.list(ask=False) if guest.pid == stranger.pid), None)
        if ours is not None:
            raise RefusedError(f"process {stranger.pid} is the guest {ours} already", "guest-exists")
        return self._born(name, lambda: adopt_qemu_guest(self._state_dir, self._ram_dir, name, stranger))

    def _born(self, name: str, start: Callable[[], _T]) -> _T:
        """A journal that ends with a guest of this name that left must say that this is another, or it may not run."""
        if last_line(self._state_dir, name) is None:
            return start()
        with driving(self._state_dir, name) as journal:
            if not self.holds(name):
                journal.bear()
            return start()

    def incoming(self, description: dict[str, Any]) -> Guest:
        """Start the incoming twin of a guest, of whatever kind this host can run.

        Raises RequestError when the kind is unknown or the description is not one of that kind.
        """
        kind = description.get("kind")
        make = _INCOMING.get(kind) if isinstance(kind, str) else None
        if make is None:
            raise RequestError(f"this host runs guests of kind {', '.join(_INCOMING)}, not {kind!r}")
        return make(self._state_dir, self._ram_dir, description)

    def obstacles(self, description: dict[str, Any]) -> list[Blocker]:
        """What keeps the guest described from coming to this host; nothing of it is started."""
        return qemu_obstacles(description) if description.get("kind") == QemuGuest.kind else []

    def open(self, name: str) -> Guest:
        """The guest of this name, alive or dead. Raises RefusedError (`unknown-guest`) and HostError (unreadable)."""
        directory = self._directory(name)
        return _OPEN[_kind(directory)](directory)

    def holds(self, name: str) -> bool:
        """Whether this host has a guest of this name, alive, dead or half made."""
        return (self._state_dir / "guests" / name).is_dir()

    def half_made(self, name: str) -> bool:
        """Whether a start was cut off before it wrote what it starts; `stop` removes what there is."""
        return self.holds(name) and not (self._state_dir / "guests" / name / "guest.json").exists()

    def list(self, *, ask: bool = True) -> list[LocalGuest]:
        """Every guest of this host, by name, the dead ones too.

        With `ask` off nobody is asked for a status: one whose only monitor a mover holds would be waited for.
        """
        try:
            found = sorted(each for each in (self._state_dir / "guests").iterdir() if each.is_dir())
        except FileNotFoundError:
            return []
        return [_entry(directory, ask=ask) for directory in found]

    def stop(self, name: str) -> None:
        """End a guest for good, or clean up after a dead one. Raises RefusedError (`unknown-guest`)."""
        try:
            self.open(name).quit()
        except HostError:
            if not self.half_made(name):
                raise
            shutil.rmtree(self._directory(name))

    def _directory(self, name: str) -> Path:
        directory = self._state_dir / "guests" / name
        if not name or Path(name).name != name or not directory.is_dir():
            raise RefusedError(
                f"there is no guest named {name!r} on this host: see `droveway guest list`", "unknown-guest"
            )
        return directory


def _kind(directory: Path) -> str:
    try:
        kind = json.loads((directory / "guest.json").read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{directory} does not describe a guest ({error}): `droveway guest stop` cleans it") from None
    if kind not in _OPEN:
        raise HostError(f"{directory} is of kind {kind!r}, this release knows {', '.join(_OPEN)}: use its own release")
    return str(kind)


def _entry(directory: Path, *, ask: bool) -> LocalGuest:
    name, kind = directory.name, "unknown"
    try:
        kind = _kind(directory)
        guest = _OPEN[kind](directory)
        memory, pid = sum(block.size for block in guest.blocks()), guest.pid
    except HostError as error:
        return LocalGuest(name, kind, problem=str(error))
    model = guest.spec.cpu_model if isinstance(guest, QemuGuest) else ""
    apart, needs = guest.spec.anti_affinity, guest.spec.needs
    found = LocalGuest(name, kind, memory, pid, anti_affinity=apart, needs=needs, cpu_model=model)
    try:
        return replace(found, status=guest.status() if ask else None)
    except HostError as error:  # it lives, and holds its memory, though it does not answer
        return replace(found, problem=str(error))
