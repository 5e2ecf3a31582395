"""What every registration policy does on the source: turn ranges to be sent into writes that may be posted.

Registering a range means: the destination populates and locks it and answers with a remote key, the source locks its
own side. A policy decides *when* that happens. Untouched and zero memory is never handed to a policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

from workers.ranges import RangeTable
from workers.transports.contract import RemoteRegion, Writes


class Registrar(Protocol):
    """Registers on both sides. The source's end of the REGISTER_REQUEST / REGISTER_RESULT exchange."""

    def request(self, ranges: RangeTable) -> None:
        """Ask the destination to register these ranges; returns at once, the destination starts right away."""
        ...

    def lock(self, ranges: RangeTable) -> None:
        """Register the source's own side of these ranges, now."""
        ...

    def result(self) -> list[RemoteRegion]:
        """The answer to the oldest request not yet answered; waits for it."""
        ...


class RegistrationPolicy(Protocol):
    """One policy, for one migration, on the source."""

    kind: ClassVar[str]

    def prepare(self, ranges: RangeTable) -> None:
        """Before the bulk round: `ranges` is all memory that holds data. Costs what it costs; the guest runs."""
        ...

    def writes(self, ranges: RangeTable) -> Iterator[Writes]:
        """Batches of writes that together cover `ranges`, each registered on both sides when it is yielded.

        The caller posts a batch before it asks for the next, so that registration runs while earlier writes do.
        """
        ...

    def registered_bytes(self) -> int:
        """Bytes locked on each side now."""
        ...
