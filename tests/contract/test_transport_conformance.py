"""What every transport promises, held against each of them; the makers are in transport_makers.py."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from config.errors import (
    DrovewayError,
    HostMemoryError,
    MemoryLockError,
    MessageError,
    PeerError,
    PeerLostError,
    RemoteAccessError,
)
from tests.contract.transport_makers import BLOCKS, LOCKING, MAKERS, MIB, UNLOCKED, Maker, Pair, make_ram
from tests.requirements import missing
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE, RangeTable
from workers.transports.contract import MAX_MESSAGE, RemoteRegion, Writes

EDGE = BLOCKS[0].size
SIZE = sum(block.size for block in BLOCKS)
PATIENCE = 30.0


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture(params=LOCKING)
def locking(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture
def pair(make: Maker) -> Iterator[Pair]:
    with make() as pair:
        yield pair


# --- what the tests are written in ------------------------------------------------------------------------------------


def memory(ram) -> np.ndarray:
    return np.frombuffer(ram.view, np.uint8)


def fill(pair: Pair, seed: int = 7) -> np.ndarray:
    """Different noise in both memories; the destination's as it must stay where nothing is written."""
    random = np.random.default_rng(seed)
    memory(pair.source_ram)[:] = random.integers(0, 256, SIZE, np.uint8)
    memory(pair.destination_ram)[:] = random.integers(0, 256, SIZE, np.uint8)
    return memory(pair.destination_ram).copy()


def register(pair: Pair, ranges: list[tuple[int, int]]) -> list[RemoteRegion]:
    """On both sides, as a registrar does."""
    table = RangeTable(ranges)
    pair.source.register(table)
    return pair.destination.register(table)


def writes(rows: list[tuple[int, int]], *regions: RemoteRegion) -> Writes:
    """Rows of (start, end), each under the region that holds its start."""
    of = [next(region for region in regions if region.start <= start < region.end) for start, _ in rows]
    return Writes(
        np.array([start for start, _ in rows], np.int64),
        np.array([end - start for start, end in rows], np.int64),
        np.array(
            [start - region.start + region.address for (start, _), region in zip(rows, of, strict=True)], np.int64
        ),
        np.array([region.key for region in of], np.uint64),
    )


def deliver(pair: Pair, rows: list[tuple[int, int]], *regions: RemoteRegion) -> None:
    pair.source.post(writes(rows, *regions))
    pair.source.flush(PATIENCE)


def until(happened: Callable[[], bool]) -> None:
    """Wait for it; a test that waits in vain fails by the suite's time-out, not by a race."""
    while not happened():
        time.sleep(0.005)


def fails(call: Callable[[], object], kind: type[DrovewayError]) -> DrovewayError:
    """Call until it raises, since the news of a failure takes its time to arrive."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            call()
        except kind as error:
            return error
        time.sleep(0.005)
    raise AssertionError(f"no {kind.__name__} came")


class Call(threading.Thread):
    """A call that may block, in a thread; `outcome` is what it returned or raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except DrovewayError as error:
            self.outcome = error


