"""One connection as the endpoint sees it: whole buffers and whole rows of guest memory, plain or through TLS.

Guest memory is never copied in Python. On a plain connection the kernel gathers and scatters it by addresses that
numpy computed (sendmsg, recvmsg; sendfile for long rows); through TLS OpenSSL reads it in place, and writes it there
where it is locked. Memory that is not locked may not exist yet, and its directory may be full; see `_Landing`.
Sockets block without a time-out; `stop` from another thread ends a blocked call with an OSError, and so do the kernel's
own timers once the peer has vanished.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workers.ram import Ram
from workers.transports.tcp.frames import LARGE_ROW, Frame

#: A peer that vanished (host down, cable out) is noticed after about 10 s, idle or not: 5 s until the first probe, then
#: three at 2 s; sent data may stay unconfirmed as long.
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 5, 2, 3
_USER_TIMEOUT_MS = 10_000
#: What a TLS write is given at once when rows are small: they are copied together here, since each call makes a record.
_TLS_GATHER = 256 << 10
#: What is received at once on its way to a RAM file: small enough to stay in the processor's cache until it is written.
_BUFFER = 1 << 20

Array = npt.NDArray[np.int64]


class Connection(Protocol):
    """A connection after its handshake. One thread sends and one receives, at the same time."""

    def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def receive(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises OSError when the connection ends before."""
        ...

    def stop(self, how: int = socket.SHUT_RDWR) -> None:
        """End blocked and later calls on either side of the connection; harmless when repeated."""
        ...

    def close(self) -> None:
        """Give the socket back. No thread may use the connection any more."""
        ...


class Stream(Connection, Protocol):
    """A connection that carries guest memory."""

    def send_frame(self, frame: Frame) -> None:
        """Send a WRITES frame: its head, then the rows out of guest memory."""
        ...

    def receive_rows(self, address: Array, length: Array) -> None:
        """Fill these rows of guest memory, which the caller has checked. Raises HostMemoryError: it does not fit."""
        ...

    def resent(self) -> int:
        """Segments that the kernel had to send again since the connection was made; 0 once it is closed."""
        ...


def set_options(connection: socket.socket) -> None:
    """Small messages at once, and a vanished peer noticed.

    Buffer sizes are left to the kernel, which tunes them up to tcp_rmem; a size set by hand stops that, and is capped
    by rmem_max (208 KiB on most hosts).
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


#: struct tcp_info of <linux/tcp.h>: where tcpi_total_retrans stands, 32 bits.
_TOTAL_RETRANS = 100


def _resent(connection: socket.socket) -> int:
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS + 4)
    except OSError:  # closed
        return 0
    return int.from_bytes(told[_TOTAL_RETRANS:], sys.byteorder)


class _Landing:
    """Rows on their way into RAM files, through one buffer that is used again and again.

    Bulk round of 800 MiB over loopback, digests kept, medians of 6 against the mapping, alternating: 1.06 s against
    1.16 s, 1.33 s of processor at the destination against 1.41; through TLS 1.88 against 2.06, 2.63 against 2.99. There
    are no page faults, and no page that is written whole is zeroed first. 256 KiB at a time cost 17 % more processor.
    A full RAM directory is ENOSPC here; through the mapping it would be a SIGBUS where OpenSSL writes.
    """

    def __init__(self, ram: Ram, fill: Callable[[memoryview], None]) -> None:
        """`fill` receives exactly as many bytes as it is given room for."""
        self._ram = ram
        self._fill = fill
        self._buffer = memoryview(bytearray(_BUFFER))

    def receive(self, address: Array, length: Array) -> None:
        """Fill these rows. Raises HostMemoryError, and what `fill` raises."""
        rest, held = int(length.sum()), self._buffer[:0]
        for start, size in zip(address.tolist(), length.tolist(), strict=True):
            at, end = start, start + size
            while at < end:
                if not held:
                    held = self._buffer[: min(rest, _BUFFER)]
                    self._fill(held)
                    rest -= len(held)
                piece = held[: end - at]
                self._ram.write(at, piece)
                at, held = at + len(piece), held[len(piece) :]


def _ended() -> ConnectionError:
    return ConnectionResetError(errno.ECONNRESET, "the other side closed the connection")


# --- plain ------------------------------------------------------------------------------------------------------------


class _MessageHeader(ctypes.Structure):
    """struct msghdr of <sys/socket.h>, 64-bit Linux."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.sendmsg, _libc.recvmsg):
    _call.argtypes = [ctypes.c_int, ctypes.POINTER(_MessageHeader), ctypes.c_int]
    _call.restype = ctypes.c_ssize_t

Vectors = npt.NDArray[np.uint64]
"""Shape (n, 2): struct iovec, address and length of each buffer."""


