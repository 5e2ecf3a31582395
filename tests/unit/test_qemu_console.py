"""Listening to a guest's console wherever it is, and what its witness says there."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.one_machine.witness import Tick, longest_gap, ticks
from tests.until import until
from workers.guests.qemu.console import ConsoleListener, Heard


class Console:
    """QEMU's side of a console socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._server.settimeout(30)

    def accept(self) -> socket.socket:
        return self._server.accept()[0]

    def close(self) -> None:
        self._server.close()
        self._path.unlink()


@pytest.fixture
def directory() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="dw-"))  # not pytest's: paths of unix sockets must be short
    yield found
    shutil.rmtree(found)


def test_it_follows_a_guest_to_and_fro_and_joins_a_line_that_a_move_cut(directory: Path) -> None:
    places = [directory / "alpha", directory / "beta"]
    first = Console(places[0])
    with ConsoleListener(places) as listener:
        line = first.accept()
        line.sendall(b"one\r\ntw")
        until("the first line", listener.heard, 30)
        second = Console(places[1])  # a destination's QEMU comes up while the guest still runs at the source
        other = second.accept()
        line.close()
        first.close()
        other.sendall(b"o\r\nthree\r\n")
        until("three lines", lambda: len(listener.heard()) == 3, 30)
        back = Console(places[0])
        line = back.accept()
        line.sendall(b"four\n")
        until("four lines", lambda: len(listener.heard()) == 4, 30)
        heard = listener.heard()
        assert listener.last(1) == heard[3:] == listener.heard(3)
        line.close()
        other.close()
    assert [(each.line, each.place) for each in heard] == [("one", 0), ("two", 1), ("three", 1), ("four", 0)]
    assert [each.at for each in heard] == sorted(each.at for each in heard)
    second.close()
    back.close()


def test_only_the_witness_counts() -> None:
    said = [
        "[    0.1] Linux",
        "tick=7 bad=0 written=3 checked=4",
        "tick=8 bad=1 written",
        "tick=9 bad=1 written=5 checked=6",
    ]
    found = list(ticks(Heard(at, 1, line) for at, line in zip((0.0, 1.0, 2.0, 4.5), said, strict=True)))
    assert found == [Tick(1.0, 1, 7, 0, 3, 4), Tick(4.5, 1, 9, 1, 5, 6)]
    assert longest_gap(found) == 3.5
    assert longest_gap(found[:1]) == 0
