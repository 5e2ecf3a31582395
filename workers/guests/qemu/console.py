"""What a guest says on its console and when it was heard, across its moves: from outside, its own clock being paused.

A guest that is paused cannot tell how long it was: its clock stood still too. Whoever listens to its console on both
hosts can: between two lines of a guest that speaks every few milliseconds lies what it did not get to run.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

#: Seconds between two looks for a console that is not there yet. A destination's is there long before its guest runs.
_LOOK = 0.01
_AT_ONCE = 1 << 16
#: A guest that never ends a line must not fill our memory.
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole line, without its end. `at`: when its last byte arrived, by `clock`; `place`: whose console said it."""

    at: float
    place: int
    line: str


class ConsoleListener:
    """Listens to one guest on every host that it may be on; a context manager, with a thread of its own.

    QEMU's console socket has one client at a time, and what is said without one is only in its log. So listen before
    the guest runs, and it takes the places of others who would.
    """

    def __init__(self, consoles: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """`consoles`: the guest's console socket on each host, whether it is there yet or not."""
        self._paths = list(consoles)
        self._clock = clock
        self._sockets: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._rest = b""
        self._heard: list[Heard] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="console", daemon=True)

    def __enter__(self) -> Self:
        self._connect()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for line in self._sockets.values():
            line.close()
        self._selector.close()

    def heard(self, since: int = 0) -> list[Heard]:
        """Every line from number `since` on, the oldest first. A line that a move cut in two is whole again."""
        return self._heard[since:]

    def last(self, count: int) -> list[Heard]:
        """The newest lines, the oldest of them first."""
        return self._heard[-count:]

    def _listen(self) -> None:
        while not self._ended.is_set():
            self._connect()
            for key, _ in self._selector.select(_LOOK):
                self._read(key.data)

    def _connect(self) -> None:
        """To every console that is there: a host's console goes with the guest, and comes back with it."""
        for place, path in enumerate(self._paths):
            if place in self._sockets or not path.exists():
                continue
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(path))
            except OSError:  # not listening yet, or no longer
                line.close()
                continue
            line.setblocking(False)
            self._sockets[place] = line
            self._selector.register(line, selectors.EVENT_READ, place)

    def _read(self, place: int) -> None:
        line = self._sockets[place]
        said = b""
        with contextlib.suppress(ConnectionError):
            said = line.recv(_AT_ONCE)
        at = self._clock()
        if not said:
            self._selector.unregister(line)
            self._sockets.pop(place).close()
            return
        # The guest runs on one host at a time, so that what arrives is one stream, whichever console it comes from.
        *lines, self._rest = (self._rest + said).split(b"\n")
        self._rest = self._rest[-_LONGEST:]
        self._heard += [Heard(at, place, each.rstrip(b"\r").decode("utf-8", "replace")) for each in lines]
