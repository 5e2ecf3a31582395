"""The stream of QEMU's device state where one of its ends fails: nothing of ours is left, and QEMU hears of it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from config.errors import HostError, PeerLostError
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.state import _Stream


class Taking:
    """A QEMU that takes a descriptor, or does not."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.end: socket.socket | None = None

    def send_descriptor(self, name: str, descriptor: int) -> None:
        if self.refuses:
            raise HostError("no")
        self.end = socket.socket(fileno=os.dup(descriptor))

    @property
    def monitor(self) -> Monitor:
        return cast("Monitor", self)


def fails_with(error: Exception) -> Callable[[bytes], None]:
    def send(piece: bytes) -> None:
        raise error

    return send


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [PeerLostError("gone"), OSError("gone"), ZeroDivisionError("a defect")])
def test_a_qemu_whose_state_nobody_takes_hears_the_end_of_the_stream(error: Exception) -> None:
    qemu = Taking()
    stream = _Stream("vm1", qemu.monitor, fails_with(error))
    assert qemu.end
    with qemu.end as end:
        end.settimeout(30)
        end.sendall(b"state")
        assert end.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            end.sendall(b"more")
    stream.close()


def test_what_qemu_says_to_its_end_leaves_the_way_back_open() -> None:
    qemu, pieces, ended = Taking(), [], threading.Event()

    def send(piece: bytes) -> None:
        pieces.append(piece)
        if not piece:
            ended.set()

    stream = _Stream("vm1", qemu.monitor, send)
    assert qemu.end
    with qemu.end as end:
        end.sendall(b"state")
        end.shutdown(socket.SHUT_WR)
        assert ended.wait(30)
        stream.write(b"answer")
        assert end.recv(16) == b"answer"
    stream.close()
    assert b"".join(pieces) == b"state"


def test_a_descriptor_that_qemu_refuses_leaves_nothing_open() -> None:
    before = descriptors()
    with pytest.raises(HostError, match="no") as raised:
        _Stream("vm1", Taking(refuses=True).monitor, lambda piece: None)
    assert descriptors() == before
    assert raised.tb  # which keeps what was left behind from being collected


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
