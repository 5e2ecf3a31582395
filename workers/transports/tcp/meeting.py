"""How two endpoints find each other: the source dials, the destination lets in whoever knows the one-time token.

    source                                   destination
    TCP connect (and TLS)          ────►     accept; each caller in a thread of its own, with a short deadline
    HELLO  magic, version,         ────►     compared in constant time; the first set that knows the token uses it up
           token, set, index, count
                                   ◄────     WELCOME  magic, version, verdict

Index 0 is the control connection, 1 to count the data connections; all of one source carry the same random set name.
A caller that says anything else, or nothing, is dropped and never keeps the right one waiting.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from config.errors import PeerError, PeerLostError
from workers.transports.tcp.frames import VERSION
from workers.transports.tcp.offer import Address, ControlOffer
from workers.transports.tcp.streams import set_options, stop
from workers.transports.tcp.tls import TlsIdentity

_MAGIC = b"DRWY"
_PREFIX = struct.Struct(">4sB")
_HELLO = struct.Struct(">32s16sHH")
_WELCOME = struct.Struct(">4sBB")

#: A caller has this long to say hello; the source sends it at once.
_HELLO_SECONDS = 5.0
#: One try at one address; a SYN that is dropped is sent again after 1 s and 3 s.
_DIAL_SECONDS = 5.0
_REDIAL_SECONDS = 0.25
_HANG_UP_SECONDS = 1.0
#: Callers that have not said hello yet; beyond it the oldest is dropped, since the right one needs milliseconds.
_MAX_CALLERS = 32


class Verdict(IntEnum):
    """The destination's answer to a hello."""

    WELCOME = 1
    WRONG_TOKEN = 2
    TOKEN_USED = 3
    WRONG_CHANNELS = 4
    WRONG_VERSION = 5
    WRONG_CERTIFICATE = 6


_MEANING = {
    Verdict.WRONG_TOKEN: "a wrong token; pair again, so that both sides hold the offers of one migration",
    Verdict.TOKEN_USED: "a token that another connection had used before; pair again to get a new one",
    Verdict.WRONG_CHANNELS: "another number of channels than the offers agree on",
    Verdict.WRONG_VERSION: "another version of the tcp transport; bring both workers to the same release",
    Verdict.WRONG_CERTIFICATE: "another certificate than its offer announced; check the tls settings of the source",
}


