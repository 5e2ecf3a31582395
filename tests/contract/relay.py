"""A wire that tests can hold and cut: it stands between a tcp source and its destination."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Relay:
    """Listens on loopback and passes everything on to `target`, both ways."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def hold(self) -> None:
        """Pass nothing on, lose nothing."""
        self._flows.clear()

    def release(self) -> None:
        """Pass on what was held, and all that follows."""
        self._flows.set()

    def cut(self) -> None:
        """Reset every connection."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def close(self) -> None:
        """Cut, and leave nothing behind."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for connection in [self._listener, *self._sockets]:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [near, far]
            self._start(lambda near=near, far=far: self._pump(near, far))
            self._start(lambda near=near, far=far: self._pump(far, near))

    def _pump(self, origin: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := origin.recv(1 << 18):
                self._flows.wait()
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def _start(self, target) -> None:
        thread = threading.Thread(target=target, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()
