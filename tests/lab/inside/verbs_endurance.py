"""10,000 transfers over one pair of endpoints, and many pairs: nothing grows. Runs in a lab machine."""

from __future__ import annotations

import ctypes
import gc
from contextlib import closing
from pathlib import Path

import numpy as np

from tests.contract.transport_makers import MIB, connect, make_ram
from workers.ranges import PAGE_SIZE, RangeTable
from workers.transports.contract import Writes
from workers.transports.verbs import VerbsEndpoint, VerbsSettings

TRANSFERS = 10_000
libc = ctypes.CDLL(None)


class MallocInfo(ctypes.Structure):
    """struct mallinfo2: exact, where the resident size wanders with the heap's holes."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


#: Bytes that what is allocated may wander by. 10,000 leaked requests of pyverbs would be 640 KB.
SLACK = 64 << 10
PAIRS = 20
#: What pyverbs itself loses of a pair: it frees no scatter list and no request before rdma-core 65 (4 KiB of a source's
#: 65), and more that was not found (15 KB in all, measured on 44). A mover opens one endpoint in its life.
LOST_BY_PYVERBS = 20_000


def test_ten_thousand_transfers_leave_nothing_behind() -> None:
    with closing(make_ram()) as source_ram, closing(make_ram()) as destination_ram:
        source = VerbsEndpoint(source_ram, VerbsSettings("source", device="rxe1"))
        destination = VerbsEndpoint(destination_ram, VerbsSettings("destination", device="rxe2"))
        with closing(source), closing(destination):
            connect(source, destination)
            transfer(source, destination, source_ram, 500)  # what is allocated once is allocated now
            before = held()
            transfer(source, destination, source_ram, TRANSFERS)
            after = held()
        assert bytes(destination_ram.view[:MIB]) == bytes(source_ram.view[:MIB])
    assert after["descriptors"] == before["descriptors"]
    assert after["pinned"] == before["pinned"]
    assert after["memory"] - before["memory"] < SLACK, (before, after)


def transfer(source: VerbsEndpoint, destination: VerbsEndpoint, ram, times: int) -> None:
    """Register on both sides, write some pages, wait, deregister; registering anew every 50 times."""
    random = np.random.default_rng(times)
    for number in range(times):
        if number % 50 == 0:
            mine = source.register(RangeTable([(0, MIB)]))
            theirs = destination.register(RangeTable([(0, MIB)]))
        page = number % (MIB // PAGE_SIZE)
        ram.view[page * PAGE_SIZE : page * PAGE_SIZE + 8] = random.bytes(8)
        start = np.array([page * PAGE_SIZE])
        source.post(
            Writes(start, np.array([PAGE_SIZE]), start + theirs[0].address, np.array([theirs[0].key], np.uint64))
        )
        source.flush(30)
        if number % 50 == 49:
            source.deregister(mine)
            destination.deregister(theirs)


def test_pairs_leave_nothing_behind_but_what_pyverbs_loses() -> None:
    def pair() -> None:
        with closing(make_ram()) as source_ram, closing(make_ram()) as destination_ram:
            source = VerbsEndpoint(source_ram, VerbsSettings("source", device="rxe1"))
            destination = VerbsEndpoint(destination_ram, VerbsSettings("destination", device="rxe2"))
            with closing(source), closing(destination):
                connect(source, destination)

    for _ in range(5):
        pair()
    before = held()
    for _ in range(PAIRS):
        pair()
    after = held()
    assert after["descriptors"] == before["descriptors"]
    assert after["pinned"] == before["pinned"] == 0
    assert after["memory"] - before["memory"] < SLACK + PAIRS * LOST_BY_PYVERBS, (before, after)


def held() -> dict[str, int]:
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    libc.mallinfo2.restype = MallocInfo
    malloc = libc.mallinfo2()
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "pinned": int(status["VmPin"].split()[0]) << 10,
        "memory": malloc.uordblks + malloc.hblkhd,
    }
