"""The tcp transport's endpoint: the control connection and a few data connections, each with its threads.

    source        post → frames → [sender] ════ data ════► [writer] → guest memory        destination
                  in flight    ◄─ [acknowledged] ◄───────── counts
                  send/receive ◄─ [Control] ◄── control ──► [Control] ─► send/receive

All threads and the first failure are `Control`'s: whatever goes wrong on a data connection fails it, and it stops them.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, ClassVar

from config.errors import PeerError, PeerLostError, RemoteAccessError, SettingsError
from workers.ram import Ram
from workers.ranges import PageRange, RangeTable
from workers.transports.contract import RemoteRegion, Writes
from workers.transports.figures import Figures
from workers.transports.memory_lock import MemoryLock
from workers.transports.regions import KEY_BITS, Regions
from workers.transports.stripes import STRIPE
from workers.transports.tcp import frames
from workers.transports.tcp.control import Control, ControlSettings
from workers.transports.tcp.frames import Frame, Header, Kind
from workers.transports.tcp.offer import MAX_CHANNELS, decode_channels
from workers.transports.tcp.streams import PlainStream, Stream, TlsStream


@dataclass(frozen=True, slots=True)
class TcpSettings(ControlSettings):
    """How one side takes part.

    Shapes: `channels` data connections, 1 to 128 (the smaller of both sides' counts); `in_flight_limit` bytes, at least
    1 MiB. `lock`: what is registered here is populated and locked, which only `rdma-pin-all` asks for.
    """

    channels: int = 2
    in_flight_limit: int = 64 << 20
    lock: bool = False

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        ControlSettings.__post_init__(self)  # super() does not find its class when the class has slots
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise SettingsError(f"channels is {self.channels}: give 1 to {MAX_CHANNELS}")
        if self.in_flight_limit < STRIPE:
            raise SettingsError(f"the in-flight limit is {self.in_flight_limit} bytes: give at least {STRIPE}")


@dataclass
class _Channel:
    """One data connection as the source keeps it; bytes are of this connection, since it was opened."""

    stream: Stream
    frames: SimpleQueue[Frame | None] = field(default_factory=SimpleQueue)
    posted: int = 0
    confirmed: int = 0
    #: Of each frame that is not confirmed: `posted` with it, and when it was posted.
    underway: deque[tuple[int, float]] = field(default_factory=deque)


class TcpEndpoint:
    """One side of a tcp connection; see `workers.transports.contract.Endpoint` for what each call promises."""

    kind: ClassVar[str] = "tcp"

    def __init__(self, ram: Ram, settings: TcpSettings) -> None:
        """A destination listens from here on. Raises SettingsError (TLS files, listening address)."""
        self._ram = ram
        self._settings = settings
        self._regions = Regions()
        # No device reaches into this memory by itself, so nothing needs it locked; and to populate it all first cost
        # 2 to 4 s per GiB, one page after the other, before the bulk round could write it.
        self._locked = MemoryLock(ram) if settings.lock else None
        self._in_flight = 0
        self._figures = Figures()
        self._channels: list[_Channel] = []
        self._control = Control(settings, self._stop_channels)

    # --- meeting ------------------------------------------------------------------------------------------------------

    def offer(self) -> dict[str, Any]:
        """Addresses and token (destination only), certificate fingerprint, channels."""
        return {**self._control.offer(), "channels": self._settings.channels}

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        """Dial, or let in whoever knows the token; both sides must agree on TLS. Raises as the contract says."""
        channels = min(self._settings.channels, decode_channels(peer))
        connections = self._control.connect(peer, timeout, channels)
        self._channels = [_Channel(self._stream(connection)) for connection in connections]
        for channel in self._channels:
            if self._settings.role == "source":
                self._control.start(_bound(self._send_frames, channel))
                self._control.start(_bound(self._read_confirmations, channel))
            else:
                self._control.start(_bound(self._write_memory, channel))
        if self._control.failed:  # aborted meanwhile, when there was nothing to stop yet
            self._stop_channels()
        self._control.check()

    def _stream(self, connection: socket.socket) -> Stream:
        if isinstance(connection, ssl.SSLSocket):
            return TlsStream(connection, self._ram, locked=self._settings.lock)
        return PlainStream(connection, self._ram, locked=self._settings.lock)

    # --- memory -------------------------------------------------------------------------------------------------------

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        """Note the ranges under keys, random 32-bit numbers; where `lock` is set, populate and mlock them first.

        Raises MemoryLockError (only with `lock`), ValueError (no guest memory).
        """
        self._control.check()
        found = list(ranges)
        if found and found[-1].end > self._ram.size:
            raise ValueError(f"{found[-1]} ends beyond the guest's memory of {self._ram.size} bytes")
        if self._locked:
            self._locked.add(found, self._control.check)
        return self._regions.add(found)

    def deregister(self, regions: list[RemoteRegion]) -> None:
        """Refuse what still comes for these regions, and munlock what was locked."""
        self._control.check()
        self._regions.remove(regions)
        if self._locked:
            self._locked.remove(PageRange(region.start, region.end) for region in regions)

    # --- writes, on the source ----------------------------------------------------------------------------------------

    def post(self, writes: Writes) -> None:
        """Hand the writes to the channels' senders. Raises ValueError when they are not of this guest's memory."""
        self._control.check()
        if not len(writes):
            return
        if not self._channels or self._settings.role != "source":
            raise ValueError("only a connected source posts writes")
        _validate(writes, self._ram.size)
        # Small enough that every channel has one frame on the wire and one waiting.
        share = self._settings.in_flight_limit // (2 * len(self._channels))
        limit = max(STRIPE, min(frames.MAX_FRAME, share))
        for frame in frames.plan(writes, len(self._channels), limit):
            channel = self._channels[frame.channel]
            self._reserve(channel, frame.size)
            channel.frames.put(frame)

    def _reserve(self, channel: _Channel, size: int) -> None:
        with self._control.changed:
            self._control.wait(lambda: self._in_flight + size <= self._settings.in_flight_limit)
            self._in_flight += size
            channel.posted += size
            channel.underway.append((channel.posted, time.monotonic()))
            self._figures.posted(self._in_flight)

    def in_flight(self) -> int:
        """Bytes posted and not yet confirmed, over all channels."""
        self._control.check()
        return self._in_flight

    def flush(self, timeout: float) -> None:
        """Wait until the destination has confirmed everything; time running out leaves the connection as it is."""
        with self._control.changed:
            if not self._control.wait(lambda: not self._in_flight, timeout):
                raise PeerLostError(
                    f"the destination has not confirmed {self._in_flight} bytes within {timeout:g} s: check the link "
                    "between the hosts"
                )

    def _send_frames(self, channel: _Channel) -> None:
        while (frame := channel.frames.get()) is not None:
            channel.stream.send_frame(frame)

    def _read_confirmations(self, channel: _Channel) -> None:
        while True:
            total = frames.decode_header(channel.stream.receive(frames.HEADER_SIZE), Kind.ACKNOWLEDGED).size
            with self._control.changed:
                if not channel.confirmed < total <= channel.posted:
                    raise PeerError(f"the destination confirmed {total} bytes where {channel.posted} were sent")
                self._in_flight -= total - channel.confirmed
                channel.confirmed = total
                while channel.underway and channel.underway[0][0] <= total:
                    self._figures.work.observe(time.monotonic() - channel.underway.popleft()[1])
                self._control.changed.notify_all()

    # --- writes, on the destination -----------------------------------------------------------------------------------

    def _write_memory(self, channel: _Channel) -> None:
        stream, total = channel.stream, 0
        while True:
            header = frames.decode_header(stream.receive(frames.HEADER_SIZE), Kind.WRITES)
            table = frames.decode_table(stream.receive(frames.table_size(header.rows)), header.size)
            try:
                self._regions.check(table.address, table.length, table.key)
            except RemoteAccessError as error:
                failure = PeerError(f"the source broke the rules and was cut off: {error}")
                self._control.fail(failure, tell=str(error), kind=Kind.REFUSED)
                return
            if self._control.failed:  # bytes that had arrived before the connection was stopped can still be read
                return
            stream.receive_rows(table.address, table.length)
            total += header.size
            stream.send(Header(Kind.ACKNOWLEDGED, 0, total).encode())

    # --- control messages and the end ---------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Put the message on the control connection. Raises ValueError when it is too large."""
        self._control.send(message)

    def receive(self, timeout: float) -> bytes | None:
        """The next message; those that came before the peer left are still given out."""
        return self._control.receive(timeout)

    def figures(self) -> Figures:
        """What TCP sent again is the kernel's count, over all data connections."""
        if self._channels:
            self._figures.resent = sum(channel.stream.resent() for channel in self._channels)
        return self._figures

    def abort(self) -> None:
        """Fail this endpoint; the peer sees the connection end."""
        self._control.abort()

    def close(self) -> None:
        """Hang up, let our last message arrive (at most a second), end the threads, unlock everything."""
        self._control.close()
        for channel in self._channels:
            channel.stream.close()
        if self._locked:
            self._locked.close()

    def _stop_channels(self) -> None:
        for channel in self._channels:
            channel.stream.stop()
            channel.frames.put(None)


def _bound(task: Callable[[_Channel], None], channel: _Channel) -> Callable[[], None]:
    return lambda: task(channel)


def _validate(writes: Writes, ram_size: int) -> None:
    """Raises ValueError: these writes read what is not guest memory, or name what no tcp destination ever gave out."""
    least, most = int(writes.start.min()), int((writes.start + writes.length).max())
    if least < 0 or most > ram_size or int(writes.length.min()) < 1:
        raise ValueError(f"writes out of [{least}, {most}) of a guest memory of {ram_size} bytes, or of no bytes")
    if int(writes.key.max()) >> KEY_BITS or int(writes.remote_address.min()) < 0:
        raise ValueError(f"a key of a tcp destination has {KEY_BITS} bits, and its addresses start at 0")
