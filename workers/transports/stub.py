"""Two endpoints in one process with nothing between them: the contract without a wire, for tests.

Nothing is locked and no thread runs: a write lands when it is posted, unless the link is held. In all else it refuses,
blocks and fails as the real ones do; the conformance suite holds it to that.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from config.errors import DrovewayError, MessageError, PeerError, PeerLostError, RemoteAccessError
from workers.ram import Ram
from workers.ranges import RangeTable
from workers.transports.contract import MAX_MESSAGE, RemoteRegion, Writes
from workers.transports.figures import Figures
from workers.transports.regions import Regions


class StubLink:
    """What is between a pair of stub endpoints, and what tests do to it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ends: list[StubEndpoint] = []
        self.held = False

    def hold(self) -> None:
        """Deliver no more writes: they stay in flight."""
        self.held = True

    def release(self) -> None:
        """Deliver what was held, and everything from now on at once."""
        with self.changed:
            self.held = False
            for end in self.ends:
                end.deliver()

    def sever(self) -> None:
        """Cut: both ends lose their peer. Writes still held never arrive; messages already sent can be read."""
        with self.changed:
            for end in self.ends:
                end.fail(PeerLostError("the link was cut"), peer_left=True)


class StubEndpoint:
    """One end of a `StubLink`; see `workers.transports.contract.Endpoint` for what each call promises."""

    kind: ClassVar[str] = "stub"

    def __init__(self, ram: Ram, link: StubLink, in_flight_limit: int = 64 << 20) -> None:
        """The first two endpoints made on a link are its ends. Shapes: `in_flight_limit` in bytes."""
        self._ram = ram
        self._link = link
        self._limit = in_flight_limit
        self._token = secrets.token_hex(8)
        self._connected = False
        self._regions = Regions()
        self._messages: deque[bytes] = deque()
        self._pending: deque[Writes] = deque()
        self._posted: deque[float] = deque()
        self._figures = Figures()
        self._failure: DrovewayError | None = None
        self._peer_left = False
        with link.changed:
            link.ends.append(self)
            link.changed.notify_all()

    @property
    def _peer(self) -> StubEndpoint:
        return next(end for end in self._link.ends if end is not self)

    def offer(self) -> dict[str, Any]:
        """A token that only the other end of the link accepts."""
        return {"token": self._token}

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        """Check that the offer is the other end's, once that exists; it need not connect at the same time."""
        self._check()
        if not isinstance(peer.get("token"), str):
            raise MessageError("the stub offer of the other side has no token: pair two stub endpoints")
        with self._link.changed:
            if not self._wait(lambda: len(self._link.ends) == 2, timeout):
                raise PeerLostError(f"the other end of the link was not made within {timeout:g} s")
        if peer["token"] != self._peer._token:
            raise PeerError("the other side's token is of another link: connect the two ends of one link")
        self._connected = True

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        """Open these ranges to the peer; locks nothing. Raises ValueError when they are no guest memory."""
        self._check()
        found = list(ranges)
        if found and found[-1].end > self._ram.size:
            raise ValueError(f"{found[-1]} ends beyond the guest's memory of {self._ram.size} bytes")
        return self._regions.add(found)

    def deregister(self, regions: list[RemoteRegion]) -> None:
        """Refuse what still comes for these regions."""
        self._check()
        self._regions.remove(regions)

    def post(self, writes: Writes) -> None:
        """Deliver the writes, part by part while the link is held. Raises ValueError when they are no guest memory."""
        with self._link.changed:
            self._check_connected()
            if len(writes) and (
                int(writes.start.min()) < 0 or int((writes.start + writes.length).max()) > self._ram.size
            ):
                raise ValueError(f"writes of bytes outside of the guest's memory of {self._ram.size} bytes")
            for part in _parts(writes, self._limit):
                self._wait(self._has_room_for(part.size))
                self._pending.append(part)
                self._posted.append(time.monotonic())
                self._figures.posted(self._flying())
                self.deliver()
        self._check()

    def _has_room_for(self, size: int) -> Callable[[], bool]:
        return lambda: not self._pending or self._flying() + size <= self._limit

    def in_flight(self) -> int:
        """Bytes that a held link keeps."""
        with self._link.changed:
            self._check()
            return self._flying()

    def flush(self, timeout: float) -> None:
        """Wait until nothing is held."""
        with self._link.changed:
            if not self._wait(lambda: not self._pending, timeout):
                raise PeerLostError(f"{self._flying()} bytes are not confirmed within {timeout:g} s: release the link")

    def deliver(self) -> None:
        """Write what is pending into the other end's memory, unless the link is held. Called with the lock held."""
        while self._pending and not self._link.held and not self._failure:
            part, peer = self._pending[0], self._peer
            try:
                peer._regions.check(part.remote_address, part.length, part.key)
            except RemoteAccessError as error:
                peer.fail(PeerError(f"the source broke the rules and was cut off: {error}"))
                self.fail(RemoteAccessError(f"the destination refused {error}"))
                return
            rows = zip(part.start.tolist(), part.length.tolist(), part.remote_address.tolist(), strict=True)
            for start, length, address in rows:
                peer._ram.view[address : address + length] = self._ram.view[start : start + length]
            self._pending.popleft()
            self._figures.work.observe(time.monotonic() - self._posted.popleft())
        self._link.changed.notify_all()

    def send(self, message: bytes) -> None:
        """Put the message into the other end's queue. Raises ValueError when it is too large."""
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"a control message of {len(message)} bytes: the largest has {MAX_MESSAGE}")
        with self._link.changed:
            self._check_connected()
            self._peer._messages.append(bytes(message))
            self._link.changed.notify_all()

    def receive(self, timeout: float) -> bytes | None:
        """The next message; those that came before the peer left are still given out."""
        with self._link.changed:
            self._link.changed.wait_for(lambda: self._failure is not None or bool(self._messages), timeout)
            if not (self._messages and self._peer_left):
                self._check()
            return self._messages.popleft() if self._messages else None

    def figures(self) -> Figures:
        """There is nothing in between that could fail, or have to be sent again."""
        return self._figures

    def abort(self) -> None:
        """Fail this end; the other one loses its peer."""
        self._leave("the connection was aborted on this side")

    def close(self) -> None:
        """Leave; the other end loses its peer."""
        self._leave("this endpoint is closed")

    def _leave(self, words: str) -> None:
        with self._link.changed:
            self.fail(PeerLostError(words))
            self._peer_left = False
            for end in self._link.ends:
                if end is not self and end._connected:
                    end.fail(PeerLostError("the other side closed the connection"), peer_left=True)

    def fail(self, error: DrovewayError, *, peer_left: bool = False) -> None:
        """Keep the first failure and wake everybody. Called with the lock held."""
        if self._failure is None:
            self._failure, self._peer_left = error, peer_left
        self._link.changed.notify_all()

    def _flying(self) -> int:
        return sum(part.size for part in self._pending)

    def _check(self) -> None:
        if self._failure:
            raise type(self._failure)(str(self._failure))

    def _check_connected(self) -> None:
        self._check()
        if not self._connected:
            raise ValueError("connect first")

    def _wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        came = self._link.changed.wait_for(lambda: self._failure is not None or done(), timeout)
        self._check()
        return came


def _parts(writes: Writes, limit: int) -> Iterator[Writes]:
    """Consecutive rows of at most `limit` bytes together, or one row."""
    total = np.cumsum(writes.length)
    at = 0
    while at < len(writes):
        done = int(total[at - 1]) if at else 0
        upto = max(at + 1, int(np.searchsorted(total, done + limit, "right")))
        part = np.s_[at:upto]
        yield Writes(writes.start[part], writes.length[part], writes.remote_address[part], writes.key[part])
        at = upto
