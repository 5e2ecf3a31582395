"""What a work request costs in Python: filling a list of reused requests, and handing it to the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import numpy as np

from workers.transports.contract import Writes
from workers.transports.verbs.library import Verbs
from workers.transports.verbs.memory import scratch_page
from workers.transports.verbs.offer import MAX_CHANNELS, VerbsOffer
from workers.transports.verbs.ports import all_ports, choose
from workers.transports.verbs.queue_pairs import QueuePairs
from workers.transports.verbs.work_requests import LENGTH, WriteRequests

_LISTS = 3  # in a queue of 1024
_REPEATS = 20


def fill_cost() -> float:
    """Microseconds a request to fill a list of 256."""
    requests = WriteRequests()
    writes = _writes(0, 0)
    keys = np.ones(LENGTH, np.uint32)
    return _cost(lambda: requests.fill(0, writes, keys, 1, 128), lambda: None)


def post_cost() -> float:
    """Microseconds a request to fill a list of 256 and post it. rxe has written these 8 bytes each by then."""
    verbs, choice = Verbs(), choose(all_ports())
    with (
        closing(QueuePairs(verbs, choice, 1, LENGTH * (_LISTS + 1))) as source,
        closing(QueuePairs(verbs, choice, 1, 8)) as destination,
    ):
        _, local = scratch_page(verbs, source.domain)
        _, remote = scratch_page(verbs, destination.domain)
        with closing(local), closing(remote):
            source.connect(_offer(destination), 1)
            destination.connect(_offer(source), 1)
            writes = _writes(remote.buf, remote.rkey)
            requests, keys = WriteRequests(), np.full(LENGTH, local.lkey, np.uint32)

            posted = done = 0

            def post() -> None:
                nonlocal posted
                first = (posted + 1) * MAX_CHANNELS
                source.post(0, requests.fill(local.buf, writes, keys, first, MAX_CHANNELS))
                posted += LENGTH

            def drain() -> None:
                nonlocal done
                while done < posted:
                    for one in source.collect():
                        assert not one.status, f"a write failed with status {one.status}"
                        done = one.sequence

            cost = _cost(post, drain)
            source.stop()
            destination.stop()
            return cost


def _cost(post: Callable[[], object], drain: Callable[[], None]) -> float:
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for _ in range(_LISTS):
            post()
        taken.append(time.perf_counter() - began)
        drain()
    return float(np.median(taken)) / _LISTS / LENGTH * 1e6


def _writes(remote: int, key: int) -> Writes:
    start = np.arange(LENGTH, dtype=np.int64) * 8
    return Writes(start, np.full(LENGTH, 8, np.int64), start + remote, np.full(LENGTH, key, np.uint64))


def _offer(device: QueuePairs) -> VerbsOffer:
    choice = choose(all_ports())
    return VerbsOffer(
        choice.port.device,
        "ethernet",
        choice.gid.address.exploded,
        choice.port.lid,
        device.mtu,
        tuple(pair.name for pair in device.pairs),
        None,
        False,
        {},
    )
