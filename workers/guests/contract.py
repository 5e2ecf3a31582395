"""What the stages may ask of a guest, running or incoming, whatever it is.

The words are QEMU's (QMP): `stop` pauses, `cont` resumes, an incoming guest is started paused and empty and waits for
its device state. A guest is a process in a session of its own; it outlives every worker that touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeVar

from config.errors import HostError
from workers.guests.blocker import Blocker
from workers.ram import BlockFile, RamBlock


class RunState(StrEnum):
    """QEMU's run states, as far as they matter here."""

    INMIGRATE = "inmigrate"  # incoming: paused, no device state loaded yet
    PAUSED = "paused"
    RUNNING = "running"


#: Carries a piece of device state, or of an answer to it, to the other side; callable from any thread. b"": the last.
Send = Callable[[bytes], None]
_T = TypeVar("_T")


class OutgoingState(Protocol):
    """Device state on its way out of a guest."""

    def prepare(self) -> None:
        """Begin to send what can go while the guest runs; the guest may pause by itself at the end of that."""
        ...

    def prepared(self) -> bool:
        """Whether the guest's `stop`, which waits for this, is short now. Raises HostError if it failed."""
        ...

    def save(self) -> None:
        """Send what is left of the paused guest's state. Returns when the guest has begun to."""
        ...

    def answer(self, piece: bytes) -> None:
        """Hand over what the incoming guest's process says back."""
        ...

    def completed(self) -> bool:
        """Whether the guest has heard (by `answer`) that the other one has it all. Raises HostError if it failed."""
        ...


class IncomingState(Protocol):
    """Device state on its way into a guest."""

    def feed(self, piece: bytes) -> None:
        """Hand over one piece. Raises HostError when the guest takes no more."""
        ...

    def loaded(self) -> bool:
        """Whether the guest, still paused, has all of it. Raises HostError when it does not fit."""
        ...


class Guest(Protocol):
    """A handle on one guest of this host. Every call raises HostError when the guest's process is gone."""

    kind: ClassVar[str]
    #: Whether the kernel writes this guest's RAM too, on behalf of its process (any guest that reads files into it).
    kernel_writes: ClassVar[bool]
    name: str

    @property
    def pid(self) -> int:
        """The process whose page tables hold the guest's RAM."""
        ...

    @property
    def not_from_outside(self) -> str | None:
        """Why its RAM cannot be moved from outside of its process; None when it can."""
        ...

    @property
    def not_by_itself(self) -> str | None:
        """Why it cannot move its RAM itself (workers/qemu_engine); None when it can."""
        ...

    def blocks(self) -> list[RamBlock]:
        """Its RAM blocks in ram_addr order, whatever holds them."""
        ...

    def block_files(self) -> list[BlockFile]:
        """The blocks and the files behind them. Raises HostError also when it cannot be moved from outside."""
        ...

    def status(self) -> RunState:
        """Whether it runs."""
        ...

    def blockers(self, *, hold: bool = False) -> list[Blocker]:
        """All that keeps it from leaving this host, looked for anew; the guest is not touched.

        `hold`: what a mover needs to itself is kept for what follows, until `close`; else it is only tried.
        """
        ...

    @property
    def stopped_here(self) -> bool:
        """Whether this handle paused the guest, or began to, and has not resumed it; others may pause it as well."""
        ...

    def stop(self) -> None:
        """Pause: when this returns, no guest instruction writes memory until `cont`. Harmless when already paused."""
        ...

    def cont(self) -> None:
        """Resume. Harmless when already running."""
        ...

    def protect(self, protecting: Callable[[], _T]) -> _T:
        """What `protecting` returns, which protects pages of the running guest.

        Before this returns, every write that page tables cannot see (block I/O by DMA) and that was under way landed.
        """
        ...

    @property
    def drained_by(self) -> str:
        """The QMP command by which `protect` waits for block I/O; empty where it has none, or was not called yet."""
        ...

    def felt_gap(self) -> float | None:
        """Seconds for which it did not run during its last move, by its own clock; None where it cannot say."""
        ...

    def outgoing_state(self, send: Send) -> AbstractContextManager[OutgoingState]:
        """Make ready to hand device state over; the guest runs on. `stop`, then `save`, within the context."""
        ...

    def incoming_state(self, send: Send) -> AbstractContextManager[IncomingState]:
        """Make an incoming guest ready for its device state; `send` carries what its process answers."""
        ...

    def announce(self) -> None:
        """Tell the network that the guest, which runs, is here; no-op without one."""
        ...

    def userfaultfd(self) -> int:
        """A userfaultfd made inside the guest's process (O_NONBLOCK, UFFD_USER_MODE_ONLY), as a descriptor of ours.

        When the last descriptor closes, the kernel ends all tracking: nothing of it outlives the worker.
        """
        ...

    def description(self) -> dict[str, Any]:
        """What a destination needs to start the incoming twin, as JSON: kind, name, RAM blocks, shape."""
        ...

    def close(self) -> None:
        """Let go of what this handle holds on to (a connection); it can be used again. Harmless when repeated."""
        ...

    def quit(self) -> None:
        """End the guest for good and remove its RAM file, socket and directory. Harmless when already gone."""
        ...


def require_running(guest: Guest) -> None:
    """Raise HostError unless it runs: what somebody paused would run at the destination, or already does elsewhere."""
    if (found := guest.status()) is not RunState.RUNNING:
        raise HostError(
            f"guest {guest.name} is {found}, not running: somebody paused it, or migrated it away by its monitor, or "
            "an earlier migration holds it (`droveway reconcile`); it is left as it is"
        )
