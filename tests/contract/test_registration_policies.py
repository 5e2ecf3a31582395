"""Every registration policy over every transport: rounds of a guest that keeps writing arrive whole.

The real sending and serving sides, the real digests; only the guest is a random generator. Between the sides and their
endpoints sits a `Watched`, which sees what is registered where at every instant.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import MessageError, PeerLostError
from tests.contract.transport_makers import MAKERS, Maker, Pair
from workers.conversation import Conversation
from workers.digests import PageDigests, differing
from workers.protocol import Message, MessageType
from workers.ranges import EMPTY, PAGE_SIZE, RangeTable
from workers.registration.choose import Choice
from workers.registration.policies import make_policy
from workers.registration.registrar import GRANULE, Registrar
from workers.rounds.incoming import Incoming
from workers.rounds.pacing import Pacer
from workers.rounds.transfer import Transfer
from workers.rounds.zero_pages import ZeroPages
from workers.transports.contract import Endpoint, RemoteRegion, Writes

CHUNK = 64 << 10
#: The least: eighths of one granule.
BUDGET = 8 * GRANULE
#: As the Choice names them; a window of 0 where there is none.
POLICIES = {"pin-all": 0, "dynamic": 0, "windowed": BUDGET}


class Watched:
    """An endpoint whose registrations are counted, and refused beyond `budget` or beneath writes in flight."""

    def __init__(self, endpoint: Endpoint, budget: int) -> None:
        self.kind = endpoint.kind
        self._endpoint = endpoint
        self._budget = budget
        self.open: dict[tuple[int, int], RemoteRegion] = {}
        #: Bytes registered at most at a time; how often each granule was registered.
        self.most = 0
        self.times: Counter[int] = Counter()
        self.registrations = 0
        self._unconfirmed = EMPTY

    @property
    def registered(self) -> RangeTable:
        return RangeTable(list(self.open))

    @property
    def ever(self) -> RangeTable:
        return granules(*self.times)

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        assert not ranges & self.registered, "registered twice"
        self.most = max(self.most, self.registered.size + ranges.size)
        assert not self._budget or self.most <= self._budget, "over the budget"
        fresh = self._endpoint.register(ranges)
        self.open |= {(region.start, region.end): region for region in fresh}
        self.registrations += len(fresh)
        self.times.update(ranges.pages(GRANULE).tolist())
        return fresh

    def deregister(self, regions: list[RemoteRegion]) -> None:
        gone = RangeTable([(region.start, region.end) for region in regions])
        assert not gone & self._unconfirmed, "deregistered beneath a write that may be in flight"
        for region in regions:
            assert self.open.pop((region.start, region.end)) == region, "not what was registered"
        self._endpoint.deregister(regions)

    def post(self, writes: Writes) -> None:
        self._unconfirmed |= RangeTable(np.stack([writes.start, writes.start + writes.length], 1))
        assert not self._unconfirmed - self.registered, "written from memory that is not registered"
        self._endpoint.post(writes)

    def flush(self, timeout: float) -> None:
        self._endpoint.flush(timeout)
        self._unconfirmed = EMPTY

    def offer(self) -> dict[str, Any]:
        return self._endpoint.offer()

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        self._endpoint.connect(peer, timeout)

    def in_flight(self) -> int:
        return self._endpoint.in_flight()

    def send(self, message: bytes) -> None:
        self._endpoint.send(message)

    def receive(self, timeout: float) -> bytes | None:
        return self._endpoint.receive(timeout)

    def abort(self) -> None:
        self._endpoint.abort()

    def close(self) -> None:
        self._endpoint.close()


class Sending:
    """A source that sends rounds to a destination served by a thread."""

    def __init__(self, pair: Pair, policy: str, window: int) -> None:
        self.pair = pair
        self.ram = pair.source_ram
        self.endpoint = Watched(pair.source, window)
        talk = Conversation(self.endpoint, lambda: None)
        self.talk = talk
        #: What it told of itself: bytes registered at the time, and the most until then.
        self.accounted: list[tuple[int, int]] = []
        account = lambda *said: self.accounted.append(said)  # noqa: E731
        self.registrar = Registrar(talk, self.endpoint, self.ram.size, 30, time.monotonic, account)
        self.digests = PageDigests(self.ram.view, self.ram.size)
        self.transfer = Transfer(
            self.endpoint,
            talk,
            make_policy(Choice(policy, window, "", policy, ""), self.registrar, CHUNK),
            ZeroPages(self.ram.view, self.ram.size),
            self.digests,
            pacer=Pacer(0, 0),
            chunk_size=CHUNK,
            timeout=30,
            progress=lambda done, total: None,
        )

    def bulk(self, populated: RangeTable) -> None:
        self.transfer.send_batches(0, "bulk", populated.size, self.transfer.prepare(populated))


class Serving:
    """The destination, as `served` runs it. `ended`: what it served last, once it has."""

    def __init__(self, pair: Pair, window: int) -> None:
        self.endpoint = Watched(pair.destination, window)
        self.ended: Message | None = None


@contextmanager
def served(pair: Pair, digests: PageDigests | None = None, window: int = 0) -> Iterator[Serving]:
    """The destination serves until STATE. Raises what it failed with instead."""
    serving = Serving(pair, window)
    failures: list[BaseException] = []

    def serve() -> None:
        talk = Conversation(serving.endpoint, lambda: None)
        try:
            with Incoming(serving.endpoint, talk, pair.destination_ram, digests, 30) as incoming:
                serving.ended = incoming.serve(lambda: None)
                assert incoming.registered == serving.endpoint.registered.size
                assert incoming.most == serving.endpoint.most
        except BaseException as error:
            failures.append(error)
            pair.destination.abort()  # so that the source does not wait for it

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield serving
    except BaseException:
        pair.destination.abort()
        raise
    finally:
        thread.join(30)
        assert not thread.is_alive()
        if failures and not isinstance(failures[0], PeerLostError):
            raise failures[0]


def fill(pair: Pair, ranges: RangeTable, rng: np.random.Generator) -> None:
    for start, end in ranges:
        pair.source_ram.view[start:end] = rng.integers(1, 255, end - start, dtype=np.uint8).tobytes()


def some_pages(rng: np.random.Generator, count: int, total: int) -> RangeTable:
    return RangeTable.from_pages(rng.choice(total, count, replace=False))


def granules(*numbers: int) -> RangeTable:
    return RangeTable([(number * GRANULE, (number + 1) * GRANULE) for number in numbers])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches even in 4 MiB, so that the window of requests ahead really slides."""
    monkeypatch.setattr("workers.rounds.transfer.BATCH", 4 * CHUNK)


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_rounds_arrive_and_nothing_else_is_written_or_registered(maker: Maker, policy: str) -> None:
    rng, window = np.random.default_rng(5), POLICIES[policy]
    with maker() as pair:
        pages = pair.source_ram.size // PAGE_SIZE
        used = RangeTable([(0, pair.source_ram.size // 2)])
        zero = RangeTable([(GRANULE * 3, GRANULE * 7)])
        fill(pair, used, rng)
        for start, end in zero:
            pair.source_ram.view[start:end] = bytes(end - start)
        sending = Sending(pair, policy, window)
        theirs = PageDigests(pair.destination_ram.view, pair.destination_ram.size)
        with served(pair, theirs, window) as serving:
            sending.bulk(pair.source_ram.populated())
            ever = sending.endpoint.ever
            assert ever == serving.endpoint.ever == used - zero, "zero and untouched memory is not registered"
            assert pair.destination_ram.populated() == used - zero, "nor does it exist at the destination"
            for index in range(1, 6):
                dirty = some_pages(rng, 40, pages)
                fill(pair, dirty, rng)
                sending.transfer.send(index, "dirty", dirty)
            sending.talk.say(MessageType.DIGESTS)
        assert serving.ended
        assert sending.endpoint.registered == serving.endpoint.registered
        assert sending.registrar.registered == sending.registrar.held == sending.endpoint.registered.size
        assert sending.registrar.most == sending.endpoint.most
        assert sending.accounted[-1] == (sending.registrar.registered, sending.registrar.most)
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)
        assert not differing(sending.digests.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)


def test_a_round_that_was_left_out_is_seen_by_the_digests(maker: Maker, policy: str) -> None:
    rng = np.random.default_rng(6)
    with maker() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, rng)
        sending = Sending(pair, policy, POLICIES[policy])
        theirs = PageDigests(pair.destination_ram.view, pair.destination_ram.size)
        with served(pair, theirs):
            sending.bulk(everything)
            forgotten = RangeTable([(8 * PAGE_SIZE, 9 * PAGE_SIZE)])
            fill(pair, forgotten, rng)
            sending.digests.update(forgotten)
            sending.talk.say(MessageType.DIGESTS)
        wrong = differing(sending.digests.rollup(CHUNK), theirs.rollup(CHUNK), CHUNK)
        assert [tuple(chunk) for chunk in wrong] == [(0, CHUNK)]


def test_an_empty_round_is_still_a_round(maker: Maker, policy: str) -> None:
    with maker() as pair:
        sending = Sending(pair, policy, POLICIES[policy])
        with served(pair) as serving:
            sending.bulk(EMPTY)
            sending.transfer.send(1, "final", EMPTY)
            sending.talk.say(MessageType.DIGESTS)
        assert serving.ended
        assert not sending.endpoint.ever


def test_what_is_anticipated_is_registered_before_the_last_round_and_sent_by_it(policy: str) -> None:
    """Pages that nobody had touched when the bulk round came by; some of them still zero."""
    rng = np.random.default_rng(8)
    with MAKERS["stub"]() as pair:
        window = pair.source_ram.size
        sending = Sending(pair, policy, window)
        fill(pair, granules(0, 1, 2), rng)
        with served(pair, window=window) as serving:
            sending.bulk(granules(0, 1, 2))
            fill(pair, granules(8, 9), rng)
            remaining = granules(1, 8, 9, 12)
            sending.transfer.anticipate(remaining)
            assert sending.endpoint.registered == granules(0, 1, 2, 8, 9), "zero pages are not registered"
            before = sending.endpoint.registrations, serving.endpoint.registrations
            fill(pair, granules(1), rng)
            sending.transfer.send(1, "final", remaining)
            sending.talk.say(MessageType.DIGESTS)
        assert (sending.endpoint.registrations, serving.endpoint.registrations) == before
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)


