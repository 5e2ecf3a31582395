"""The control socket of a guest of ours: QMP's words, one JSON object a line, on a unix socket of the host.

    guest   {"guest": "web-1", "control": 1}                         on connect: its name and this protocol's version
    client  {"execute": "stop", "arguments": {…}}
    guest   {"return": …}   or   {"error": {"desc": "…"}}            a descriptor, if any, travels with the line

Unlike QMP's, the socket serves several clients at once, so that a mover and an operator do not wait for each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from config.errors import DrovewayError, HostError, MessageError

VERSION = 1
#: Device state is a few hundred bytes for a guest of any size; nothing longer is meant well.
LINE_LIMIT = 64 * 1024
#: Linux' sun_path holds 108 bytes with the closing zero.
PATH_LIMIT = 107
CLIENTS = 32
IDLE_SECONDS = 60.0


class Reply(NamedTuple):
    """What a command gives back; the descriptor is closed here once it has been passed on."""

    value: Any = None
    descriptor: int | None = None


Commands = Mapping[str, Callable[[dict[str, Any]], Reply]]


def check_path(path: Path) -> None:
    """Raise HostError when no unix socket can have this path."""
    if (length := len(os.fsencode(path))) > PATH_LIMIT:
        raise HostError(
            f"the control socket {path} would have a path of {length} bytes, Linux allows {PATH_LIMIT}: "
            "give the host a shorter state directory or the guest a shorter name"
        )


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(path: Path, command: str, arguments: Mapping[str, Any], seconds: float) -> Reply:
    """Have the guest behind this socket do one thing.

    Raises HostError when it is gone, refuses, does not answer within so many seconds (for each line), or answers
    something else than this protocol.
    """
    held: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(os.fspath(path))
            greeting = _read(connection, bytearray(), held)
            if greeting is None or greeting.get("control") != VERSION:
                raise HostError(
                    f"the guest at {path} speaks another control version than {VERSION}: use its own release"
                )
            connection.sendall(_line({"execute": command, "arguments": dict(arguments)}))
            answer = _read(connection, bytearray(), held)
        return _reply(path, answer, held)
    except TimeoutError:
        raise HostError(f"the guest at {path} did not answer `{command}` within {seconds:g} s: is it stuck?") from None
    except (OSError, MessageError) as error:
        raise HostError(f"the guest at {path} cannot be asked to `{command}` ({error}): is it still up?") from None
    finally:
        for descriptor in held:
            os.close(descriptor)


def _reply(path: Path, answer: dict[str, Any] | None, held: list[int]) -> Reply:
    if answer is None:
        raise HostError(f"the guest at {path} hung up before it answered: is it still up?")
    if "return" not in answer:
        error = answer.get("error")
        raise HostError(str(error.get("desc")) if isinstance(error, dict) else f"the guest at {path} answered nonsense")
    return Reply(answer["return"], held.pop() if held else None)


# --- answering --------------------------------------------------------------------------------------------------------


class ControlServer:
    """Serves the commands to every client that connects, a thread each."""

    def __init__(self, path: Path, name: str, commands: Commands) -> None:
        """Listen at `path`, for this user only. Raises OSError, or HostError when the path is too long."""
        check_path(path)
        self._greeting = _line({"guest": name, "control": VERSION})
        self._commands = commands
        self._clients: dict[socket.socket, None] = {}  # the one that has been quiet longest first
        self._busy: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        # A full backlog turns a client with a time-out away at once (EAGAIN): it must hold a burst of them.
        self._listener.listen(socket.SOMAXCONN)

    def serve(self) -> None:
        """Accept clients; ends only by an exception, such as a signal handler raises."""
        while True:
            try:
                client = self._listener.accept()[0]
                client.settimeout(IDLE_SECONDS)
                with self._lock:
                    self._make_room()
                    self._clients[client] = None
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()
            except (OSError, RuntimeError):  # out of descriptors or threads: the guest must not die of its clients
                time.sleep(0.1)

    def _make_room(self) -> None:
        """Hang up on the client that has been quiet longest: those that hang must not lock out one that works."""
        idle = [client for client in self._clients if client not in self._busy]
        if len(self._clients) >= CLIENTS and idle:
            del self._clients[idle[0]]
            with contextlib.suppress(OSError):
                idle[0].shutdown(socket.SHUT_RDWR)

    def _attend(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            try:
                self._converse(client)
            except MessageError as error:
                client.sendall(_line({"error": {"desc": str(error)}}))
            finally:
                with self._lock:
                    self._clients.pop(client, None)
                    self._busy.discard(client)

    def _converse(self, client: socket.socket) -> None:
        pending = bytearray()
        client.sendall(self._greeting)
        while (message := _read(client, pending)) is not None:
            with self._lock:
                self._busy.add(client)
            _send(client, *self._answer(message))
            with self._lock:
                self._busy.discard(client)
                if client in self._clients:
                    self._clients[client] = self._clients.pop(client)

    def _answer(self, message: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        name, arguments = message.get("execute"), message.get("arguments", {})
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None or not isinstance(arguments, dict):
            return {"error": {"desc": f"no such command; this guest knows {', '.join(sorted(self._commands))}"}}, None
        try:
            reply = command(arguments)
        except DrovewayError as error:
            return {"error": {"desc": str(error)}}, None
        return {"return": reply.value}, reply.descriptor


# --- lines ------------------------------------------------------------------------------------------------------------


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _send(connection: socket.socket, message: dict[str, Any], descriptor: int | None) -> None:
    if descriptor is None:
        connection.sendall(_line(message))
        return
    try:
        socket.send_fds(connection, [_line(message)], [descriptor])
    finally:
        os.close(descriptor)


def _read(connection: socket.socket, pending: bytearray, held: list[int] | None = None) -> dict[str, Any] | None:
    """The next line, decoded; None when the other side closed. Descriptors that came along are put into `held`.

    Without `held` the kernel drops them. Bytes of a following line stay in `pending`. Raises MessageError on junk and
    on a line beyond the limit.
    """
    while (end := pending.find(b"\n")) < 0:
        if len(pending) > LINE_LIMIT:
            raise MessageError(f"a control line may have {LINE_LIMIT} bytes")
        if held is None:
            got = connection.recv(16384)
        else:
            got, descriptors, _, _ = socket.recv_fds(connection, 16384, 1, socket.MSG_CMSG_CLOEXEC)
            held += descriptors
        if not got:
            return None
        pending += got
    line = bytes(pending[:end])
    del pending[: end + 1]
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MessageError("a control line must be a JSON object")
    return message