class _Sockets:
    """The sockets of a meeting under way, so that an abort from another thread ends the calls that block on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.stopped = threading.Event()

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
            if self.stopped.is_set():
                stop(connection)

    def discard(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def stop(self) -> None:
        with self._lock:
            self.stopped.set()
            for connection in self._open:
                stop(connection)


# --- source -----------------------------------------------------------------------------------------------------------


class Dialler:
    """The source's side of one meeting."""

    def __init__(self, peer: ControlOffer, channels: int, identity: TlsIdentity | None) -> None:
        self._peer = peer
        self._channels = channels
        self._identity = identity
        self._set = secrets.token_bytes(16)
        self._sockets = _Sockets()

    def stop(self) -> None:
        """Make `meet` raise soon; from any thread."""
        self._sockets.stop()

    def meet(self, timeout: float) -> list[socket.socket]:
        """Control connection first, then the data connections. Raises PeerError, PeerLostError as Endpoint.connect."""
        deadline = time.monotonic() + timeout
        trouble = "no address offered"
        while not self._sockets.stopped.is_set():
            refused = None
            for address in self._peer.addresses:
                try:
                    return self._dial_all(address, deadline)
                except PeerError as error:
                    refused = (
                        error  # a host that is not the right one may have the first address, and the right one the next
                    )
                except OSError as error:
                    trouble = f"{address}: {error}"
            if refused:
                raise refused
            if time.monotonic() + _REDIAL_SECONDS >= deadline:
                break
            self._sockets.stopped.wait(_REDIAL_SECONDS)
        raise PeerLostError(
            f"the destination did not answer within {timeout:g} s ({trouble}): check that its worker runs and that a "
            "firewall lets the tcp transport through"
        )

    def _dial_all(self, address: Address, deadline: float) -> list[socket.socket]:
        with contextlib.ExitStack() as opened:
            connections = []
            for index in range(self._channels + 1):
                connection = self._dial(address, index, deadline)
                opened.callback(connection.close)
                connections.append(connection)
            opened.pop_all()
            return connections

    def _dial(self, address: Address, index: int, deadline: float) -> socket.socket:
        seconds = min(_DIAL_SECONDS, _left(deadline))
        connection = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        self._sockets.add(connection)
        known = connection
        try:
            set_options(connection)
            connection.settimeout(seconds)
            connection.connect((address.host, address.port))
            # The destination may not be waiting yet: from here on its own time is our time.
            connection.settimeout(_left(deadline))
            if self._identity:
                connection = wrapped = self._identity.wrap(connection, accepted=False)
                self._sockets.add(wrapped)
                self._identity.shake_hands(wrapped)
                if not self._identity.shows(wrapped, self._peer.fingerprint):
                    raise PeerError(
                        "the destination's certificate is not the one in its offer: somebody else answers there"
                    )
            self._say_hello(connection, index, deadline)
        except BaseException:
            connection.close()
            raise
        finally:
            self._sockets.discard(known)
            self._sockets.discard(connection)
        return connection

    def _say_hello(self, connection: socket.socket, index: int, deadline: float) -> None:
        assert self._peer.token is not None
        hello = _HELLO.pack(self._peer.token, self._set, index, self._channels)
        connection.sendall(_PREFIX.pack(_MAGIC, VERSION) + hello)
        try:
            magic, _, verdict = _WELCOME.unpack(_receive(connection, _WELCOME.size, deadline))
        except ssl.SSLError as error:
            # In TLS 1.3 the client's handshake is over before the server has judged its certificate.
            raise PeerError(
                f"the destination refused this host's certificate ({error.reason}): check both CAs"
            ) from None
        if magic != _MAGIC:
            raise PeerError("something that is not a Droveway worker answers at the destination's address")
        if verdict != Verdict.WELCOME:
            raise PeerError(f"the destination refused the connection: {_MEANING.get(verdict, f'verdict {verdict}')}")


# --- destination ------------------------------------------------------------------------------------------------------


@dataclass
class _Arrivals:
    """Who has come so far: the set that used the token, and its connections by index."""

    name: bytes | None = None
    connections: dict[int, socket.socket] = field(default_factory=dict)