def locked_bytes() -> int:
    """Locked or pinned: a transport does one or the other."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("VmLck:", "VmPin:")))


# --- writes -----------------------------------------------------------------------------------------------------------


def scattered_pages() -> list[tuple[int, int]]:
    pages = np.random.default_rng(1).permutation(SIZE // PAGE_SIZE)[:900] * PAGE_SIZE
    return [(int(page), int(page) + PAGE_SIZE) for page in pages]


def odd_rows() -> list[tuple[int, int]]:
    """From one byte to 200 KB, so that long and short rows mix in one batch."""
    random = np.random.default_rng(2)
    edges = np.cumsum(random.choice([1, 13, 700, 4095, 65_535, 65_537, 200_001], 150))
    edges = edges[edges < SIZE]
    return [(int(start), int(end)) for start, end in zip(edges[:-1:2], edges[1::2], strict=False)]


TABLES = {
    "scattered pages": scattered_pages(),
    "odd rows": odd_rows(),
    "1 MiB rows": [(start, min(start + MIB, EDGE)) for start in range(0, EDGE, MIB)],
    "both sides of a block's edge": [(EDGE - PAGE_SIZE, EDGE), (EDGE, EDGE + PAGE_SIZE)],
    "the first and last byte": [(0, 1), (SIZE - 1, SIZE)],
    "more rows than a gathering call takes": [(start, start + 100) for start in range(0, SIZE, 2048)],
    "all of it in one row a block": [(0, EDGE), (EDGE, SIZE)],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_writes_land_exactly_where_they_should_and_nowhere_else(pair: Pair, rows: list[tuple[int, int]]) -> None:
    expected = fill(pair)
    regions = register(pair, [(0, SIZE)])
    for start, end in rows:
        expected[start:end] = memory(pair.source_ram)[start:end]

    deliver(pair, rows, *regions)

    assert np.array_equal(memory(pair.destination_ram), expected)


def test_writes_land_under_the_right_one_of_many_regions(pair: Pair) -> None:
    expected = fill(pair)
    regions = register(pair, [(start, start + 64 * 1024) for start in range(0, SIZE - 65536, 128 * 1024)])
    rows = [(region.start + 4096 * k, region.start + 4096 * (k + 1)) for region in regions for k in (0, 1, 5)]
    for start, end in rows:
        expected[start:end] = memory(pair.source_ram)[start:end]

    deliver(pair, rows, *regions)

    assert np.array_equal(memory(pair.destination_ram), expected)


def test_of_two_writes_to_one_address_the_later_one_stays(pair: Pair) -> None:
    fill(pair)
    regions = register(pair, [(0, SIZE)])
    rows = [*scattered_pages()[:200], (0, 1)]
    for round_ in range(40):
        memory(pair.source_ram)[:] = round_
        # Long rows and short ones take turns: what is fast must not overtake what is slow.
        pair.source.post(writes([(0, EDGE), (EDGE, SIZE)] if round_ % 2 == 0 else rows, *regions))
    pair.source.flush(PATIENCE)

    for start, end in rows:
        assert (memory(pair.destination_ram)[start:end] == 39).all()


def test_what_was_confirmed_is_counted_with_the_time_that_it_took(pair: Pair) -> None:
    regions = register(pair, [(0, MIB)])
    before = time.monotonic()
    deliver(pair, [(0, MIB)], *regions)
    figures = pair.source.figures()
    assert sum(figures.work.counts) >= 1
    assert 0 < figures.work.sum <= (time.monotonic() - before) * sum(figures.work.counts)
    assert 0 < figures.peak <= MIB
    assert not figures.failed
    assert figures.resent in (None, 0)


def test_an_empty_batch_is_no_write(pair: Pair) -> None:
    pair.source.post(writes([]))
    pair.source.flush(PATIENCE)
    assert pair.source.in_flight() == 0


def test_flush_returns_only_when_everything_has_landed(pair: Pair) -> None:
    fill(pair)
    regions = register(pair, [(0, SIZE)])
    pair.hold()
    pair.source.post(writes([(0, MIB)], *regions))
    flush = Call(lambda: pair.source.flush(PATIENCE))
    assert pair.source.in_flight() == MIB
    assert flush.is_alive()

    pair.release()
    flush.join()

    assert flush.outcome is None
    assert pair.source.in_flight() == 0
    assert np.array_equal(memory(pair.destination_ram)[:MIB], memory(pair.source_ram)[:MIB])


def test_flush_gives_up_in_time_on_a_link_that_stands_still(pair: Pair) -> None:
    regions = register(pair, [(0, SIZE)])
    pair.hold()
    pair.source.post(writes([(0, MIB)], *regions))

    with pytest.raises(PeerLostError):
        pair.source.flush(0.05)
    pair.cut()


def test_no_more_is_in_flight_than_allowed_while_the_receiver_is_clogged(make: Maker) -> None:
    limit = 2 * MIB
    with make(in_flight_limit=limit) as pair:
        expected = fill(pair)
        regions = register(pair, [(0, SIZE)])
        rows = [(start, start + PAGE_SIZE * 15) for start in range(0, SIZE - PAGE_SIZE * 15, PAGE_SIZE * 16)]
        for start, end in rows:
            expected[start:end] = memory(pair.source_ram)[start:end]
        pair.hold()
        post = Call(lambda: pair.source.post(writes(rows, *regions)))
        until(lambda: pair.source.in_flight() >= limit // 4)
        for _ in range(20):
            assert pair.source.in_flight() <= limit
            time.sleep(0.005)
        assert post.is_alive()

        pair.release()
        post.join()
        pair.source.flush(PATIENCE)

        assert post.outcome is None
        assert np.array_equal(memory(pair.destination_ram), expected)


# --- writes that are refused ------------------------------------------------------------------------------------------


def forged_key(pair: Pair, region: RemoteRegion) -> Writes:
    row = writes([(region.start, region.start + PAGE_SIZE)], region)
    return Writes(row.start, row.length, row.remote_address, row.key ^ np.uint64(1))


def zero_key(pair: Pair, region: RemoteRegion) -> Writes:
    row = writes([(region.start, region.start + PAGE_SIZE)], region)
    return Writes(row.start, row.length, row.remote_address, row.key * np.uint64(0))


def over_the_end(pair: Pair, region: RemoteRegion) -> Writes:
    return writes([(region.end - PAGE_SIZE, region.end + PAGE_SIZE)], region)


def before_the_start(pair: Pair, region: RemoteRegion) -> Writes:
    row = writes([(region.start, region.start + 2 * PAGE_SIZE)], region)
    return Writes(row.start, row.length, row.remote_address - PAGE_SIZE, row.key)


def one_bad_row_among_good_ones(pair: Pair, region: RemoteRegion) -> Writes:
    good = writes([(region.start + k * 8192, region.start + k * 8192 + 4096) for k in range(8)], region)
    address = good.remote_address.copy()
    address[5] += MIB
    return Writes(good.start, good.length, address, good.key)


def region_that_was_deregistered(pair: Pair, region: RemoteRegion) -> Writes:
    pair.destination.deregister([region])
    return writes([(region.start, region.start + PAGE_SIZE)], region)


REFUSED = [
    forged_key,
    zero_key,
    over_the_end,
    before_the_start,
    one_bad_row_among_good_ones,
    region_that_was_deregistered,
]


@pytest.mark.parametrize("forge", REFUSED)
def test_a_write_outside_of_what_is_registered_changes_nothing_and_ends_the_connection(pair: Pair, forge) -> None:
    expected = fill(pair)
    pair.source.register(RangeTable([(0, SIZE)]))  # what is sent may be sent; where it goes is what is wrong
    region, _ = pair.destination.register(
        RangeTable([(MIB + 256 * 1024, MIB + 512 * 1024), (3 * MIB, 3 * MIB + 65536)])
    )

    with contextlib.suppress(RemoteAccessError):  # news that may come at once, or later
        pair.source.post(forge(pair, region))

    fails(lambda: pair.source.flush(PATIENCE), RemoteAccessError)
    with pytest.raises(RemoteAccessError):
        pair.source.in_flight()
    assert not isinstance(fails(lambda: pair.destination.receive(0.01), PeerError), PeerLostError)
    written = np.flatnonzero(memory(pair.destination_ram) != expected)
    if forge is one_bad_row_among_good_ones:  # the others had every right to land
        written = written[(written < region.start) | (written >= region.end)]
    assert not len(written)
    failed = {"rem-access-err": 1} if pair.source.kind == "verbs" else {}  # a device says how
    assert pair.source.figures().failed == failed


def test_keys_are_never_zero_and_never_given_out_twice(pair: Pair) -> None:
    seen: set[int] = set()
    for _ in range(50):
        regions = pair.destination.register(RangeTable([(0, PAGE_SIZE), (2 * PAGE_SIZE, 3 * PAGE_SIZE)]))
        keys = {region.key for region in regions}
        assert len(keys) == 2
        assert 0 not in keys
        assert not keys & seen
        seen |= keys
        pair.destination.deregister(regions)


def test_regions_come_back_one_a_range_and_in_order(pair: Pair) -> None:
    ranges = [(8192, 16384), (MIB, EDGE - 4096), (EDGE, SIZE)]
    assert [(region.start, region.end) for region in pair.destination.register(RangeTable(ranges))] == ranges


# --- control messages -------------------------------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order_both_ways_at_once(pair: Pair) -> None:
    sizes = [0, 1, 100_000, 3, MAX_MESSAGE, 7]
    messages = [bytes([index]) * size for index, size in enumerate(sizes)]

    def talk(sender, receiver) -> list[bytes | None]:
        for message in messages:
            sender.send(message)
        return [receiver.receive(PATIENCE) for _ in messages]

    there = Call(lambda: talk(pair.source, pair.source))
    back = Call(lambda: talk(pair.destination, pair.destination))
    there.join()
    back.join()

    assert there.outcome == messages
    assert back.outcome == messages


def test_a_message_that_is_too_large_is_refused_and_harms_nothing(pair: Pair) -> None:
    with pytest.raises(ValueError, match="largest"):
        pair.source.send(bytes(MAX_MESSAGE + 1))
    pair.source.send(b"next")
    assert pair.destination.receive(PATIENCE) == b"next"


def test_receive_returns_none_when_nothing_comes(pair: Pair) -> None:
    assert pair.source.receive(0) is None
    assert pair.destination.receive(0.01) is None


def test_messages_pass_while_writes_are_on_their_way(pair: Pair) -> None:
    fill(pair)
    regions = register(pair, [(0, SIZE)])
    for index in range(20):
        pair.source.post(writes([(0, EDGE)], *regions))
        pair.destination.send(index.to_bytes(1, "big"))
        assert pair.source.receive(PATIENCE) == bytes([index])
    pair.source.flush(PATIENCE)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", ["source", "destination"])
def test_the_one_that_stays_learns_that_its_peer_left(pair: Pair, leaver: str) -> None:
    stayer = pair.destination if leaver == "source" else pair.source
    getattr(pair, leaver).close()
    fails(lambda: stayer.receive(0.01), PeerLostError)
    with pytest.raises(PeerLostError):
        stayer.send(b"?")


@pytest.mark.parametrize("leaver", ["source", "destination"])
def test_what_a_peer_said_last_can_be_read_after_it_left(pair: Pair, leaver: str) -> None:
    stayer = pair.destination if leaver == "source" else pair.source
    words = [bytes([index]) * 50_000 for index in range(20)]
    for word in words:
        getattr(pair, leaver).send(word)
    getattr(pair, leaver).close()
    assert [stayer.receive(PATIENCE) for _ in words] == words
    with pytest.raises(PeerLostError):
        stayer.receive(PATIENCE)


def test_last_words_arrive_even_if_the_other_side_was_talking_at_the_time(pair: Pair) -> None:
    words = [bytes([index]) * 200_000 for index in range(20)]

    def leave() -> None:
        for word in words:
            pair.destination.send(word)
        pair.destination.close()

    leaving = Call(leave)
    fails(lambda: [pair.source.send(bytes(100_000)) for _ in range(100)], PeerLostError)
    leaving.join()
    assert [pair.source.receive(PATIENCE) for _ in words] == words


def test_a_broken_link_is_a_lost_peer_for_both(pair: Pair) -> None:
    regions = register(pair, [(0, SIZE)])
    pair.hold()
    pair.source.post(writes([(0, MIB)], *regions))
    flush = Call(lambda: pair.source.flush(PATIENCE))

    pair.cut()
    flush.join()

    assert isinstance(flush.outcome, PeerLostError)
    fails(lambda: pair.destination.receive(0.01), PeerLostError)
    for call in (pair.source.in_flight, lambda: pair.source.post(writes([(0, MIB)], *regions))):
        with pytest.raises(PeerLostError):
            call()


def blocked_in_receive(pair: Pair, regions: list[RemoteRegion]) -> Call:
    return Call(lambda: pair.source.receive(PATIENCE))


def blocked_in_flush(pair: Pair, regions: list[RemoteRegion]) -> Call:
    pair.source.post(writes([(0, MIB)], *regions))
    return Call(lambda: pair.source.flush(PATIENCE))


def blocked_in_post(pair: Pair, regions: list[RemoteRegion]) -> Call:
    call = Call(lambda: [pair.source.post(writes([(0, EDGE)], *regions)) for _ in range(100)])
    until(lambda: pair.source.in_flight() > 0)
    return call


@pytest.mark.parametrize("block", [blocked_in_receive, blocked_in_flush, blocked_in_post])
def test_an_abort_from_another_thread_ends_a_blocked_call(pair: Pair, block) -> None:
    regions = register(pair, [(0, SIZE)])
    pair.hold()
    call = block(pair, regions)

    pair.source.abort()
    call.join()

    assert isinstance(call.outcome, PeerLostError)
    with pytest.raises(PeerLostError):
        pair.source.send(b"?")
    pair.release()
    fails(lambda: pair.destination.receive(0.01), PeerLostError)


def test_closing_twice_is_harmless_and_a_closed_endpoint_says_so(pair: Pair) -> None:
    for endpoint in (pair.source, pair.destination):
        endpoint.close()
        endpoint.close()
        endpoint.abort()
        with pytest.raises(PeerLostError):
            endpoint.receive(0)


@pytest.mark.parametrize("offer", [{}, {"token": 5}, {"token": None, "addresses": "x", "channels": -1}])
def test_a_malformed_offer_is_refused_at_once(make: Maker, offer: dict[str, object]) -> None:
    with make(connected=False) as pair:
        for endpoint in (pair.source, pair.destination):
            with pytest.raises(MessageError):
                endpoint.connect(offer, PATIENCE)


# --- locked memory ----------------------------------------------------------------------------------------------------


def test_registering_locks_memory_and_deregistering_gives_it_back(locking: Maker) -> None:
    with locking() as pair:
        before = locked_bytes()  # a queue pair's own page is locked already
        for endpoint in (pair.source, pair.destination):
            first, second = endpoint.register(RangeTable([(0, MIB), (EDGE - MIB, EDGE + MIB)]))
            assert locked_bytes() - before == 3 * MIB
            endpoint.deregister([first])
            assert locked_bytes() - before == 2 * MIB
            endpoint.deregister([second])
            assert locked_bytes() == before


def test_registering_populates_memory_that_did_not_exist(locking: Maker) -> None:
    with locking() as pair:
        assert not pair.destination_ram.populated()
        pair.destination.register(RangeTable([(MIB, 2 * MIB)]))
        assert pair.destination_ram.populated() == RangeTable([(MIB, 2 * MIB)])


@pytest.mark.parametrize("unlocked", UNLOCKED)
def test_over_tcp_registering_neither_locks_nor_populates_unless_that_was_asked_for(unlocked: str) -> None:
    """In a child that may lock nothing."""

    def child() -> str:
        with MAKERS[unlocked]() as pair:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
            os.seteuid(65534 if os.geteuid() == 0 else os.geteuid())
            fill(pair)
            regions = register(pair, [(0, EDGE), (EDGE, SIZE)])
            deliver(pair, [(0, EDGE), (EDGE, SIZE)], *regions)
            whole = np.array_equal(memory(pair.destination_ram), memory(pair.source_ram))
            os.seteuid(os.getuid())
            return f"{whole} {locked_bytes()}"

    assert in_a_child(child) == "True 0"
    with MAKERS[unlocked]() as pair:
        register(pair, [(0, SIZE)])
        assert not pair.destination_ram.populated()


@pytest.fixture
def short_of_memory(small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs that are made now keep the destination's memory where there is room for an eighth of it."""
    made: list[object] = []

    def make_ram_there(blocks: tuple[RamBlock, ...] = BLOCKS) -> Ram:
        made.append(blocks)
        if len(made) == 1:  # the source's
            return make_ram(blocks)
        return Ram([BlockFile(block, sized(small_tmpfs / block.id, block.size)) for block in blocks])

    monkeypatch.setattr("tests.contract.transport_makers.make_ram", make_ram_there)
    return small_tmpfs


