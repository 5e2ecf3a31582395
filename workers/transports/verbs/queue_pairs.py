"""The device's side of an endpoint: one context, one completion queue, reliable queue pairs; made, connected, polled.

Ids of work requests are sequence numbers of their queue pair times MAX_CHANNELS, plus the queue pair's index: a failed
completion says nothing else that could be relied on.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from config.errors import DeviceError, PeerLostError
from workers.transports.contract import Writes
from workers.transports.figures import Figures
from workers.transports.verbs.library import Verbs, with_descriptor
from workers.transports.verbs.offer import MAX_CHANNELS, MTUS, QueuePairName, VerbsOffer
from workers.transports.verbs.ports import Choice
from workers.transports.verbs.post_send import PostSend
from workers.transports.verbs.work_requests import ScratchRequest

#: 4.096 µs · 2^18 = 1.07 s until a packet is sent again, 6 times: a link may be away for 6 to 8 s (8.2 s measured on
#: soft-RoCE). Never 7 times: that means for ever on some devices (soft-RoCE among them).
_TIMEOUT, _RETRIES = 18, 6
_RNR_TIMER = 12  # 0.64 ms; nothing here is ever received into a queue, so it is never used
_POLL = 64


class Completion(NamedTuple):
    """A work request that ended. `sequence` counts the requests of its queue pair from 1."""

    channel: int
    sequence: int
    status: int


class QueuePair:
    """One reliable queue pair and what is outstanding on it: posted and not known to be completed."""

    def __init__(self, qp: Any, psn: int, post_send: PostSend) -> None:
        self.qp = qp
        self.post_send = post_send
        self.name = QueuePairName(qp.qp_num, psn)
        self.posted = 0
        self.completed = 0
        #: Sequence of the last request that was a read behind all writes before it.
        self.fenced = 0
        #: (sequence of the list's last request, its writes, their bytes, when it was counted), oldest first.
        self.lists: deque[tuple[int, Writes, int, float]] = deque()

    @property
    def outstanding(self) -> int:
        """Requests that occupy the send queue."""
        return self.posted - self.completed

    def complete(self, sequence: int, figures: Figures) -> int:
        """A request succeeded, and so did all before it; how many bytes of lists are confirmed thereby."""
        self.completed = max(self.completed, sequence)
        size = 0
        while self.lists and self.lists[0][0] <= self.completed:
            _, _, confirmed, since = self.lists.popleft()
            size += confirmed
            figures.work.observe(time.monotonic() - since)
        return size

    def describe(self, sequence: int) -> str:
        """Which write a request was, for people."""
        for last, writes, *_ in self.lists:
            row = sequence - 1 - (last - len(writes))
            if 0 <= row < len(writes):
                return f"a write of {int(writes.length[row])} bytes from guest memory {int(writes.start[row]):#x}"
        return "the transfer that shows that writes arrive"


class QueuePairs:
    """Everything that belongs to one opened device; `close` takes it down in the only order that works."""

    def __init__(self, verbs: Verbs, choice: Choice, channels: int, depth: int) -> None:
        """`depth`: requests outstanding per queue pair, at most the device's limit. Raises DeviceError."""
        self._verbs = verbs
        self._choice = choice
        self._closing = ExitStack()
        self._armed = False
        try:
            with self._translated("opened"):
                self.context = self._kept(verbs.Context(name=choice.port.device))
                limits = self.context.query_device()
                self.depth = min(depth, int(limits.max_qp_wr))
                self.domain = self._kept(verbs.PD(self.context))
                self._events, self.descriptor = with_descriptor(lambda: verbs.CompChannel(self.context))
                self._kept(self._events)
                # Room for every request that can be outstanding: a queue that overflows loses completions silently.
                size = channels * self.depth
                if size > limits.max_cqe:
                    raise DeviceError(
                        f"{choice.port} has completion queues of {limits.max_cqe} entries, {channels} channels need "
                        f"{size}: ask for fewer channels"
                    )
                self._completions = self._kept(verbs.CQ(self.context, size, None, self._events, 0))
                self.pairs = [self._pair() for _ in range(channels)]
        except BaseException:
            self.close()
            raise

    def _kept(self, made: Any) -> Any:
        self._closing.callback(made.close)
        return made

    def _pair(self) -> QueuePair:
        flags, verbs = self._verbs.enums, self._verbs
        cap = verbs.QPCap(max_send_wr=self.depth, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        kind = verbs.QPInitAttr(
            qp_type=flags.IBV_QPT_RC, scq=self._completions, rcq=self._completions, sq_sig_all=0, cap=cap
        )
        qp = self._kept(verbs.QP(self.domain, kind))
        pair = QueuePair(qp, secrets.randbits(24), PostSend(qp, self.context.cmd_fd))
        attributes = verbs.QPAttr(port_num=self._choice.port.number)
        attributes.qp_access_flags = flags.IBV_ACCESS_REMOTE_WRITE | flags.IBV_ACCESS_REMOTE_READ
        pair.qp.to_init(attributes)
        return pair

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def mtu(self) -> int:
        """The port's active MTU in bytes."""
        with self._translated("asked for its MTU"):
            return MTUS[self.context.query_port(self._choice.port.number).active_mtu - 1]

    @property
    def port_is_active(self) -> bool:
        """Whether the port still has its link."""
        try:
            state = self.context.query_port(self._choice.port.number).state
        except self._verbs.Error:
            return False
        return bool(state == self._verbs.enums.IBV_PORT_ACTIVE)

    @property
    def faults_memory_in(self) -> bool:
        """Whether the device can do on-demand paging for writes over reliable connections."""
        flags = self._verbs.enums
        try:
            odp = self.context.query_device_ex().odp_caps
        except self._verbs.Error:
            return False
        able = flags.IBV_ODP_SUPPORT_WRITE | flags.IBV_ODP_SUPPORT_SEND
        return bool(odp.general_caps & flags.IBV_ODP_SUPPORT and odp.rc_odp_caps & able == able)

    # --- connecting ---------------------------------------------------------------------------------------------------

    def connect(self, peer: VerbsOffer, channels: int) -> None:
        """Bring the first `channels` queue pairs to ready-to-send towards the peer's. Raises PeerLostError: no way."""
        mtu = min(self.mtu, peer.mtu)
        try:
            for mine, theirs in zip(self.pairs[:channels], peer.queue_pairs[:channels], strict=True):
                self._connect(mine, theirs, peer, mtu)
        except self._verbs.RDMAError as error:
            raise PeerLostError(
                f"there is no way from {self._choice.port} ({self._choice.gid.address}) to {peer.device} of the other "
                f"side ({peer.gid}): {error}; check that both addresses are of one network, or set rdma.gid_index"
            ) from None

    def _connect(self, mine: QueuePair, theirs: QueuePairName, peer: VerbsOffer, mtu: int) -> None:
        port, verbs = self._choice.port, self._verbs
        attributes = verbs.QPAttr(port_num=port.number)
        attributes.path_mtu = MTUS.index(mtu) + 1
        attributes.dest_qp_num, attributes.rq_psn = theirs.qpn, theirs.psn
        attributes.max_dest_rd_atomic, attributes.min_rnr_timer = 1, _RNR_TIMER
        route = verbs.GlobalRoute(dgid=verbs.GID(peer.gid), sgid_index=self._choice.gid.index, hop_limit=64)
        attributes.ah_attr = verbs.AHAttr(port_num=port.number, dlid=peer.lid, is_global=int(port.ethernet), gr=route)
        mine.qp.to_rtr(attributes)
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = _TIMEOUT, _RETRIES, _RETRIES
        attributes.sq_psn, attributes.max_rd_atomic = mine.name.psn, 1
        mine.qp.to_rts(attributes)

    # --- working ------------------------------------------------------------------------------------------------------

    def expect(self, channel: int, writes: Writes, size: int) -> int:
        """Count a list of writes of `size` bytes before it is posted; the id of its first request."""
        pair = self.pairs[channel]
        first = (pair.posted + 1) * MAX_CHANNELS + channel
        pair.posted += len(writes)
        pair.lists.append((pair.posted, writes, size, time.monotonic()))
        return first

    def post(self, channel: int, head: int) -> None:
        """Hand a list that was counted to the device. Raises DeviceError. One thread at a time for each channel."""
        refused = self.pairs[channel].post_send(head)
        if refused:
            raise DeviceError(
                f"{self._choice.port} could not be given work ({os.strerror(refused)}); look at the kernel log"
            )

    def post_scratch(
        self, channel: int, request: ScratchRequest, size: int, remote: tuple[int, int], *, read: bool
    ) -> None:
        """One transfer between the scratch pages. Raises DeviceError."""
        pair = self.pairs[channel]
        number = (pair.posted + 1) * MAX_CHANNELS + channel
        self.post(channel, (request.read if read else request.write)(size, remote, number))
        pair.posted += 1
        if read:
            pair.fenced = pair.posted

    def collect(self) -> Iterator[Completion]:
        """What ended since the last look. Raises DeviceError."""
        while True:
            with self._translated("polled"):
                count, found = self._completions.poll(_POLL)
            for one in found:
                yield Completion(one.wr_id % MAX_CHANNELS, one.wr_id // MAX_CHANNELS, one.status)
            if count < _POLL:
                return

    def arm(self) -> None:
        """Have the next completion make `descriptor` readable; look once more after this, and before waiting."""
        if not self._armed:
            with self._translated("asked for notifications"):
                self._completions.req_notify()
            self._armed = True

    def acknowledge(self) -> None:
        """Take the event that made `descriptor` readable."""
        if select.select([self.descriptor], [], [], 0)[0]:
            with self._translated("asked for its event"):
                self._events.get_cq_event(self._completions)
                self._completions.ack_events(1)
        self._armed = False

    def stop(self) -> None:
        """Take the queue pairs down: from here on nothing of this host is read or written by the peer."""
        for pair in self.pairs:
            pair.qp.close()

    def close(self) -> None:
        """Give everything back, the device last. Harmless when repeated."""
        self._closing.close()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._verbs.Error as error:
            raise DeviceError(f"{self._choice.port} could not be {what}: {error}; look at the kernel log") from None
