"""The verbs transport's endpoint: queue pairs for the writes, one TCP connection for the control messages.

    source       post → lists of requests → [queue pair] ══ RDMA WRITE ══► guest memory, no program asked    destination
                 in flight ◄─ completions ◄─ [device]
                 send/receive ◄─── control connection, its thread ───► send/receive

No thread of ours watches the device: whoever posts or waits polls it. What the peer says, and that it died, comes over
the control connection, which two living hosts never lose at the same time as each other's memory.

A card moves the data while we go on. Soft-RoCE moves it on the processor that posts, so there the channels are shared
out among several threads.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from config.errors import DeviceError, DrovewayError, LinkLostError, PeerError, PeerLostError, SettingsError
from workers.ram import Ram
from workers.ranges import RangeTable
from workers.transports.contract import RemoteRegion, Writes
from workers.transports.figures import Figures
from workers.transports.stripes import STRIPE, cut, joined, select_rows
from workers.transports.tcp.control import Control, ControlSettings
from workers.transports.verbs.completions import MAY_BE_A_DYING_PEER, name_failure, status_name
from workers.transports.verbs.library import Verbs
from workers.transports.verbs.memory import RegisteredMemory, scratch_page
from workers.transports.verbs.offer import MAX_CHANNELS, VerbsOffer, decode_offer
from workers.transports.verbs.ports import all_ports, choose
from workers.transports.verbs.queue_pairs import Completion, QueuePairs
from workers.transports.verbs.work_requests import LENGTH, ScratchRequest, WriteRequests

#: 16 MiB keep a 200 Gb/s link busy for 0.7 ms, ten round trips of a large fabric; more only delays a cancel.
_IN_FLIGHT = 16 << 20
#: Requests outstanding per queue pair: as many scattered pages as keep the same link busy for 0.16 ms.
_DEPTH = 1024
#: When a write fails, the control connection is given this long to say that the peer is dying.
_REASON_SECONDS = 0.5
_FENCE_SIZE = 8


@dataclass(frozen=True, slots=True)
class VerbsSettings(ControlSettings):
    """How one side takes part.

    Shapes: `channels` queue pairs, 1 to 128 (the smaller of both sides' counts); `device`, `port`, `gid_index` as the
    settings' `[rdma]`, None chooses; `address` this host's on the data network, by which a GID is chosen;
    `in_flight_limit` bytes, at least 1 MiB; `depth` requests outstanding per queue pair, at least 2; `posting_threads`
    at least 1, None is one a processor on soft-RoCE, and one on a card, which needs no more.
    """

    channels: int = 1
    device: str | None = None
    port: int | None = None
    gid_index: int | None = None
    address: str | None = None
    on_demand_paging: bool = False
    in_flight_limit: int = _IN_FLIGHT
    depth: int = _DEPTH
    posting_threads: int | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        ControlSettings.__post_init__(self)  # super() does not find its class when the class has slots
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise SettingsError(f"channels is {self.channels}: give 1 to {MAX_CHANNELS}")
        if self.in_flight_limit < STRIPE or self.depth < 2:
            raise SettingsError(f"the in-flight limit must be at least {STRIPE} bytes and 2 requests")


class VerbsEndpoint:
    """One side of a connection by RDMA; see `workers.transports.contract.Endpoint` for what each call promises."""

    kind: ClassVar[str] = "verbs"

    def __init__(self, ram: Ram, settings: VerbsSettings) -> None:
        """Opens the device; a destination listens from here on. Raises DeviceError, SettingsError, MemoryLockError."""
        self._ram = ram
        self._settings = settings
        self._source = settings.role == "source"
        self._closing = contextlib.ExitStack()
        self._posting = threading.Lock()
        self._waiting = threading.Lock()
        self._polling = threading.Lock()
        self._waking = threading.Lock()
        self._closed = False
        self._in_flight = 0
        self._figures = Figures()
        self._channels = 0
        self._remote_scratch = (0, 0)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing.callback(os.close, self._wake)
        try:
            verbs = Verbs()
            self._choice = choose(
                all_ports(),
                device=settings.device,
                number=settings.port,
                gid_index=settings.gid_index,
                address=settings.address,
            )
            self._device = QueuePairs(verbs, self._choice, settings.channels, settings.depth)
            self._closing.callback(self._device.close)
            threads = settings.posting_threads or (os.cpu_count() or 1 if self._choice.port.software else 1)
            self._requests = [WriteRequests() for _ in range(min(settings.channels, threads))]
            self._threads = ThreadPoolExecutor(len(self._requests), "post")
            self._closing.callback(self._threads.shutdown)
            self._memory = RegisteredMemory(
                verbs, self._device.domain, ram, writable=not self._source, on_demand=settings.on_demand_paging
            )
            self._closing.callback(self._memory.close)
            self._page, self._scratch = scratch_page(verbs, self._device.domain)
            self._closing.callback(self._scratch.close)
            self._request = ScratchRequest(self._scratch.buf, self._scratch.lkey)
            self._closing.callback(self._device.stop)
            self._control = Control(settings, self._wake_up)
        except BaseException:
            self._closing.close()
            raise

    def offer(self) -> dict[str, Any]:
        """Device, GID, LID, MTU, queue pairs, and what the control connection offers."""
        scratch = None if self._source else (self._scratch.buf, self._scratch.rkey)
        return VerbsOffer(
            device=self._choice.port.device,
            link_layer="ethernet" if self._choice.port.ethernet else "infiniband",
            gid=self._choice.gid.address.exploded,
            lid=self._choice.port.lid,
            mtu=self._device.mtu,
            queue_pairs=tuple(pair.name for pair in self._device.pairs),
            scratch=scratch,
            odp=self._device.faults_memory_in,
            control=self._control.offer(),
        ).encode()

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        """Connect the queue pairs, meet over the control connection, see that a full packet passes."""
        self._control.check()
        if self._channels:
            raise ValueError("an endpoint connects once")
        offer = decode_offer(peer)
        channels = min(len(self._device.pairs), len(offer.queue_pairs))
        if (offer.scratch is None) == self._source:
            raise PeerError("both sides of this migration have the same role: pair a source with a destination")
        try:
            # Before the meeting: a source that is let in must find the destination's queue pairs ready.
            self._device.connect(offer, channels)
        except DrovewayError as error:
            self._control.fail(error)
            raise
        self._control.connect(offer.control, timeout)
        self._channels = channels
        if offer.scratch:
            self._remote_scratch = offer.scratch
            self._see_that_packets_pass(min(self._device.mtu, offer.mtu), timeout)

    def _see_that_packets_pass(self, size: int, timeout: float) -> None:
        """Nothing else tells a network that drops large packets, or all of RoCE's, before the guest is touched."""
        with self._polling:
            for channel in range(self._channels):
                self._device.post_scratch(channel, self._request, size, self._remote_scratch, read=False)
        try:
            self.flush(timeout)
        except LinkLostError as error:
            raise PeerLostError(
                f"no packet of {size} bytes passes from {self._choice.port} to the destination ({error}): check "
                "the MTU of switches and interfaces in between, and UDP port 4791; or set transport=tcp"
            ) from None

    # --- memory -------------------------------------------------------------------------------------------------------

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        """Populate and pin. Raises MemoryLockError, HostError, ValueError (no guest memory)."""
        self._control.check()
        found = list(ranges)
        if found and found[-1].end > self._ram.size:
            raise ValueError(f"{found[-1]} ends beyond the guest's memory of {self._ram.size} bytes")
        return self._memory.add(found, self._control.check)

    def deregister(self, regions: list[RemoteRegion]) -> None:
        """Unpin; the device refuses what still comes for these regions."""
        self._control.check()
        self._memory.remove(regions)

    # --- writes, on the source ----------------------------------------------------------------------------------------

    def post(self, writes: Writes) -> None:
        """Post the writes, list by list. Raises ValueError when they read what is not registered here."""
        self._control.check()
        if not len(writes):
            return
        if not self._channels or not self._source:
            raise ValueError("only a connected source posts writes")
        if int(writes.start.min()) < 0 or int((writes.start + writes.length).max()) > self._ram.size:
            raise ValueError(f"writes of bytes outside of the guest's memory of {self._ram.size} bytes")
        lanes = self._lanes(writes)
        shares = [lanes[number :: len(self._requests)] for number in range(len(self._requests))]
        with self._posting:
            others = [
                self._threads.submit(self._post_in_turn, requests, share)
                for requests, share in zip(self._requests[1:], shares[1:], strict=True)
                if share
            ]
            try:
                self._post_in_turn(self._requests[0], shares[0])
            finally:
                wait(others)
            for one in others:
                one.result()

    def _lanes(self, writes: Writes) -> list[list[_List]]:
        """Lists for each channel. What goes to one address takes one channel, and so stays in order."""
        rows = cut(joined(writes))
        keys = self._memory.local_keys(rows.start, rows.length)
        channel = rows.remote_address // STRIPE % self._channels
        most = max(STRIPE, self._settings.in_flight_limit // 4)  # the next list is made while others are on their way
        lanes = []
        for number in range(self._channels):
            index = np.flatnonzero(channel == number)
            if len(index):
                lanes.append(list(_lists(number, select_rows(rows, index), keys[index], self._length, most)))
        return lanes

    def _post_in_turn(self, requests: WriteRequests, lanes: list[list[_List]]) -> None:
        for turn in zip_longest(*lanes):
            for found in filter(None, turn):
                self._post(requests, found)

    def _post(self, requests: WriteRequests, found: _List) -> None:
        room = partial(self._has_room, found.channel, len(found.writes), found.size)
        self._control.check()
        while True:
            with self._polling:
                if room():
                    first = self._device.expect(found.channel, found.writes, found.size)
                    self._in_flight += found.size
                    self._figures.posted(self._in_flight)
                    break
            self._wait(room)
        try:
            self._device.post(
                found.channel,
                requests.fill(self._ram.address, found.writes, found.local_keys, first, MAX_CHANNELS),
            )
        except DeviceError as error:  # what was counted will never complete
            self._control.fail(error)
            raise

    @property
    def _length(self) -> int:
        """Writes in a list: a queue must have room for one, and for the read behind it."""
        return min(LENGTH, self._device.depth - 1)

    def _has_room(self, channel: int, requests: int, size: int) -> bool:
        room = self._device.depth - 1 - self._device.pairs[channel].outstanding
        return room >= requests and self._in_flight + size <= self._settings.in_flight_limit

    def in_flight(self) -> int:
        """Bytes posted and not yet confirmed, over all channels."""
        if self._polling.acquire(blocking=False):  # else somebody is just posting, or polling
            try:
                self._collect()
            finally:
                self._polling.release()
        self._control.check()
        return self._in_flight

    def flush(self, timeout: float) -> None:
        """Wait until everything lies in the destination's memory; time running out leaves the connection as it is.

        A confirmed write has reached the destination's device, not necessarily its memory: behind it waits a read over
        the same queue pair, which pushes it there before it returns (PCIe ordering; librpma flushes the same way).
        """
        self._control.check()
        deadline = time.monotonic() + timeout
        for channel, pair in enumerate(self._device.pairs[: self._channels]):
            if pair.posted > pair.fenced:
                if not self._wait(partial(self._has_room, channel, 0, 0), deadline):
                    break
                with self._polling:
                    self._device.post_scratch(channel, self._request, _FENCE_SIZE, self._remote_scratch, read=True)
        if not self._wait(lambda: all(not pair.outstanding for pair in self._device.pairs), deadline):
            raise PeerLostError(
                f"the destination's device has not confirmed {self._in_flight} bytes within {timeout:g} s: check the "
                "link between the hosts"
            )

    # --- completions --------------------------------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], deadline: float | None = None) -> bool:
        """Poll until `done`, or the time is out (False). Raises the failure once there is one."""
        with self._waiting:  # of two who wait, one could take the event that the other was about to wait for
            while True:
                with self._polling:
                    self._collect()
                    if done():
                        return True
                    self._device.arm()
                    self._collect()  # what ended before it was armed makes no event
                    if done():
                        return True
                self._control.check()
                left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1e3
                poll = select.poll()
                poll.register(self._device.descriptor, select.POLLIN)
                poll.register(self._wake, select.POLLIN)
                if not poll.poll(left):
                    return False
                with self._polling:
                    self._device.acknowledge()
                self._control.check()

    def _collect(self) -> None:
        """Take what ended into account. Called with `_polling` held. Raises the failure, once there is one."""
        self._control.check()
        for one in self._device.collect():
            if one.status:
                self._fail(one)
            self._in_flight -= self._device.pairs[one.channel].complete(one.sequence, self._figures)

    def _fail(self, one: Completion) -> None:
        """Name the failure, keep it, tell the peer, and raise it."""
        self._figures.failed[status_name(one.status)] += 1
        if one.status in MAY_BE_A_DYING_PEER:
            with self._control.changed:  # raises the peer's own word, or that it is gone
                self._control.wait(lambda: False, _REASON_SECONDS)
        write = self._device.pairs[one.channel].describe(one.sequence)
        error = name_failure(one.status, write, port_is_active=self._device.port_is_active)
        self._control.fail(error, tell=str(error))
        self._control.check()

    # --- the rest -----------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Put the message on the control connection. Raises ValueError when it is too large."""
        self._control.send(message)

    def receive(self, timeout: float) -> bytes | None:
        """The next message; those that came before the peer left are still given out."""
        return self._control.receive(timeout)

    def figures(self) -> Figures:
        """What the device sent again is not known: its counters are of the whole port, not of one queue pair."""
        return self._figures

    def abort(self) -> None:
        """Fail this endpoint; the peer sees the control connection end. The device stops at `close`."""
        self._control.abort()

    def close(self) -> None:
        """Hang up, stop the device, deregister everything."""
        self._control.close()  # from here on `_collect` raises, so that nobody polls what is taken down
        with self._posting, self._polling, self._waking:
            self._closing.close()
            self._closed = True

    def _wake_up(self) -> None:
        with self._waking:
            if not self._closed:
                os.eventfd_write(self._wake, 1)


class _List(NamedTuple):
    """Writes that are posted at once on one channel, the local key of each, and their bytes together."""

    channel: int
    writes: Writes
    local_keys: npt.NDArray[np.uint32]
    size: int


def _lists(channel: int, rows: Writes, keys: npt.NDArray[np.uint32], length: int, most: int) -> Iterator[_List]:
    """Consecutive rows, at most `length` of them and `most` bytes together, or one row."""
    total = np.cumsum(rows.length)
    at = 0
    while at < len(rows):
        done = int(total[at - 1]) if at else 0
        upto = max(at + 1, min(at + length, int(np.searchsorted(total, done + most, "right"))))
        part = slice(at, upto)
        yield _List(channel, select_rows(rows, part), keys[part], int(total[upto - 1]) - done)
        at = upto
