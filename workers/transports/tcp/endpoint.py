"""The tcp transport's endpoint: one control connection and a few data connections, each with its threads.

    source        post → frames → [sender] ════ data ════► [writer] → guest memory        destination
                  in flight    ◄─ [acknowledged] ◄───────── counts
                  send/receive ◄─ [control] ◄── control ──► [control] ─► send/receive

The first thing that goes wrong is the endpoint's failure: it is kept, everybody is woken, and every later call raises
it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, ClassVar, Literal

from config.errors import DrovewayError, MessageError, PeerError, PeerLostError, RemoteAccessError, SettingsError
from workers.ram import Ram
from workers.ranges import PageRange, RangeTable
from workers.transports.contract import MAX_MESSAGE, RemoteRegion, Writes
from workers.transports.memory_lock import MemoryLock
from workers.transports.regions import KEY_BITS, Regions
from workers.transports.tcp import frames
from workers.transports.tcp.frames import Frame, Header, Kind
from workers.transports.tcp.meeting import Dialler, Doorkeeper
from workers.transports.tcp.offer import MAX_CHANNELS, TOKEN_SIZE, Address, TcpOffer, decode_offer, parse_address
from workers.transports.tcp.streams import PlainStream, Stream, TlsStream
from workers.transports.tcp.tls import TlsFiles, TlsIdentity

#: Control messages that nobody has received yet may take this much; a peer that sends more is not one of ours.
_MAX_UNREAD = 8 * MAX_MESSAGE
#: When a data connection ends, the control connection is given this long to say why.
_REASON_SECONDS = 2.0
#: How long `close` waits for the peer to have read our last control message.
_LINGER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """How one side takes part.

    Shapes: `role` source connects, destination listens; `channels` data connections, 1 to 128 (the smaller of both
    sides' counts); `in_flight_limit` bytes, at least 1 MiB; `listen` an IP address of this host; `ports` the range to
    listen in, ends included, (0, 0) for any free one; `advertise` what the source is told to dial, "host" or "ip:port",
    when it is not the listening address itself (needed for 0.0.0.0 or behind a translation).
    """

    role: Literal["source", "destination"]
    channels: int = 2
    in_flight_limit: int = 64 << 20
    listen: str = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)
    advertise: tuple[str, ...] = ()
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise SettingsError(f"channels is {self.channels}: give 1 to {MAX_CHANNELS}")
        if self.in_flight_limit < frames.STRIPE:
            raise SettingsError(f"the in-flight limit is {self.in_flight_limit} bytes: give at least {frames.STRIPE}")
        if not 0 <= self.ports[0] <= self.ports[1] < 1 << 16:
            raise SettingsError(
                f"the tcp port range {self.ports[0]}-{self.ports[1]} is none: give two ports, low to high"
            )


@dataclass
class _Channel:
    """One data connection as the source keeps it; bytes are of this connection, since it was opened."""

    stream: Stream
    frames: SimpleQueue[Frame | None] = field(default_factory=SimpleQueue)
    posted: int = 0
    confirmed: int = 0


class TcpEndpoint:
    """One side of a tcp connection; see `workers.transports.contract.Endpoint` for what each call promises."""

    kind: ClassVar[str] = "tcp"

    def __init__(self, ram: Ram, settings: TcpSettings) -> None:
        """A destination listens from here on. Raises SettingsError (TLS files, listening address)."""
        self._ram = ram
        self._settings = settings
        self._identity = TlsIdentity(settings.tls) if settings.tls else None
        self._regions = Regions()
        self._locked = MemoryLock(ram)
        self._changed = threading.Condition()
        self._failure: DrovewayError | None = None
        self._peer_left = False
        self._closed = False
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._in_flight = 0
        self._sending = threading.Lock()
        self._control: Stream | None = None
        self._channels: list[_Channel] = []
        self._threads: list[threading.Thread] = []
        self._meeting: Dialler | Doorkeeper | None = None
        self._offer = TcpOffer((), None, self._identity.fingerprint if self._identity else None, settings.channels)
        if settings.role == "destination":
            self._listen()

    # --- meeting ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = _listen(self._settings)
        token = secrets.token_bytes(TOKEN_SIZE)
        try:
            addresses = _advertised(self._settings, listener.getsockname()[1])
        except SettingsError:
            listener.close()
            raise
        self._meeting = Doorkeeper(listener, token, self._identity)
        self._offer = replace(self._offer, addresses=addresses, token=token)

    def offer(self) -> dict[str, Any]:
        """Addresses and token (destination only), certificate fingerprint, channels."""
        return self._offer.encode()

    def connect(self, peer: Mapping[str, Any], timeout: float) -> None:
        """Dial, or let in whoever knows the token; both sides must agree on TLS. Raises as the contract says."""
        self._check()
        if self._control:
            raise ValueError("an endpoint connects once")
        offer = decode_offer(peer)
        self._agree_on_tls(offer)
        channels = min(self._offer.channels, offer.channels)
        try:
            connections = self._meet(offer, channels, timeout)
        except DrovewayError as error:
            self._fail(error)
            raise self._reason() from None
        control, *data = (self._stream(connection) for connection in connections)
        self._control = control
        self._channels = [_Channel(stream) for stream in data]
        self._start_threads()
        if self._failure:  # aborted meanwhile, when there was nothing to stop yet
            self._stop_all()
        self._check()

    def _agree_on_tls(self, peer: TcpOffer) -> None:
        if (peer.fingerprint is None) != (self._identity is None):
            with_tls, without = ("this", "the other") if self._identity else ("the other", "this")
            raise PeerError(
                f"{with_tls} side uses TLS and {without} side does not: set the tls files on both hosts or on none"
            )

    def _meet(self, peer: TcpOffer, channels: int, timeout: float) -> list[socket.socket]:
        if (peer.token is None) == (self._settings.role == "source"):
            raise PeerError(
                f"both sides of this migration are its {self._settings.role}: pair a source with a destination"
            )
        if isinstance(self._meeting, Doorkeeper):
            return self._meeting.meet(peer, channels, timeout)
        dialler = self._meeting = Dialler(peer, channels, self._identity)
        self._check()
        return dialler.meet(timeout)

    def _stream(self, connection: socket.socket) -> Stream:
        if isinstance(connection, ssl.SSLSocket):
            return TlsStream(connection, self._ram)
        return PlainStream(connection, self._ram)

    def _start_threads(self) -> None:
        tasks: list[Callable[[], None]] = [self._read_control]
        for channel in self._channels:
            if self._settings.role == "source":
                tasks += [_bound(self._send_frames, channel), _bound(self._read_confirmations, channel)]
            else:
                tasks.append(_bound(self._write_memory, channel))
        for task in tasks:
            thread = threading.Thread(target=self._run, args=(task,), name="droveway-tcp", daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- memory -------------------------------------------------------------------------------------------------------

    def register(self, ranges: RangeTable) -> list[RemoteRegion]:
        """Populate and mlock; keys are random 32-bit numbers. Raises MemoryLockError, ValueError (no guest memory)."""
        self._check()
        found = list(ranges)
        if found and found[-1].end > self._ram.size:
            raise ValueError(f"{found[-1]} ends beyond the guest's memory of {self._ram.size} bytes")
        self._locked.add(found, self._check)
        return self._regions.add(found)

    def deregister(self, regions: list[RemoteRegion]) -> None:
        """Refuse what still comes for these regions, and munlock them."""
        self._check()
        self._regions.remove(regions)
        self._locked.remove(PageRange(region.start, region.end) for region in regions)

    # --- writes, on the source ----------------------------------------------------------------------------------------

    def post(self, writes: Writes) -> None:
        """Hand the writes to the channels' senders. Raises ValueError when they are not of this guest's memory."""
        self._check()
        if not len(writes):
            return
        if not self._channels or self._settings.role != "source":
            raise ValueError("only a connected source posts writes")
        _validate(writes, self._ram.size)
        # Small enough that every channel has one frame on the wire and one waiting.
        share = self._settings.in_flight_limit // (2 * len(self._channels))
        limit = max(frames.STRIPE, min(frames.MAX_FRAME, share))
        for frame in frames.plan(writes, len(self._channels), limit):
            channel = self._channels[frame.channel]
            self._reserve(channel, frame.size)
            channel.frames.put(frame)

    def _reserve(self, channel: _Channel, size: int) -> None:
        with self._changed:
            self._wait(lambda: self._in_flight + size <= self._settings.in_flight_limit)
            self._in_flight += size
            channel.posted += size

    def in_flight(self) -> int:
        """Bytes posted and not yet confirmed, over all channels."""
        self._check()
        return self._in_flight

    def flush(self, timeout: float) -> None:
        """Wait until the destination has confirmed everything; time running out leaves the connection as it is."""
        with self._changed:
            if not self._wait(lambda: not self._in_flight, timeout):
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
            with self._changed:
                if not channel.confirmed < total <= channel.posted:
                    raise PeerError(f"the destination confirmed {total} bytes where {channel.posted} were sent")
                self._in_flight -= total - channel.confirmed
                channel.confirmed = total
                self._changed.notify_all()

    # --- writes, on the destination -----------------------------------------------------------------------------------

    def _write_memory(self, channel: _Channel) -> None:
        stream, total = channel.stream, 0
        while True:
            header = frames.decode_header(stream.receive(frames.HEADER_SIZE), Kind.WRITES)
            table = frames.decode_table(stream.receive(frames.table_size(header.rows)), header.size)
            self._regions.check(table.address, table.length, table.key)
            if self._failure:  # bytes that had arrived before the connection was stopped can still be read
                return
            stream.receive_rows(table.address, table.length)
            total += header.size
            stream.send(Header(Kind.ACKNOWLEDGED, 0, total).encode())

    # --- control messages ---------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Put the message on the control connection. Raises ValueError when it is too large."""
        self._check()
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"a control message of {len(message)} bytes: the largest has {MAX_MESSAGE}")
        try:
            self._send_control(Header(Kind.MESSAGE, 0, len(message)).encode() + message)
        except OSError as error:
            self._lost(error)
            self._check()

    def _send_control(self, data: bytes) -> None:
        if self._control is None:
            raise ValueError("connect first")
        with self._sending:
            self._control.send(data)

    def receive(self, timeout: float) -> bytes | None:
        """The next message; those that came before the peer left are still given out."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or bool(self._messages), timeout)
            # What the peer said before it left still counts: its last word may be that it has taken the guest.
            if not (self._messages and self._peer_left):
                self._check()
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._unread -= len(message)
            return message

    def _read_control(self) -> None:
        assert self._control is not None
        while True:
            data = self._control.receive(frames.HEADER_SIZE)
            header = frames.decode_header(data, Kind.MESSAGE, Kind.REFUSED, Kind.FAILED)
            body = self._control.receive(header.size)
            if header.kind is Kind.REFUSED:
                raise RemoteAccessError(f"the destination refused {_text(body)}")
            if header.kind is Kind.FAILED:
                raise PeerError(f"the other side gave up: {_text(body)}")
            with self._changed:
                self._messages.append(body)
                self._unread += len(body)
                if self._unread > _MAX_UNREAD:
                    raise PeerError(f"the other side sent more than {_MAX_UNREAD} bytes of control messages unasked")
                self._changed.notify_all()

    # --- failing and closing ------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Fail this endpoint; the peer sees the connection end."""
        self._peer_left = False
        self._note(PeerLostError("the connection was aborted on this side"))
        self._stop_all()

    def close(self) -> None:
        """Hang up, let our last message arrive (at most a second), end the threads, unlock everything."""
        if self._closed:
            return
        self._closed, self._peer_left = True, False
        self._note(PeerLostError("this endpoint is closed"))
        if self._sending.acquire(timeout=_LINGER_SECONDS):  # whoever is telling the peer why we failed may finish
            self._sending.release()
        self._stop_all()
        for thread in self._threads[:1]:  # the control connection's: ends when the peer hangs up in its turn
            thread.join(_LINGER_SECONDS)
        if self._control:
            self._control.stop()
        for thread in self._threads:
            thread.join()
        for stream in self._streams():
            stream.close()
        if isinstance(self._meeting, Doorkeeper):
            self._meeting.close()
        self._locked.close()

    def _run(self, task: Callable[[], None]) -> None:
        """A thread's life: whatever ends it ends the endpoint too, so that no caller waits for a thread gone."""
        try:
            task()
        except RemoteAccessError as error:
            self._refuse(error)
        except PeerError as error:
            self._fail_and_tell(error, Kind.FAILED, str(error))
        except OSError as error:
            self._lost(error)
        finally:
            self._fail(PeerLostError("a thread of the connection ended: see this worker's log for the reason"))

    def _refuse(self, error: RemoteAccessError) -> None:
        if self._settings.role == "source":  # we are the one that was refused
            self._fail(error)
            return
        failure = PeerError(f"the source broke the rules and was cut off: {error}")
        self._fail_and_tell(failure, Kind.REFUSED, str(error))

    def _fail_and_tell(self, failure: DrovewayError, kind: Kind, text: str) -> None:
        """Fail with a last word to the peer. Noted first, or the peer's hanging up would look like the cause."""
        assert self._control is not None
        with self._sending:
            if self._note(failure):
                with contextlib.suppress(OSError):  # it cannot be told; it will see the connection end
                    self._control.send(frames.encode_text(kind, text))
        self._stop_all()

    def _lost(self, error: OSError) -> None:
        control = self._threads[0]
        if threading.current_thread() is not control:
            control.join(_REASON_SECONDS)
        self._fail(PeerLostError(f"the connection to the other side ended: {error.strerror or error}"), peer_left=True)

    def _fail(self, error: DrovewayError, *, peer_left: bool = False) -> None:
        """Note the failure and stop the connections; when there was one before, its finder does that."""
        if self._note(error, peer_left=peer_left):
            self._stop_all()

    def _note(self, error: DrovewayError, *, peer_left: bool = False) -> bool:
        """Keep the first failure and wake everybody; whether this was it."""
        with self._changed:
            first = self._failure is None
            if first:
                self._failure, self._peer_left = error, peer_left
            self._changed.notify_all()
            return first

    def _stop_all(self) -> None:
        if self._meeting:
            self._meeting.stop()
        if self._control:
            # Only our half: what we said last must arrive, and what the peer says last be read.
            self._control.stop(socket.SHUT_WR)
        for channel in self._channels:
            channel.stream.stop()
            channel.frames.put(None)

    def _check(self) -> None:
        if self._failure:
            raise self._reason()

    def _reason(self) -> DrovewayError:
        assert self._failure is not None
        return type(self._failure)(str(self._failure))  # a fresh one, for each raise adds to its traceback

    def _wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait, with the lock held, until `done` or the time is out (False). Raises the failure once there is one."""
        came = self._changed.wait_for(lambda: self._failure is not None or done(), timeout)
        self._check()
        return came

    def _streams(self) -> list[Stream]:
        return [*([self._control] if self._control else []), *(channel.stream for channel in self._channels)]


def _bound(task: Callable[[_Channel], None], channel: _Channel) -> Callable[[], None]:
    return lambda: task(channel)


def _text(body: bytes) -> str:
    """The peer's words, made harmless for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in body.decode(errors="replace"))


