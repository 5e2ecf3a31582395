"""Both pairings keep the same contract: `Room` is what a maker must give, the tests are written once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from uuid import uuid4

import pytest
from pydantic import SecretStr

from config.errors import CancelledError, MessageError, PeerLostError, PeerRefusedError, RefusedError, UnreachableError
from config.settings import RedisSettings
from tests.redis_server import RedisServer
from workers.pairing.contract import Pairing, Side, Ticket
from workers.pairing.in_memory import InMemoryPairing, Meeting
from workers.pairing.keys import Keys
from workers.pairing.offer import MAX_OFFER
from workers.pairing.redis import RedisPairing


class Room(Protocol):
    """Where two sides of one attempt meet."""

    def side(self, side: Side, nonce: str = "", migration: str = "") -> Pairing:
        """A pairing that holds the side's claim; whoever held it before is fenced.

        `migration`: of another migration of the same guest, under the same epoch.
        """
        ...

    def cancel(self) -> None: ...

    def end(self, side: Side) -> None:
        """The side's worker says that its mover has ended."""
        ...


class MemoryRoom:
    def __init__(self) -> None:
        self._meeting = Meeting()

    def side(self, side: Side, nonce: str = "", migration: str = "") -> InMemoryPairing:
        return self._meeting.claim(Ticket(migration or "m-1", "web", 7, side, nonce or f"{side}-nonce"))

    def cancel(self) -> None:
        self._meeting.cancel()

    def end(self, side: Side) -> None:
        self._meeting.end(side)


class RedisRoom:
    def __init__(self, server: RedisServer) -> None:
        self.migration = f"m-{uuid4().hex[:8]}"
        self.guest = f"web-{uuid4().hex[:8]}"
        self.settings = RedisSettings(url=SecretStr(server.url), prefix="pairing:")
        self.record = Keys("pairing:").migration(self.migration)
        self.client = server.client()
        self.client.hset(self.record, mapping={"epoch": 7, "state": "setup"})
        self._opened: list[RedisPairing] = []

    def side(self, side: Side, nonce: str = "", migration: str = "") -> RedisPairing:
        nonce = nonce or f"{side}-nonce"
        self.client.hset(self.record, f"claim:{side}", nonce)
        pairing = RedisPairing(
            self.settings, Ticket(migration or self.migration, self.guest, 7, side, nonce), f"host-{side}"
        )
        self._opened.append(pairing)
        return pairing

    def cancel(self) -> None:
        self.client.hset(self.record, mapping={"cancel": 1, "state": "cancelling"})
        self.client.xadd(Keys("pairing:").events(self.migration), {"event": "cancelling"})

    def end(self, side: Side) -> None:
        self.client.hset(self.record, f"outcome:{side}", "failed")
        self.client.xadd(Keys("pairing:").events(self.migration), {"event": "outcome"})

    def close(self) -> None:
        for pairing in self._opened:
            pairing.close()
        self.client.close()


@pytest.fixture(params=["in_memory", "redis"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    if request.param == "in_memory":
        yield MemoryRoom()
        return
    room = RedisRoom(request.getfixturevalue("redis_server"))
    try:
        yield room
    finally:
        room.close()


def test_each_side_receives_the_other_sides_offer(room: Room) -> None:
    source, destination = room.side(Side.SOURCE), room.side(Side.DESTINATION)
    source.publish(b"from source \x00\xff")
    destination.publish(b"from destination")
    assert destination.await_offer(5) == b"from source \x00\xff"
    assert source.await_offer(5) == b"from destination"


def test_a_side_that_waits_first_is_woken(room: Room) -> None:
    source, destination = room.side(Side.SOURCE), room.side(Side.DESTINATION)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(source.await_offer, 30)
        destination.publish(b"late")
        assert waiting.result(20) == b"late"


def test_a_refusal_ends_the_wait_and_carries_its_reason(room: Room) -> None:
    source, destination = room.side(Side.SOURCE), room.side(Side.DESTINATION)
    destination.refuse("memory-lock", "beta may lock 64 KiB.")
    with pytest.raises(PeerRefusedError, match="beta may lock 64 KiB") as caught:
        source.await_offer(5)
    assert caught.value.reason == "memory-lock"


def test_nobody_there_ends_in_time_and_says_who_is_missing(room: Room) -> None:
    source = room.side(Side.SOURCE)
    with pytest.raises(UnreachableError, match="destination"):
        source.await_offer(0.05)


def test_cancelling_ends_the_wait(room: Room) -> None:
    source = room.side(Side.SOURCE)
    timer = threading.Timer(0.05, room.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        source.await_offer(30)
    timer.join()


def test_a_mover_that_ended_ends_the_wait_for_its_offer(room: Room) -> None:
    source, destination = room.side(Side.SOURCE), room.side(Side.DESTINATION)
    timer = threading.Timer(0.05, room.end, [Side.DESTINATION])
    timer.start()
    with pytest.raises(PeerLostError, match="The destination's mover ended before the sides met"):
        source.await_offer(30)
    timer.join()
    room.end(Side.SOURCE)
    destination.publish(b"too late for either")
    with pytest.raises(PeerLostError):
        source.await_offer(5)
    with pytest.raises(PeerLostError):
        destination.await_offer(5)


def test_whoever_lost_the_claim_can_neither_offer_nor_wait(room: Room) -> None:
    before = room.side(Side.SOURCE, "one")
    before.publish(b"mine")
    after = room.side(Side.SOURCE, "two")
    with pytest.raises(RefusedError) as caught:
        before.publish(b"mine again")
    assert caught.value.reason == "fenced"
    with pytest.raises(RefusedError):
        before.await_offer(5)
    after.publish(b"new")
    assert room.side(Side.DESTINATION).await_offer(5) == b"new"


def test_an_offer_of_a_former_holder_is_not_taken(room: Room) -> None:
    room.side(Side.SOURCE, "one").publish(b"old")
    room.side(Side.SOURCE, "two")
    with pytest.raises(UnreachableError):
        room.side(Side.DESTINATION).await_offer(0.05)


def test_an_offer_beyond_64_kib_is_not_published(room: Room) -> None:
    source = room.side(Side.SOURCE)
    with pytest.raises(MessageError):
        source.publish(bytes(MAX_OFFER + 1))


def test_facts_are_seen_by_both_and_repeating_one_changes_nothing(room: Room) -> None:
    source, destination = room.side(Side.SOURCE), room.side(Side.DESTINATION)
    assert source.facts() == frozenset()
    source.tell("given", 7)
    source.tell("given", 7)
    destination.tell("taken", 7)
    assert source.facts() == destination.facts() == {(7, "given"), (7, "taken")}


def test_facts_of_another_migration_under_the_same_epoch_are_none_of_ours(room: Room) -> None:
    """A Redis that forgot its epochs hands one out twice; an old GIVEN must not make a new copy run."""
    ours, other = room.side(Side.DESTINATION), room.side(Side.SOURCE, migration="m-before")
    other.tell("given", 7)
    assert ours.facts() == frozenset()
    other.tell("taken-back", 8)
    assert ours.facts() == {(8, "taken-back")}, "which voids every attempt before it"