def test_pin_all_registers_before_it_writes_and_the_others_do_not(policy: str) -> None:
    rng = np.random.default_rng(7)
    with MAKERS["stub"]() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, rng)
        sending = Sending(pair, policy, POLICIES[policy])
        with served(pair):
            batches = sending.transfer.prepare(everything)
            assert sending.endpoint.registered == (everything if policy == "pin-all" else EMPTY)
            sending.transfer.send_batches(0, "bulk", everything.size, batches)
            assert sending.endpoint.ever == everything
            sending.talk.say(MessageType.DIGESTS)


def test_pin_all_takes_one_region_for_each_contiguous_range() -> None:
    with MAKERS["stub"]() as pair:
        used = RangeTable([(0, 20 * GRANULE), (30 * GRANULE, 45 * GRANULE)])
        fill(pair, used, np.random.default_rng(8))
        sending = Sending(pair, "pin-all", 0)
        with served(pair) as serving:
            sending.bulk(pair.source_ram.populated())
            assert list(sending.endpoint.open) == list(serving.endpoint.open) == [tuple(found) for found in used]
            sending.talk.say(MessageType.DIGESTS)


# --- the window -------------------------------------------------------------------------------------------------------


def test_a_window_is_used_up_and_never_exceeded_on_either_side(maker: Maker) -> None:
    rng, window = np.random.default_rng(9), 24 * GRANULE
    with maker() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, rng)
        sending = Sending(pair, "windowed", window)
        with served(pair, None, window) as serving:
            sending.bulk(everything)
            for index in range(1, 4):
                scattered = RangeTable.from_pages(np.arange(index, pair.source_ram.size // PAGE_SIZE, 16))
                fill(pair, scattered, rng)
                assert sending.transfer.send(index, "dirty", scattered).sent == scattered.size
            sending.talk.say(MessageType.DIGESTS)
        assert window - 3 * GRANULE <= sending.endpoint.most <= window, "less would leave link time unused"
        assert serving.endpoint.most == sending.endpoint.most
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)


def test_what_fits_is_registered_once() -> None:
    rng = np.random.default_rng(10)
    with MAKERS["stub"]() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, rng)
        sending = Sending(pair, "windowed", pair.source_ram.size)
        with served(pair, None, pair.source_ram.size) as serving:
            sending.bulk(everything)
            registrations = sending.endpoint.registrations
            for index in range(1, 4):
                dirty = some_pages(rng, 200, pair.source_ram.size // PAGE_SIZE)
                fill(pair, dirty, rng)
                sending.transfer.send(index, "dirty", dirty)
            sending.talk.say(MessageType.DIGESTS)
        assert serving.endpoint.registrations == sending.endpoint.registrations == registrations


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_least_recently_used_goes_first(order: list[int]) -> None:
    """One granule a round, a window of eight: what stays registered are the eight that were written last."""
    rng = np.random.default_rng(11)
    with MAKERS["stub"]() as pair:
        sending = Sending(pair, "windowed", BUDGET)
        with served(pair, None, BUDGET) as serving:
            used: list[int] = []
            for index, number in enumerate(order):
                fill(pair, granules(number), rng)
                sending.transfer.send(index, "dirty", granules(number))
                used = [*[other for other in used if other != number], number][-8:]
                assert sending.endpoint.registered == granules(*used)
            sending.talk.say(MessageType.DIGESTS)
        assert serving.endpoint.registered == granules(*used)


def test_a_hot_region_stays_while_the_rest_passes_by() -> None:
    rng, window = np.random.default_rng(12), 16 * GRANULE
    with MAKERS["stub"]() as pair:
        sending = Sending(pair, "windowed", window)
        with served(pair, None, window):
            for index in range(20):
                dirty = granules(0, 8 + 2 * index, 9 + 2 * index)
                fill(pair, dirty, rng)
                sending.transfer.send(index, "dirty", dirty)
            sending.talk.say(MessageType.DIGESTS)
        assert sending.endpoint.times[0] == 1
        assert set(sending.endpoint.times.values()) == {1}


def test_a_part_counts_with_the_whole_of_each_region_that_it_touches() -> None:
    """A page in each of eight regions of two granules is the whole window; what comes next must wait for room."""
    rng, window = np.random.default_rng(15), 16 * GRANULE
    with MAKERS["stub"]() as pair:
        fill(pair, granules(*range(16)), rng)
        sending = Sending(pair, "windowed", window)
        with served(pair, None, window):
            sending.bulk(granules(*range(16)))
            dirty = RangeTable.from_pages(np.array([*range(0, 16, 2), 20, 22]) * (GRANULE // PAGE_SIZE))
            fill(pair, dirty, rng)
            sending.transfer.send(1, "dirty", dirty)
            sending.talk.say(MessageType.DIGESTS)
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)


def test_nothing_that_may_be_in_flight_is_given_up_for_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts too large for the window end the migration, not the registrations beneath its writes."""
    monkeypatch.setattr("workers.registration.windowed._PARTS", 4)
    with MAKERS["stub"]() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, np.random.default_rng(16))
        sending = Sending(pair, "windowed", BUDGET)
        with pytest.raises(AssertionError, match="may still be written to"), served(pair, None, BUDGET):
            sending.bulk(everything)


_ROUNDS = st.lists(st.sets(st.integers(0, 1023), min_size=1, max_size=200), min_size=1, max_size=6)


@given(populated=st.sets(st.integers(0, 63), max_size=64), rounds=_ROUNDS, eighths=st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_any_rounds_through_any_window_arrive(populated: set[int], rounds: list[set[int]], eighths: int) -> None:
    rng, window = np.random.default_rng(13), 8 * eighths * GRANULE
    with MAKERS["stub"]() as pair:
        fill(pair, granules(*populated), rng)
        sending = Sending(pair, "windowed", window)
        with served(pair, None, window) as serving:
            sending.bulk(granules(*populated))
            for index, pages in enumerate(rounds, 1):
                dirty = RangeTable.from_pages(np.array(sorted(pages)))
                fill(pair, dirty, rng)
                sending.transfer.send(index, "dirty", dirty)
            sending.talk.say(MessageType.DIGESTS)
        assert sending.endpoint.registered == serving.endpoint.registered
        assert bytes(pair.source_ram.view) == bytes(pair.destination_ram.view)


def test_a_window_takes_few_requests_where_little_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions are as large as an eighth of the window allows, not one a granule."""
    monkeypatch.setattr("workers.rounds.transfer.BATCH", 64 * GRANULE)
    with MAKERS["stub"]() as pair:
        everything = RangeTable([(0, pair.source_ram.size)])
        fill(pair, everything, np.random.default_rng(14))
        sending = Sending(pair, "windowed", 64 * GRANULE)
        with served(pair, None, 64 * GRANULE):
            sending.bulk(everything)
            sending.talk.say(MessageType.DIGESTS)
        assert sending.endpoint.registrations == 8


def release(pair: Pair, asked: list[RangeTable], released: list[RangeTable]) -> RangeTable:
    """A source that registers and releases as it likes. What is registered then; raises what the destination says."""
    talk = Conversation(pair.source, lambda: None)
    with served(pair) as serving:
        for ranges in asked:
            talk.say(MessageType.REGISTER_REQUEST, blob=ranges.to_bytes())
            talk.expect([MessageType.REGISTER_RESULT], 10)
        for ranges in released:
            talk.say(MessageType.RELEASE, blob=ranges.to_bytes())
        talk.say(MessageType.DIGESTS)
    return serving.endpoint.registered


def test_regions_that_touch_are_released_as_one_range(maker: Maker) -> None:
    with maker() as pair:
        assert release(pair, [granules(0), granules(1), granules(2)], [granules(0, 1)]) == granules(2)


@pytest.mark.parametrize(
    "released",
    [
        [granules(3)],
        [granules(0)],
        [granules(0, 1, 2)],
        [RangeTable([(GRANULE // 2, 2 * GRANULE)])],
        [RangeTable([(0, 2 * GRANULE + PAGE_SIZE)])],
        [granules(0, 1), granules(0, 1)],
    ],
    ids=["never registered", "part of a region", "a region and more", "from its middle", "beyond its end", "twice"],
)
def test_a_release_of_what_is_not_registered_so_is_refused(released: list[RangeTable]) -> None:
    with MAKERS["stub"]() as pair, pytest.raises(MessageError, match="not registered as it says"):
        release(pair, [granules(0, 1)], released)