@pytest.mark.parametrize("rows", ["long", "short"])
@pytest.mark.parametrize("unlocked", UNLOCKED)
def test_a_full_ram_directory_is_an_error_that_names_it_and_the_destination_can_still_say_so(
    unlocked: str, rows: str, short_of_memory: Path
) -> None:
    """To touch such memory through a mapping would be a SIGBUS."""
    table = [(0, EDGE)] if rows == "long" else [(start, start + PAGE_SIZE) for start in range(0, EDGE, 2 * PAGE_SIZE)]
    with MAKERS[unlocked]() as pair:
        memory(pair.source_ram)[:] = 7
        regions = register(pair, [(0, SIZE)])
        pair.source.post(writes(table, *regions))
        error = fails(lambda: pair.destination.receive(0.01), HostMemoryError)
        assert f"guest memory does not fit into {short_of_memory} (No space left on device)" in str(error)
        assert pair.source.in_flight() > 0, "what did not land is not confirmed"

        pair.destination.send(b"why")
        pair.destination.close()

        assert pair.source.receive(PATIENCE) == b"why"
        fails(lambda: pair.source.flush(PATIENCE), PeerLostError)


@pytest.mark.parametrize("locked", ["tcp-locked", "tcp-tls-locked"])
def test_a_full_ram_directory_cannot_be_locked_and_is_named(locked: str, short_of_memory: Path) -> None:
    with MAKERS[locked]() as pair, pytest.raises(MemoryLockError, match=f"and in {short_of_memory}, or"):
        pair.destination.register(RangeTable([(0, SIZE)]))


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A RAM directory with room for 512 KiB."""
    if os.geteuid() != 0:
        missing("only root may mount a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def sized(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def test_beyond_the_limit_nothing_of_the_call_is_registered(locking: Maker) -> None:
    """In a child without privileges, for the limit binds only those."""

    def child() -> str:
        with locking() as pair:
            own = locked_bytes()
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * MIB + own, 2 * MIB + own))
            os.seteuid(65534 if os.geteuid() == 0 else os.geteuid())
            kept = pair.destination.register(RangeTable([(0, MIB)]))
            try:
                pair.destination.register(RangeTable([(MIB, MIB + 4096), (2 * MIB, 4 * MIB)]))
            except MemoryLockError as error:
                message = str(error)
            assert locked_bytes() == MIB + own
            assert pair.destination_ram.populated() == RangeTable([(0, MIB)])
            pair.destination.deregister(kept)
            pair.destination.register(RangeTable([(2 * MIB, 4 * MIB)]))
            os.seteuid(os.getuid())
            return f"{own} {message}"

    own, _, message = in_a_child(child).partition(" ")

    for number in (2 * MIB + 4096, 2 * MIB + int(own), MIB + int(own)):  # asked, limit, held
        assert str(number) in message


def in_a_child(work: Callable[[], str]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, work().encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_nothing_is_left_after_closing(make: Maker) -> None:
    def left() -> tuple[set[str], set[threading.Thread], int]:
        gc.collect()
        return set(Path("/proc/self/fd").iterdir()), set(threading.enumerate()), locked_bytes()

    with make():
        pass  # the first pair may load what stays loaded
    before = left()
    with make() as pair:
        fill(pair)
        regions = register(pair, [(0, SIZE)])
        deliver(pair, [(0, MIB)], *regions)
        pair.destination.send(b"unread")
        pair.source.post(writes([(0, EDGE)], *regions))
        pair.source.close()
        pair.destination.close()
        assert locked_bytes() == before[2]
    assert left() == before
