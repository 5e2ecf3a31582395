"""Sending one round: survey for zero pages, register, pace, post, and let the destination digest behind the writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from config.errors import PeerLostError
from workers.conversation import Conversation
from workers.digests import PageDigests
from workers.protocol import MessageType
from workers.ranges import EMPTY, RangeTable
from workers.registration.contract import RegistrationPolicy
from workers.rounds.contract import Round
from workers.rounds.pacing import Pacer, batch_size
from workers.rounds.zero_pages import ZeroPages
from workers.transports.contract import Endpoint, Writes

#: Bytes surveyed, registered and posted at a time: 32 chunks of 1 MiB. Each batch costs 1 to 2 ms in Python, in which a
#: 100 Gb/s link carries 16 MiB. Larger ones delay a cancel, and the digesting, which runs one batch behind.
BATCH = 32 << 20
#: Bytes posted without a wait at most, where nothing needs one: a transport blocks where no cancel is heard soon after.
_UNSETTLED = 64 << 20
#: How often a wait looks up to see whether it was cancelled, in seconds.
_LOOK_UP = 0.2


class Transfer:
    """The source's sending side of one attempt."""

    def __init__(
        self,
        endpoint: Endpoint,
        talk: Conversation,
        policy: RegistrationPolicy,
        zero_pages: ZeroPages | None,
        digests: PageDigests | None,
        *,
        pacer: Pacer,
        chunk_size: int,
        timeout: float,
        progress: Callable[[int, int], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`zero_pages` is None when that capability is off, `digests` when `verify-ram` is.

        `progress(done, total)` is called after each batch, in bytes of the round. `check` is called before each batch
        is looked at, and every 0.2 s of waiting for the pace or the destination. Either may raise to end the round.
        """
        self._endpoint = endpoint
        self._talk = talk
        self._policy = policy
        self._zero_pages = zero_pages
        self._digests = digests
        self._pacer = pacer
        self._chunk_size = chunk_size
        self._timeout = timeout
        self._progress = progress
        self._check = check

    def prepare(self, populated: RangeTable) -> Iterable[RangeTable]:
        """Give the policy its look before the bulk round; what comes back is what `send_batches` takes."""
        return self._policy.prepare(self._surveyed(populated))

    def anticipate(self, ranges: RangeTable) -> None:
        """Register what the last round will most likely send, while the guest runs: later it would be downtime."""
        ahead = self._zero_pages.left_out(ranges) if self._zero_pages else ranges
        for _ in self._policy.writes(ahead.batches(BATCH, self._chunk_size)):
            self._check()

    def send(self, index: int, kind: str, ranges: RangeTable) -> Round:
        """One whole round; returns when the destination has all of it, and, unless it is the last, digested it."""
        return self.send_batches(index, kind, ranges.size, self._surveyed(ranges))

    def send_batches(self, index: int, kind: str, total: int, batches: Iterable[RangeTable]) -> Round:
        """The same, from batches that were surveyed already. `total` is the round's size, zero pages included."""
        began = time.monotonic()
        sent, unsaid = 0, EMPTY
        # Waiting after each batch lets the destination digest it and a policy take registrations back; else it would
        # only leave the link idle.
        most = 0 if self._digests is not None or self._policy.takes_back else _UNSETTLED
        for writes in self._policy.writes(batches):
            if unsaid.size + writes.size > most:
                self._settle(unsaid)
                unsaid = EMPTY
            if kind != "final":  # the guest is paused then: nobody gains from being slow
                self._sleep(self._pacer.delay(writes.size, time.monotonic()))
            self._endpoint.post(writes)
            unsaid |= _ranges(writes)
            sent += writes.size
            self._progress(sent, total)
        self._settle(unsaid)
        if kind != "final":  # after the last one the destination digests everything before it looks at STATE
            self._talk.say(MessageType.ROUND_END, {"round": index})
            self._talk.expect([MessageType.ROUND_DONE], self._timeout)
        return Round(index, kind, total, sent, time.monotonic() - began)

    def _surveyed(self, ranges: RangeTable) -> Iterator[RangeTable]:
        """Batches less their zero pages, looked at only when asked for: beside the writes of the batch before."""
        size = batch_size(self._pacer.rate, BATCH, self._chunk_size)
        for batch in ranges.batches(size, self._chunk_size):
            self._check()
            kept = self._looked_at(batch)
            if kept:
                yield kept

    def _looked_at(self, batch: RangeTable) -> RangeTable:
        if self._zero_pages:
            batch = self._zero_pages.left_out(batch)
        if self._digests:
            self._digests.update(batch)
        return batch

    def _settle(self, ranges: RangeTable) -> None:
        """Once these writes lie in the destination's memory, say so: it digests them beside the next ones."""
        if ranges:
            self._flush()
            self._talk.say(MessageType.WRITTEN, blob=ranges.to_bytes())

    def _flush(self) -> None:
        """Wait for the destination in short steps: a silent one must not keep a cancel waiting."""
        deadline = time.monotonic() + min(self._timeout, self._talk.patience)
        while (left := deadline - time.monotonic()) > _LOOK_UP:
            self._check()
            with contextlib.suppress(PeerLostError):  # out of time, or the connection's end, which the next call tells
                return self._endpoint.flush(_LOOK_UP)
            self._endpoint.in_flight()
        return self._endpoint.flush(max(0.0, left))

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(_LOOK_UP, left))


def _ranges(writes: Writes) -> RangeTable:
    return RangeTable(np.stack([writes.start, writes.start + writes.length], 1))
