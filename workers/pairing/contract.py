"""What the two movers of a migration may say to each other before they are connected, and beside the connection.

Offers pair the two sides. Facts are the handover's second way (the first is in-band): each is true for ever once told,
belongs to (guest, epoch, migration), and telling it again is harmless. Redis may lose both at any time: no guest's
safety rests on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from config.errors import PeerLostError


class Side(StrEnum):
    """Which end of the migration."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def peer(self) -> Side:
        """The other end."""
        return Side.DESTINATION if self is Side.SOURCE else Side.SOURCE


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which attempt this is: everything said in it is bound to these."""

    migration: str
    guest: str
    epoch: int
    side: Side
    #: Random, chosen at the claim; the record accepts an offer only from the claim's holder.
    nonce: str


#: What voids every earlier attempt on a guest, whichever migration it was told in.
TAKEN_BACK = "taken-back"


def concerning(ticket: Ticket, told: Iterable[tuple[int, str, str]]) -> frozenset[tuple[int, str]]:
    """Of (epoch, fact, migration) triples about a guest, those that count for this attempt, as (epoch, fact).

    A Redis that forgot its epochs may hand one out twice: what another migration did under it is none of ours.
    """
    return frozenset(
        (epoch, fact) for epoch, fact, migration in told if migration == ticket.migration or fact == TAKEN_BACK
    )


def gone(ticket: Ticket) -> PeerLostError:
    """Why nobody waits for an offer any more that no mover is left to make."""
    peer = ticket.side.peer
    return PeerLostError(f"The {peer}'s mover ended before the sides met; look at the worker's log on that host.")


class Pairing(Protocol):
    """One side's view of the pairing of one attempt."""

    def publish(self, offer: bytes) -> None:
        """Put my offer (≤ 64 KiB) where the peer looks. Raises RefusedError (`fenced`): the claim is not mine."""
        ...

    def refuse(self, reason: str, message: str) -> None:
        """Tell the peer instead that this side cannot take part, so that it need not wait."""
        ...

    def await_offer(self, timeout: float) -> bytes:
        """The peer's offer, within `timeout` seconds.

        Raises PeerRefusedError (carries the peer's reason), PeerLostError (its mover ended), CancelledError (the record
        was cancelled), UnreachableError (nobody offered in time, or Redis is away for all of it).
        """
        ...

    def tell(self, fact: str, epoch: int) -> None:
        """Write a handover fact. Raises UnreachableError."""
        ...

    def facts(self) -> frozenset[tuple[int, str]]:
        """The facts told about this guest that concern this attempt, as (epoch, fact). Raises UnreachableError."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...