def _validate(writes: Writes, ram_size: int) -> None:
    """Raises ValueError: these writes read what is not guest memory, or name what no tcp destination ever gave out."""
    least, most = int(writes.start.min()), int((writes.start + writes.length).max())
    if least < 0 or most > ram_size or int(writes.length.min()) < 1:
        raise ValueError(f"writes out of [{least}, {most}) of a guest memory of {ram_size} bytes, or of no bytes")
    if int(writes.key.max()) >> KEY_BITS or int(writes.remote_address.min()) < 0:
        raise ValueError(f"a key of a tcp destination has {KEY_BITS} bits, and its addresses start at 0")


def _listen(settings: TcpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.listen else socket.AF_INET
    trouble: OSError | None = None
    for port in range(settings.ports[0], settings.ports[1] + 1):
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.listen, port))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            trouble = error
        else:
            return listener
    first, last = settings.ports
    raise SettingsError(
        f"no port of {settings.listen}:{first}-{last} can be listened on ({trouble}): check the tcp settings"
    )


def _advertised(settings: TcpSettings, port: int) -> tuple[Address, ...]:
    """Where the source shall dial. Raises SettingsError."""
    if not settings.advertise and ipaddress.ip_address(settings.listen).is_unspecified:
        raise SettingsError(
            f"a destination that listens on {settings.listen} must be told which addresses to advertise"
        )
    try:
        return tuple(_with_port(text, port) for text in settings.advertise or (settings.listen,))
    except OSError as error:
        raise SettingsError(f"an address to advertise cannot be found ({error}): check the tcp settings") from None


def _with_port(text: str, port: int) -> Address:
    """An address as an operator writes it; names are looked up here, so that the offer carries none."""
    try:
        return parse_address(text)
    except MessageError:
        found = socket.getaddrinfo(text, port, type=socket.SOCK_STREAM)
        return Address(str(found[0][4][0]), port)