class Doorkeeper:
    """The destination's side of one meeting. Owns the listening socket from `offer` on."""

    def __init__(self, listener: socket.socket, token: bytes, identity: TlsIdentity | None) -> None:
        self._listener = listener
        self._token = token
        self._identity = identity
        self._sockets = _Sockets()
        self._sockets.add(listener)
        self._lock = threading.Lock()
        self._arrivals = _Arrivals()
        self._callers: dict[threading.Thread, socket.socket] = {}
        self._trouble = ""

    def stop(self) -> None:
        """Make `meet` raise soon; from any thread."""
        self._sockets.stop()

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        self.stop()
        self._listener.close()

    def meet(self, peer: ControlOffer, channels: int, timeout: float) -> list[socket.socket]:
        """Control connection first, then the data connections. Raises PeerError, PeerLostError as Endpoint.connect."""
        deadline = time.monotonic() + timeout
        try:
            self._let_in(lambda connection: self._receive_caller(connection, peer, channels), deadline)
        finally:
            self.close()
            for thread in list(self._callers):
                thread.join()
        arrived = self._arrivals.connections
        if len(arrived) == channels + 1:
            return [arrived[index] for index in range(channels + 1)]
        for connection in arrived.values():
            connection.close()
        if self._trouble:
            raise PeerError(f"the source did not come within {timeout:g} s; refused meanwhile: {self._trouble}")
        raise PeerLostError(
            f"the source did not come within {timeout:g} s: check that its worker runs and can reach us"
        )

    def _let_in(self, receive: Callable[[socket.socket], None], deadline: float) -> None:
        while not self._sockets.stopped.is_set() and (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(left)
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Stopped, out of time (the loop's condition tells), or a passing trouble such as no free descriptor.
                self._sockets.stopped.wait(min(_REDIAL_SECONDS, max(0.0, deadline - time.monotonic())))
                continue
            self._drop_oldest()
            thread = threading.Thread(target=receive, args=(connection,), name="droveway-tcp-door", daemon=True)
            with self._lock:
                self._callers[thread] = connection
            self._sockets.add(connection)
            thread.start()

    def _drop_oldest(self) -> None:
        with self._lock:
            if len(self._callers) < _MAX_CALLERS:
                return
            thread, connection = next(iter(self._callers.items()))
        stop(connection)
        thread.join(_REDIAL_SECONDS)

    def _receive_caller(self, connection: socket.socket, peer: ControlOffer, channels: int) -> None:
        """One caller, in its own thread: into the arrivals, or closed."""
        known, welcome = connection, False
        try:
            deadline = time.monotonic() + _HELLO_SECONDS
            set_options(connection)
            connection.settimeout(_HELLO_SECONDS)
            if self._identity:
                connection = wrapped = self._identity.wrap(connection, accepted=True)
                self._sockets.add(wrapped)
                with self._lock:
                    self._callers[threading.current_thread()] = wrapped
                self._identity.shake_hands(wrapped)
                if not self._identity.shows(wrapped, peer.fingerprint):
                    self._refuse(wrapped, Verdict.WRONG_CERTIFICATE)
                    return
            welcome = self._answer(connection, channels, deadline)
        except (OSError, PeerError) as error:
            # A port scanner's junk ends here too; it only matters if the right one never comes.
            self._trouble = str(error)
        finally:
            if not welcome:
                _hang_up(connection)
            self._sockets.discard(known)
            self._sockets.discard(connection)
            with self._lock:
                self._callers.pop(threading.current_thread())

    def _answer(self, connection: socket.socket, channels: int, deadline: float) -> bool:
        magic, version = _PREFIX.unpack(_receive(connection, _PREFIX.size, deadline))
        if magic != _MAGIC:
            raise PeerError("a caller that is not a Droveway worker")
        if version != VERSION:
            return self._refuse(connection, Verdict.WRONG_VERSION)
        token, name, index, count = _HELLO.unpack(_receive(connection, _HELLO.size, deadline))
        with self._lock:
            verdict = self._judge(token, name, index, count, channels)
        if verdict is not Verdict.WELCOME:
            return self._refuse(connection, verdict)
        connection.sendall(_WELCOME.pack(_MAGIC, VERSION, verdict))
        self._sockets.discard(connection)  # from here on it is no caller: the end of the meeting must not stop it
        with self._lock:
            older = self._arrivals.connections.pop(index, None)  # the source dialled again after a broken try
            self._arrivals.connections[index] = connection
            complete = len(self._arrivals.connections) == channels + 1
        if older:
            older.close()
        if complete:
            self.stop()
        return True

    def _refuse(self, connection: socket.socket, verdict: Verdict) -> bool:
        self._trouble = f"a caller with {_MEANING[verdict]}"
        connection.sendall(_WELCOME.pack(_MAGIC, VERSION, verdict))
        return False

    def _judge(self, token: bytes, name: bytes, index: int, count: int, channels: int) -> Verdict:
        if not hmac.compare_digest(token, self._token):
            return Verdict.WRONG_TOKEN
        if count != channels or index > count:
            return Verdict.WRONG_CHANNELS
        if self._arrivals.name not in (None, name):
            return Verdict.TOKEN_USED
        self._arrivals.name = name
        return Verdict.WELCOME


# --- both -------------------------------------------------------------------------------------------------------------


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("out of time")
    return left


def _hang_up(connection: socket.socket) -> None:
    """Close, but read first what the caller still sends: closing over unread bytes resets the connection, and the
    caller would lose the answer that says why.
    """
    stop(connection, socket.SHUT_WR)
    deadline = time.monotonic() + _HANG_UP_SECONDS
    with contextlib.suppress(OSError):
        while True:
            connection.settimeout(_left(deadline))
            if not socket.socket.recv(connection, 4096):  # the bytes as they are, also of a TLS handshake that failed
                break
    connection.close()


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes by the deadline, however small the pieces that they come in."""
    data = b""
    while len(data) < size:
        connection.settimeout(_left(deadline))
        got = connection.recv(size - len(data))
        if not got:
            raise ConnectionResetError("the other side hung up before the handshake was over")
        data += got
    return data