class PlainConnection:
    """A TCP connection without TLS."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._socket = connection

    def send(self, data: bytes) -> None:
        """Send all of it, blocking."""
        self._socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = bytearray(size)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            if not got:
                raise _ended()
            view = view[got:]

    def stop(self, how: int = socket.SHUT_RDWR) -> None:
        """End blocked and later calls."""
        stop(self._socket, how)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class PlainStream(PlainConnection):
    """Guest memory over a TCP connection without TLS."""

    def __init__(self, connection: socket.socket, ram: Ram, *, locked: bool = False) -> None:
        """`locked`: all memory that is received into is locked, so it exists."""
        super().__init__(connection)
        self._ram = ram
        self._landing = None if locked else _Landing(ram, self._fill)
        self._has_sendfile = True

    def send_frame(self, frame: Frame) -> None:
        """Long rows by sendfile, page cache to wire; short ones gathered by one sendmsg."""
        if frame.large and self._has_sendfile:
            self._socket.sendall(frame.head, socket.MSG_MORE)
            for start, length in zip(frame.start.tolist(), frame.length.tolist(), strict=True):
                self._send_row(start, start + length)
        else:
            self._gather(frame.head, frame.start, frame.length)

    def resent(self) -> int:
        """As the kernel counts."""
        return _resent(self._socket)

    def _gather(self, head: bytes, start: Array, length: Array) -> None:
        first = np.frombuffer(head, np.uint8)
        vectors = np.empty((len(start) + 1, 2), np.uint64)
        vectors[0] = first.ctypes.data, len(head)
        vectors[1:, 0], vectors[1:, 1] = start + self._ram.address, length
        self._transfer(_libc.sendmsg, vectors, socket.MSG_NOSIGNAL)

    def _send_row(self, start: int, end: int) -> None:
        while start < end and self._has_sendfile:
            fd, offset, size = self._ram.extents(start, end)[0]
            try:
                step = os.sendfile(self._socket.fileno(), fd, offset, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._has_sendfile = False  # a hugetlbfs file, say: it can be mapped, but not spliced
            else:
                if not step:
                    raise OSError(errno.EIO, "a RAM file of this guest became shorter")
                start += step
        if start < end:
            self._gather(b"", np.array([start]), np.array([end - start]))

    def receive_rows(self, address: Array, length: Array) -> None:
        """Locked memory and short rows scattered by one recvmsg, wire to page cache; long rows by way of a buffer."""
        # A write per page would give up the interpreter 256 times a MiB, to wait for whoever digests each time.
        if self._landing and int(length.min()) >= LARGE_ROW:
            self._landing.receive(address, length)
            return
        vectors = np.empty((len(address), 2), np.uint64)
        vectors[:, 0], vectors[:, 1] = address + self._ram.address, length
        try:
            self._transfer(_libc.recvmsg, vectors, socket.MSG_WAITALL)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            # What would be a SIGBUS for us is an EFAULT for the kernel: a page of ours that it could not get.
            raise self._ram.too_small(errno.ENOSPC) from None

    def _transfer(self, call: Callable[..., int], vectors: Vectors, flags: int) -> None:
        while len(vectors):
            message = _MessageHeader(vectors=vectors.ctypes.data, vector_count=len(vectors))
            done = call(self._socket.fileno(), ctypes.byref(message), flags)
            if not done:
                raise _ended()
            if done < 0:
                code = ctypes.get_errno()
                if code == errno.EINTR:
                    continue
                raise OSError(code, os.strerror(code))
            vectors = remaining(vectors, done)


def remaining(vectors: Vectors, done: int) -> Vectors:
    """What remains of the buffers once `done` bytes were moved (a signal or the end of a buffer cut the call short)."""
    ends = np.cumsum(vectors[:, 1])
    at = int(np.searchsorted(ends, np.uint64(done), "right"))
    rest = vectors[at:].copy()
    if len(rest):
        inside = np.uint64(done - (int(ends[at - 1]) if at else 0))
        rest[0, 0] += inside
        rest[0, 1] -= inside
    return rest


# --- TLS --------------------------------------------------------------------------------------------------------------


class TlsConnection:
    """A TLS connection whose handshake is done.

    OpenSSL allows one call at a time on a connection, so the socket does not block: each try is made under a lock, and
    the wait for the wire happens outside of it.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        connection.settimeout(0)
        self._socket = connection
        self._lock = threading.Lock()

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it; OpenSSL takes one record of 16 KiB at a time."""
        view = memoryview(data)
        while view:
            view = view[self._try(self._socket.send, view) :]

    def receive(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = bytearray(size)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._try(self._socket.recv_into, view)
            if not got:
                raise _ended()
            view = view[got:]

    def _try(self, call: Callable[[memoryview], int], view: memoryview) -> int:
        while True:
            try:
                with self._lock:
                    return call(view)
            except ssl.SSLWantReadError:
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            poll = select.poll()
            poll.register(self._socket, event)
            poll.poll()

    def stop(self, how: int = socket.SHUT_RDWR) -> None:
        """End blocked and later calls."""
        stop(self._socket, how)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class TlsStream(TlsConnection):
    """Guest memory over a TLS connection."""

    def __init__(self, connection: ssl.SSLSocket, ram: Ram, *, locked: bool = False) -> None:
        """`locked`: all memory that is received into is locked, so it exists."""
        super().__init__(connection)
        self._ram = ram
        self._landing = None if locked else _Landing(ram, self._fill)

    def send_frame(self, frame: Frame) -> None:
        """Long rows straight from guest memory; short ones are put together first."""
        self.send(frame.head)
        rows = _views(self._ram, frame.start, frame.length)
        if frame.large:
            for row in rows:
                self.send(row)
            return
        gathered: list[memoryview] = []
        size = 0
        for row in rows:
            gathered.append(row)
            size += len(row)
            if size >= _TLS_GATHER:
                self.send(b"".join(gathered))
                gathered, size = [], 0
        self.send(b"".join(gathered))

    def receive_rows(self, address: Array, length: Array) -> None:
        """Decrypted straight into locked memory; else by way of a buffer."""
        if self._landing:
            self._landing.receive(address, length)
            return
        for row in _views(self._ram, address, length):
            self._fill(row)

    def resent(self) -> int:
        """As the kernel counts."""
        return _resent(self._socket)


def _views(ram: Ram, start: Array, length: Array) -> Iterator[memoryview]:
    for low, size in zip(start.tolist(), length.tolist(), strict=True):
        yield ram.view[low : low + size]


def stop(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Shut a socket down so that threads blocked on it return; one that is not connected, or closed, is left alone."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown: it drops the TLS session, and a thread still receiving would put ciphertext in memory.
        socket.socket.shutdown(connection, how)
