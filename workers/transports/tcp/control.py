"""The control connection of one migration, whatever carries its writes: tcp's data connections, or queue pairs.

    owner: send/receive ◄─► [reader] ◄──── MESSAGE, REFUSED, FAILED ────► [reader] ◄─► send/receive :owner
           fail/lost/abort ─► first failure ─► everybody woken, peer told, both halves hung up

The first thing that goes wrong is the failure of the whole connection: it is kept, everybody is woken, and every later
call raises it.
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
from dataclasses import dataclass
from typing import Any, Literal

from config.errors import (
    DrovewayError,
    HostMemoryError,
    MessageError,
    PeerError,
    PeerLostError,
    RemoteAccessError,
    SettingsError,
)
from workers.transports.contract import MAX_MESSAGE
from workers.transports.tcp import frames
from workers.transports.tcp.frames import Header, Kind
from workers.transports.tcp.meeting import Dialler, Doorkeeper
from workers.transports.tcp.offer import TOKEN_SIZE, Address, ControlOffer, decode_offer, parse_address
from workers.transports.tcp.streams import Connection, PlainConnection, TlsConnection
from workers.transports.tcp.tls import TlsFiles, TlsIdentity

#: Control messages that nobody has received yet may take this much; a peer that sends more is not one of ours.
_MAX_UNREAD = 8 * MAX_MESSAGE
#: When the writes' way ends, the control connection is given this long to say why.
_REASON_SECONDS = 2.0
#: How long `close` waits for the peer to have read our last control message.
_LINGER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """How one side meets the other.

    Shapes: `role` source connects, destination listens; `listen` an IP address of this host; `ports` the range to
    listen in, ends included, (0, 0) for any free one; `advertise` what the source is told to dial, "host" or "ip:port",
    when it is not the listening address itself (needed for 0.0.0.0 or behind a translation).
    """

    role: Literal["source", "destination"]
    listen: str = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)
    advertise: tuple[str, ...] = ()
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        if not 0 <= self.ports[0] <= self.ports[1] < 1 << 16:
            raise SettingsError(
                f"the tcp port range {self.ports[0]}-{self.ports[1]} is none: give two ports, low to high"
            )


class Control:
    """One side of the control connection. Its owner is an endpoint: one thread of it calls at a time, any may `fail`.

    `changed` is notified with every message and at the failure; the owner may guard what it waits for with it, too.
    """

    def __init__(self, settings: ControlSettings, on_failure: Callable[[], None]) -> None:
        """A destination listens from here on. Raises SettingsError (TLS files, listening address).

        `on_failure` ends what the owner has running. It comes from any thread, perhaps twice, once the first failure is
        noted and the peer told.
        """
        self.changed = threading.Condition()
        self._settings = settings
        self._on_failure = on_failure
        self._identity = TlsIdentity(settings.tls) if settings.tls else None
        self._failure: DrovewayError | None = None
        #: What this host lacks, while the connection stands.
        self._trouble: DrovewayError | None = None
        self._peer_left = False
        self._closed = False
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._sending = threading.Lock()
        self._connection: Connection | None = None
        self._threads: list[threading.Thread] = []
        self._meeting: Dialler | Doorkeeper | None = None
        self._offer = ControlOffer((), None, self._identity.fingerprint if self._identity else None)
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
        self._offer = ControlOffer(addresses, token, self._offer.fingerprint)

    def offer(self) -> dict[str, Any]:
        """Addresses and token (destination only), certificate fingerprint."""
        return self._offer.encode()

    def connect(self, peer: Mapping[str, Any], timeout: float, data_connections: int = 0) -> list[socket.socket]:
        """Dial, or let in whoever knows the token; both sides must agree on TLS and on the number of data connections.

        Returns those; they are the owner's. An abort may come before the owner has anything for `on_failure` to stop:
        look at `failed` once it has. Raises as `Endpoint.connect`.
        """
        self.check()
        if self._connection:
            raise ValueError("an endpoint connects once")
        offer = decode_offer(peer)
        self._agree_on_tls(offer)
        try:
            control, *data = self._meet(offer, data_connections, timeout)
        except DrovewayError as error:
            self.fail(error)
            raise self._reason() from None
        self._connection = TlsConnection(control) if isinstance(control, ssl.SSLSocket) else PlainConnection(control)
        self.start(self._read)
        if self._failure:  # aborted meanwhile, when there was nothing to stop yet
            self._hang_up()
        return data

    def _agree_on_tls(self, peer: ControlOffer) -> None:
        if (peer.fingerprint is None) != (self._identity is None):
            with_tls, without = ("this", "the other") if self._identity else ("the other", "this")
            raise PeerError(
                f"{with_tls} side uses TLS and {without} side does not: set the tls files on both hosts or on none"
            )

    def _meet(self, peer: ControlOffer, data_connections: int, timeout: float) -> list[socket.socket]:
        if (peer.token is None) == (self._settings.role == "source"):
            raise PeerError(
                f"both sides of this migration are its {self._settings.role}: pair a source with a destination"
            )
        if isinstance(self._meeting, Doorkeeper):
            return self._meeting.meet(peer, data_connections, timeout)
        dialler = self._meeting = Dialler(peer, data_connections, self._identity)
        self.check()
        return dialler.meet(timeout)

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Put the message on the connection. Raises ValueError when it is too large."""
        if self._failure:
            raise _afresh(self._failure)
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"a control message of {len(message)} bytes: the largest has {MAX_MESSAGE}")
        if self._connection is None:
            raise ValueError("connect first")
        try:
            with self._sending:
                self._connection.send(Header(Kind.MESSAGE, 0, len(message)).encode() + message)
        except OSError as error:
            self.lost(error.strerror or str(error))
            assert self._failure is not None
            raise _afresh(self._failure) from None

    def receive(self, timeout: float) -> bytes | None:
        """The next message; those that came before the peer left are still given out."""
        with self.changed:
            self.changed.wait_for(lambda: self._is_over() or bool(self._messages), timeout)
            # What the peer said before it left still counts: its last word may be that it has taken the guest.
            if not (self._messages and self._peer_left):
                self.check()
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._unread -= len(message)
            return message

    def _read(self) -> None:
        assert self._connection is not None
        expected = {Kind.MESSAGE, Kind.FAILED} | ({Kind.REFUSED} if self._settings.role == "source" else set())
        while True:
            header = frames.decode_header(self._connection.receive(frames.HEADER_SIZE), *expected)
            body = self._connection.receive(header.size)
            if header.kind is Kind.REFUSED:
                raise RemoteAccessError(f"the destination refused {_text(body)}")
            if header.kind is Kind.FAILED:
                raise PeerError(f"the other side gave up: {_text(body)}")
            with self.changed:
                self._messages.append(body)
                self._unread += len(body)
                if self._unread > _MAX_UNREAD:
                    raise PeerError(f"the other side sent more than {_MAX_UNREAD} bytes of control messages unasked")
                self.changed.notify_all()

    # --- failing ------------------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether there is a failure, which `check` raises."""
        return self._failure is not None

    def check(self) -> None:
        """Raise the first failure, once there is one, or what this host lacks."""
        if self._is_over():
            raise self._reason()

    def _is_over(self) -> bool:
        return self._failure is not None or self._trouble is not None

    def _reason(self) -> DrovewayError:
        reason = self._trouble or self._failure
        assert reason is not None
        return _afresh(reason)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait, with `changed` held, until `done` or the time is out (False). Raises the failure once there is one."""
        came = self.changed.wait_for(lambda: self._is_over() or done(), timeout)
        self.check()
        return came

    def start(self, task: Callable[[], None]) -> None:
        """Run a task in a thread of its own, which `close` waits for.

        Whatever ends it ends the connection too, so that no caller waits for a thread gone: an OSError is a lost peer,
        a PeerError the peer's fault, of which it is told. Only a HostMemoryError leaves it to the owner to end it.
        """
        thread = threading.Thread(target=self._run, args=(task,), name="droveway-tcp", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except RemoteAccessError as error:  # we are the one that was refused
            self.fail(error)
        except PeerError as error:
            self.fail(error, tell=str(error))
        except HostMemoryError as error:
            self._suffer(error)
        except OSError as error:
            self.lost(error.strerror or str(error))
        finally:
            self.fail(PeerLostError("a thread of the connection ended: see this worker's log for the reason"))

    def _suffer(self, error: DrovewayError) -> None:
        """Raise `error` to our owner, who can still tell the peer in its own words; until it hangs up, wait."""
        with self.changed:
            self._trouble = self._trouble or error
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._failure is not None)

    def fail(self, error: DrovewayError, *, tell: str | None = None, kind: Kind = Kind.FAILED) -> None:
        """Make `error` the failure unless there is one, wake everybody and hang up. Callable from any thread.

        `tell` is a last word to the peer: after FAILED its next call raises PeerError, after REFUSED (for a source
        only) RemoteAccessError. Without it the peer sees the connection end.
        """
        if tell is None:
            first = self._note(error)
        else:
            with self._sending:
                # Noted first, or the peer's hanging up would look like the cause.
                first = self._note(error)
                if first and self._connection:
                    with contextlib.suppress(OSError):  # it cannot be told; it will see the connection end
                        self._connection.send(frames.encode_text(kind, tell))
        if first:  # else the finder of the first does it
            self._hang_up()

    def lost(self, reason: str) -> None:
        """Fail because the way to the peer ended; a better reason that the peer may just be giving goes first."""
        reader = self._threads[0]
        if threading.current_thread() is not reader:
            reader.join(_REASON_SECONDS)
        error = PeerLostError(f"the connection to the other side ended: {reason}")
        if self._note(error, peer_left=True):
            self._hang_up()

    def _note(self, error: DrovewayError, *, peer_left: bool = False) -> bool:
        """Keep the first failure and wake everybody; whether this was it."""
        with self.changed:
            first = self._failure is None
            if first:
                self._failure, self._peer_left = error, peer_left
            self.changed.notify_all()
            return first

    def _hang_up(self) -> None:
        if self._meeting:
            self._meeting.stop()
        if self._connection:
            # Only our half: what we said last must arrive, and what the peer says last be read.
            self._connection.stop(socket.SHUT_WR)
        self._on_failure()

    # --- ending -------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Fail at once, whoever is in the middle of what; the peer sees the connection end."""
        self._peer_left = False
        self._note(PeerLostError("the connection was aborted on this side"))
        self._hang_up()

    def close(self) -> None:
        """Hang up, let our last message arrive (at most a second), end the threads."""
        if self._closed:
            return
        self._closed, self._peer_left = True, False
        self._note(PeerLostError("this endpoint is closed"))
        if self._sending.acquire(timeout=_LINGER_SECONDS):  # whoever is telling the peer why we failed may finish
            self._sending.release()
        self._hang_up()
        if self._connection:
            self._threads[0].join(_LINGER_SECONDS)  # the reader, which ends when the peer hangs up in its turn
            self._connection.stop()
        for thread in self._threads:
            thread.join()
        if self._connection:
            self._connection.close()
        if isinstance(self._meeting, Doorkeeper):
            self._meeting.close()


def _afresh(error: DrovewayError) -> DrovewayError:
    return type(error)(str(error))  # for each raise adds to its traceback


def _text(body: bytes) -> str:
    """The peer's words, made harmless for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in body.decode(errors="replace"))


def _listen(settings: ControlSettings) -> socket.socket:
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


def _advertised(settings: ControlSettings, port: int) -> tuple[Address, ...]:
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
