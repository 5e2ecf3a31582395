"""Pairing over Redis: the record is the truth, its stream of events only wakes whoever waits.

Redis may be away or forget everything while two movers look for each other. Both are ridden out until the deadline:
a record that is gone comes back with the next heartbeat of the host that holds the attempt, and an offer that was
lost with it is published again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from config.errors import CancelledError, MessageError, PeerError, PeerRefusedError, RefusedError, UnreachableError
from config.redis import coordination_client, reaching_redis
from config.settings import RedisSettings
from workers.pairing.contract import Ticket, concerning, gone
from workers.pairing.events import Events
from workers.pairing.keys import Keys
from workers.pairing.offer import MAX_OFFER

#: Seconds between two tries while Redis is away.
PAUSE = 0.3
#: Seconds for which an offer is offered to a Redis that is away: as long as a worker takes to be restarted.
PATIENCE = 60.0

#: Characters of a refusal's sentence that are kept.
_SENTENCE = 1000


class RedisPairing:
    """One side's pairing (see the contract), with a connection of its own. `host` is where this side is."""

    def __init__(self, settings: RedisSettings, ticket: Ticket, host: str) -> None:
        keys = Keys(settings.prefix)
        client = coordination_client(settings, "droveway-pairing")
        self._settings = settings
        self._client = client
        self._ticket = ticket
        self._host = host
        self._record = keys.migration(ticket.migration)
        self._events_key = keys.events(ticket.migration)
        self._events = Events(client, self._events_key)
        self._handover = keys.handover(ticket.guest)
        self._publish = client.register_script(_script("publish"))
        self._tell = client.register_script(_script("tell"))
        self._offer: bytes | None = None

    def publish(self, offer: bytes) -> None:
        """See the contract; also UnreachableError after a minute without Redis."""
        if len(offer) > MAX_OFFER:
            raise MessageError(f"an offer of {len(offer)} bytes is larger than {MAX_OFFER}; it was not published.")
        self._say("offer", offer)
        self._offer = offer

    def refuse(self, reason: str, message: str) -> None:
        """See the contract; also UnreachableError after a minute without Redis."""
        self._say("refusal", json.dumps({"reason": reason[:100], "message": message[:_SENTENCE]}).encode())

    def await_offer(self, timeout: float) -> bytes:
        """See the contract."""
        deadline = time.monotonic() + timeout
        trouble = "it has not answered yet"
        while True:
            try:
                found = self._look()
                if found is not None:
                    return found
                trouble = "it has not answered yet"
                with reaching_redis(self._settings):
                    self._events.wait(deadline - time.monotonic())
            except UnreachableError as error:
                trouble = str(error)
                time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"The {self._ticket.side.peer} made no offer within {timeout:g} s ({trouble});"
                    " look at the worker's log on that host."
                )

    def tell(self, fact: str, epoch: int) -> None:
        """See the contract."""
        with reaching_redis(self._settings):
            args: list[str | int] = [epoch, fact, self._host, self._ticket.migration]
            self._tell(keys=[self._handover, self._record, self._events_key], args=args)

    def facts(self) -> frozenset[tuple[int, str]]:
        """See the contract."""
        with reaching_redis(self._settings):
            told = cast("dict[bytes, bytes]", self._client.hgetall(self._handover))
        return concerning(self._ticket, (_fact(name) for name in told))

    def close(self) -> None:
        """See the contract."""
        self._client.close()

    def _say(self, what: str, text: bytes) -> None:
        """Write under the claim, again until Redis took it or a minute is over."""
        ticket = self._ticket
        args: list[str | int | bytes] = [ticket.side, ticket.nonce, ticket.epoch, what, text]

        def once() -> str:
            with reaching_redis(self._settings):
                return _text(self._publish(keys=[self._record, self._events_key], args=args))

        answer = _patiently(once, self._ticket)
        if answer == "FENCED":
            raise RefusedError(f"{ticket.migration} is no longer this host's to carry out; nothing to do.", "fenced")
        if answer == "ENDED":
            raise CancelledError(f"{ticket.migration} ended before its sides met; see `droveway show`.")

    def _look(self) -> bytes | None:
        """The peer's offer if it is there; whatever makes waiting pointless is raised."""
        with reaching_redis(self._settings):
            fields = self._client.hmget(self._record, _Seen.fields(self._ticket))
            seen = _Seen(*cast("list[bytes | None]", fields))
        if seen.state is None or seen.epoch is None:
            raise UnreachableError("Redis lost the record; a worker restores it with its next heartbeat")
        seen.check(self._ticket)
        if seen.mine is None and self._offer is not None:
            self._say("offer", self._offer)
        return seen.offer()


@dataclass(frozen=True, slots=True)
class _Seen:
    """The record as one side reads it while it waits for the other."""

    state: bytes | None
    epoch: bytes | None
    cancel: bytes | None
    claim: bytes | None
    peer_claim: bytes | None
    peer_offer: bytes | None
    peer_offer_nonce: bytes | None
    peer_refusal: bytes | None
    peer_refusal_nonce: bytes | None
    peer_outcome: bytes | None
    message: bytes | None
    mine: bytes | None

    @staticmethod
    def fields(ticket: Ticket) -> list[str]:
        mine, peer = ticket.side, ticket.side.peer
        return [
            "state",
            "epoch",
            "cancel",
            f"claim:{mine}",
            f"claim:{peer}",
            f"offer:{peer}",
            f"offer-nonce:{peer}",
            f"refusal:{peer}",
            f"refusal-nonce:{peer}",
            f"outcome:{peer}",
            "message",
            f"offer:{mine}",
        ]

    def check(self, ticket: Ticket) -> None:
        """Raise what makes waiting pointless."""
        if _text(self.epoch) != str(ticket.epoch) or _text(self.claim) not in ("", ticket.nonce):
            raise RefusedError(f"{ticket.migration} is no longer this host's to carry out; nothing to do.", "fenced")
        if self.cancel is not None or self.state in (b"cancelled", b"cancelling"):
            raise CancelledError("The migration was cancelled before its sides met; the guest goes on at the source.")
        if self.peer_refusal is not None and self.peer_refusal_nonce == self.peer_claim:
            refusal = json.loads(self.peer_refusal)
            raise PeerRefusedError(refusal["message"], refusal["reason"])
        if self.state in (b"failed", b"completed"):
            raise PeerError(f"The migration has ended already: {_text(self.message) or _text(self.state)}")
        if self.peer_outcome is not None:
            raise gone(ticket)

    def offer(self) -> bytes | None:
        """The peer's offer, if the holder of the peer's claim made it."""
        return self.peer_offer if self.peer_offer_nonce == self.peer_claim else None


def _patiently(once: Callable[[], str], ticket: Ticket) -> str:
    """Repeat `once` until Redis is there and has the record; its answer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = once()
            trouble = UnreachableError(
                f"Redis has no record of {ticket.migration}: it was lost, and no worker restored it within"
                f" {PATIENCE:g} s; submit the migration again."
            )
        except UnreachableError as error:
            answer, trouble = "GONE", error
        if answer != "GONE":
            return answer
        if time.monotonic() >= deadline:
            raise trouble
        time.sleep(PAUSE)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _fact(name: bytes) -> tuple[int, str, str]:
    epoch, fact, migration = name.decode().split(".", 2)
    return int(epoch), fact, migration


def _script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text()
