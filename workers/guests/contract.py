"""What the stages may ask of a guest, running or incoming, whatever it is.

The words are QEMU's (QMP): `stop` pauses, `cont` resumes, an incoming guest is started paused and empty and waits for
its device state. A guest is a process in a session of its own; it outlives every worker that touches it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Protocol

from workers.guests.blocker import Blocker
from workers.ram import BlockFile


class RunState(StrEnum):
    """QEMU's run states, as far as they matter here."""

    INMIGRATE = "inmigrate"  # incoming: paused, no device state loaded yet
    PAUSED = "paused"
    RUNNING = "running"


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

    def block_files(self) -> list[BlockFile]:
        """RAM blocks and the files behind them, in ram_addr order."""
        ...

    def status(self) -> RunState:
        """Whether it runs."""
        ...

    def blockers(self) -> list[Blocker]:
        """All that keeps it from leaving this host, looked for anew; the guest is not touched."""
        ...

    def stop(self) -> None:
        """Pause: when this returns, no guest instruction writes memory until `cont`. Harmless when already paused."""
        ...

    def cont(self) -> None:
        """Resume. Harmless when already running."""
        ...

    def drain(self) -> None:
        """Wait for writes to guest memory that page tables cannot see (block I/O by DMA) to land; no-op without any."""
        ...

    def save_state(self) -> bytes:
        """Device state of the paused guest."""
        ...

    def load_state(self, state: bytes) -> None:
        """Give an incoming guest its device state; it stays paused. Raises HostError when the state does not fit."""
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
