"""Pairing without Redis: both sides in one process. The twin of `redis`, held to the same conformance tests."""

from __future__ import annotations

import threading
import time

from config.errors import CancelledError, MessageError, PeerRefusedError, RefusedError, UnreachableError
from workers.pairing.contract import Side, Ticket, concerning, gone
from workers.pairing.offer import MAX_OFFER


class Meeting:
    """What both sides share: the part that the record plays elsewhere."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.claims: dict[Side, tuple[int, str]] = {}
        self.offers: dict[Side, bytes] = {}
        self.refusals: dict[Side, tuple[str, str]] = {}
        self.told: dict[str, set[tuple[int, str, str]]] = {}
        self.cancelled = False
        self.ended: set[Side] = set()

    def claim(self, ticket: Ticket) -> InMemoryPairing:
        """Take a side; whoever held it before is fenced from here on."""
        with self.changed:
            self.claims[ticket.side] = (ticket.epoch, ticket.nonce)
            self.offers.pop(ticket.side, None)
        return InMemoryPairing(self, ticket)

    def cancel(self) -> None:
        """What `droveway cancel` does."""
        with self.changed:
            self.cancelled = True
            self.changed.notify_all()

    def end(self, side: Side) -> None:
        """What a worker does whose mover died."""
        with self.changed:
            self.ended.add(side)
            self.changed.notify_all()


class InMemoryPairing:
    """One side's pairing (see the contract)."""

    def __init__(self, meeting: Meeting, ticket: Ticket) -> None:
        self._meeting = meeting
        self._ticket = ticket

    def publish(self, offer: bytes) -> None:
        """See the contract."""
        if len(offer) > MAX_OFFER:
            raise MessageError(f"an offer of {len(offer)} bytes is larger than {MAX_OFFER}; it was not published.")
        with self._meeting.changed:
            self._fence()
            self._meeting.offers[self._ticket.side] = offer
            self._meeting.changed.notify_all()

    def refuse(self, reason: str, message: str) -> None:
        """See the contract."""
        with self._meeting.changed:
            self._fence()
            self._meeting.refusals[self._ticket.side] = (reason, message)
            self._meeting.changed.notify_all()

    def await_offer(self, timeout: float) -> bytes:
        """See the contract."""
        peer, deadline = self._ticket.side.peer, time.monotonic() + timeout
        with self._meeting.changed:
            while True:
                self._fence()
                if self._meeting.cancelled:
                    raise CancelledError("The migration was cancelled before its sides met.")
                if peer in self._meeting.refusals:
                    reason, message = self._meeting.refusals[peer]
                    raise PeerRefusedError(message, reason)
                if peer in self._meeting.ended:
                    raise gone(self._ticket)
                if peer in self._meeting.offers:
                    return self._meeting.offers[peer]
                left = deadline - time.monotonic()
                if left <= 0:
                    raise UnreachableError(f"The {peer} made no offer within {timeout:g} s.")
                self._meeting.changed.wait(left)

    def tell(self, fact: str, epoch: int) -> None:
        """See the contract."""
        with self._meeting.changed:
            self._meeting.told.setdefault(self._ticket.guest, set()).add((epoch, fact, self._ticket.migration))

    def facts(self) -> frozenset[tuple[int, str]]:
        """See the contract."""
        with self._meeting.changed:
            return concerning(self._ticket, self._meeting.told.get(self._ticket.guest, ()))

    def close(self) -> None:
        """See the contract."""

    def _fence(self) -> None:
        if self._meeting.claims[self._ticket.side] != (self._ticket.epoch, self._ticket.nonce):
            raise RefusedError(f"{self._ticket.migration} is no longer this side's to carry out.", "fenced")
