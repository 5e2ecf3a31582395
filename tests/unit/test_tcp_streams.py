"""Moving rows between a socket and guest memory when the kernel does less than it was asked to."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import closing

import numpy as np
import pytest

from tests.contract.transport_makers import MIB, make_ram
from workers.transports.contract import Writes
from workers.transports.tcp.frames import plan
from workers.transports.tcp.streams import PlainStream, remaining


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (0, [[1000, 10], [2000, 20], [3000, 30]]),
        (4, [[1004, 6], [2000, 20], [3000, 30]]),
        (10, [[2000, 20], [3000, 30]]),
        (29, [[2019, 1], [3000, 30]]),
        (30, [[3000, 30]]),
        (59, [[3029, 1]]),
        (60, []),
    ],
)
def test_what_remains_of_buffers_starts_where_the_kernel_stopped(done: int, expected: list[list[int]]) -> None:
    vectors = np.array([[1000, 10], [2000, 20], [3000, 30]], np.uint64)
    assert remaining(vectors, done).tolist() == expected


def carry(rows: list[tuple[int, int]]) -> bool:
    """Send rows of (start, end) over a socket pair; whether they arrived as they were sent."""
    near, far = socket.socketpair()
    with closing(make_ram()) as here, closing(make_ram()) as there:
        memory = np.frombuffer(here.view, np.uint8)
        memory[:] = np.random.default_rng(3).integers(0, 256, len(memory), np.uint8)
        start, end = np.array(rows, np.int64).T
        sender, receiver = PlainStream(near, here), PlainStream(far, there)
        with closing(near), closing(far):
            for frame in plan(Writes(start, end - start, start, np.ones(len(rows), np.uint64)), 1):
                thread = threading.Thread(target=sender.send_frame, args=(frame,))
                thread.start()
                receiver.receive(len(frame.head))
                receiver.receive_rows(frame.start, frame.length)
                thread.join()
        return all(here.view[low:high] == there.view[low:high] for low, high in rows)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_memory_that_cannot_be_spliced_is_sent_all_the_same(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real, calls = os.sendfile, []

    def sendfile(out: int, file: int, offset: int, count: int) -> int:
        calls.append(count)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        return real(out, file, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)

    assert carry([(0, MIB), (MIB + 5, 2 * MIB + 70_000), (3 * MIB, 3 * MIB + 100)])
    assert len(calls) == 2


def test_a_sendfile_that_stops_early_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sendfile
    monkeypatch.setattr(os, "sendfile", lambda out, file, offset, count: real(out, file, offset, min(count, 30_001)))
    assert carry([(4096, 2 * MIB), (2 * MIB + 4096, 3 * MIB)])  # over the edge between two blocks
