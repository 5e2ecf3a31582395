"""Every registration policy over every transport: rounds of a guest that keeps writing arrive whole.

The real sending and serving sides, the real digests; only the guest is a random generator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.contract.transport_makers import MAKERS, Maker, Pair
from workers.conversation import Conversation
from workers.digests import PageDigests, differing
from workers.protocol import Message, MessageType
from workers.ranges import EMPTY, PAGE_SIZE, RangeTable
from workers.registration.dynamic import Dynamic
from workers.registration.pin_all import PinAll
from workers.registration.registrar import GRANULE, Registrar
from workers.rounds.incoming import Incoming
from workers.rounds.pacing import Pacer
from workers.rounds.transfer import Transfer

CHUNK = 64 << 10
POLICIES = [PinAll, Dynamic]


class Sending:
    """A source that sends rounds to a destination served by a thread."""

    def __init__(self, pair: Pair, policy: type[PinAll | Dynamic], *, skip_zero: bool = True) -> None:
        self.pair = pair
        self.ram = pair.source_ram
        talk = Conversation(pair.source, lambda: None)
        self.talk = talk
        self.registrar = Registrar(talk, pair.source, self.ram.size, 30, time.monotonic)
        self.digests = PageDigests(self.ram.view, self.ram.size)
        self.transfer = Transfer(
            pair.source,
            talk,
            policy(self.registrar, CHUNK),
            self.digests,
            skip_zero=skip_zero,
            pacer=Pacer(0, 0),
            chunk_size=CHUNK,
            timeout=30,
            progress=lambda done, total: None,
        )

    def bulk(self, populated: RangeTable) -> None:
        self.transfer.send_batches(0, "bulk", populated.size, self.transfer.prepare(populated))


@contextmanager
def served(pair: Pair, digests: PageDigests | None) -> Iterator[list[Message | BaseException]]:
    """The destination serves until STATE; what ended it is in the list afterwards."""
    ended: list[Message | BaseException] = []

    def serve() -> None:
        talk = Conversation(pair.destination, lambda: None)
        try:
            with Incoming(pair.destination, talk, pair.destination_ram, digests, 30) as incoming:
                ended.append(incoming.serve(lambda: None))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ended
    finally:
        thread.join(30)
        assert not thread.is_alive()


def fill(pair: Pair, ranges: RangeTable, rng: np.random.Generator) -> None:
    for start, end in ranges:
        pair.source_ram.view[start:end] = rng.integers(1, 255, end - start, dtype=np.uint8).tobytes()


def some_pages(rng: np.random.Generator, count: int, total: int) -> RangeTable:
    return RangeTable.from_pages(rng.choice(total, count, replace=False))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches even in 4 MiB, so that the window of requests ahead really slides."""
    monkeypatch.setattr("workers.rounds.transfer.BATCH", 4 * CHUNK)


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.mark.parametrize("policy", POLICIES)
def test_all_rounds_arrive_and_nothing_else_is_written_or_registered(maker: Maker, policy: type[PinAll]) -> None:
    rng = np.random.default_rng(5)
    with maker() as pair:
        pages = pair.source_ram.size // PAGE_SIZE
        used = RangeTable([(0, pair.source_ram.size // 2)])
        zero = RangeTable([(GRANULE * 3, GRANULE * 7)])
        fill(pair, used, rng)
        for start, end in zero:
            pair.source_ram.view[start:end] = bytes(end - start)
        sending = Sending(pair, policy)
        theirs = PageDigests(pair.destination_ram.view, pair.destination_ram.size)
        with served(pair, theirs) as ended:
            sending.bulk(pair.source_ram.populated())
            assert sending.registrar.registered == used - zero, "zero and untouched memory is not registered"
            assert pair.destination_ram.populated() == used - zero, "nor does it exist at the destination"
            for index in range(1, 6):
                dirty = some_pages(rng, 40, pages)
                fill(pair, dirty, rng)
                sending.transfer.send(index, "dirty", dirty)
            sending.talk.say(MessageType.STATE, {"state_bytes": 0})
        assert isinstance(ended[0], Message)
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)
        assert not differing(sending.digests.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_that_was_left_out_is_seen_by_the_digests(maker: Maker, policy: type[PinAll]) -> None:
    rng = np.random.default_rng(6)
    with maker() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, rng)
        sending = Sending(pair, policy)
        theirs = PageDigests(pair.destination_ram.view, pair.destination_ram.size)
        with served(pair, theirs):
            sending.bulk(everything)
            forgotten = RangeTable([(8 * PAGE_SIZE, 9 * PAGE_SIZE)])
            fill(pair, forgotten, rng)
            sending.digests.update(forgotten)
            sending.talk.say(MessageType.STATE, {"state_bytes": 0})
        wrong = differing(sending.digests.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)
        assert [tuple(chunk) for chunk in wrong] == [(0, CHUNK)]


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_round_is_still_a_round(maker: Maker, policy: type[PinAll]) -> None:
    with maker() as pair:
        sending = Sending(pair, policy)
        with served(pair, None) as ended:
            sending.bulk(EMPTY)
            sending.transfer.send(1, "final", EMPTY)
            sending.talk.say(MessageType.STATE, {"state_bytes": 0})
        assert isinstance(ended[0], Message)
        assert not sending.registrar.registered


def test_pin_all_registers_before_it_writes_and_dynamic_does_not() -> None:
    rng = np.random.default_rng(7)
    for policy, early in ((PinAll, True), (Dynamic, False)):
        with MAKERS["stub"]() as pair:
            everything = RangeTable([(0, pair.source_ram.size)])
            fill(pair, everything, rng)
            sending = Sending(pair, policy)
            with served(pair, None):
                batches = sending.transfer.prepare(everything)
                assert (sending.registrar.registered == everything) is early
                sending.transfer.send_batches(0, "bulk", everything.size, batches)
                assert sending.registrar.registered == everything
                sending.talk.say(MessageType.STATE, {"state_bytes": 0})
