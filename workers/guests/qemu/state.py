"""QEMU's device state on its way: its own migration stream, without the RAM, in pieces through the workers' connection.

    source: migrate fd:stream          what is large and at rest (ROMs, video memory) goes while the guest runs
            ← pre-switchover           QEMU has paused the guest; it goes on when told to, once all RAM is over there
            migrate-continue           devices
            ← completed                the destination's QEMU said, by the return path, that it has all of it
    destination: migrate-incoming fd:stream … ← completed; paused still (-S)

A source that fails while it sends its devices resumes the guest by itself (QEMU does): it owns it still. One that waits
in pre-switchover leaves it paused until its migration is cancelled (`leave_no_migration`).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from config.errors import DrovewayError, HostError
from workers.guests.contract import Send
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.own_settings import ALL_OFF

#: Seconds for QEMU's own stream: device state and ROMs, 0.3 to 1 MiB, with a used framebuffer up to 17.
STATE_SECONDS = 60.0
#: Seconds in which a QEMU that takes no more has said why, or is seen to be gone.
_LAST_WORDS_SECONDS = 2.0
#: Bytes/s. QEMU's default of 128 MiB/s would lengthen the pause.
_BANDWIDTH = 10 << 30
#: Bytes that go on at a time; QEMU writes 32 KiB at once.
_PIECE = 256 << 10
#: late-block-activate: a destination takes the locks of its disks when it is told to run, not when it has loaded, so
#: that until then the source can always go on.
_ON = ("x-ignore-shared", "events", "late-block-activate", "return-path")


class _Stream:
    """A connection to QEMU that it knows as fd:stream, both ways; what it says goes to `send` by a thread."""

    def __init__(self, name: str, monitor: Monitor, send: Send) -> None:
        self._name = name
        self._ours, theirs = socket.socketpair()
        # A QEMU that takes nothing must not keep us for ever; 64-bit struct timeval.
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(STATE_SECONDS), 0))
        try:
            with theirs:
                monitor.send_descriptor("stream", theirs.fileno())
        except BaseException:
            self._ours.close()
            raise
        self._thread = threading.Thread(target=self._carry, args=(send,), name="device state", daemon=True)
        self._thread.start()

    def _carry(self, send: Send) -> None:
        with contextlib.ExitStack() as unless_ended:
            unless_ended.callback(self._hang_up)  # QEMU would wait for whoever takes no more
            # Whoever waits for this state's end learns the reason itself.
            with contextlib.suppress(OSError, DrovewayError):
                while piece := self._ours.recv(_PIECE):
                    send(piece)
                send(b"")
                unless_ended.pop_all()

    def write(self, piece: bytes) -> None:
        """Raises HostError when QEMU takes no more: it has ended, or given its migration up."""
        try:
            if piece:
                self._ours.sendall(piece)
            else:
                self._ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise HostError(f"QEMU of guest {self._name} takes no device state any more ({error.strerror})") from None

    def close(self) -> None:
        """QEMU sees the end of the connection."""
        self._hang_up()
        self._thread.join()
        self._ours.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # QEMU did it first
            self._ours.shutdown(socket.SHUT_RDWR)


class _State:
    """What both directions share: capabilities set, a stream, and the way in which QEMU's migration ends."""

    def __init__(self, name: str, monitor: Monitor, last_words: Callable[[], str], send: Send, *more: str) -> None:
        self._name = name
        self._monitor = monitor
        self._last_words = last_words
        self._send = send
        self._capabilities = (*_ON, *more)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            # What QEMU's own migration of the RAM left on would spoil this one.
            states = {**ALL_OFF, **dict.fromkeys(self._capabilities, True)}
            asked = [{"capability": capability, "state": state} for capability, state in states.items()]
            self._monitor.execute("migrate-set-capabilities", capabilities=asked)
            self._monitor.execute("migrate-set-parameters", max_bandwidth=_BANDWIDTH, tls_creds="")
            self._stream = _Stream(self._name, self._monitor, self._send)
            cleanup.callback(self._stream.close)
            self._begin(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _begin(self, cleanup: contextlib.ExitStack) -> None:
        """What is to be done once there is a stream; `cleanup` undoes it."""

    def _migration(self, *wanted: str) -> AbstractContextManager[Future[dict[str, Any]]]:
        """The coming event that says that the migration is in one of these states, or has failed."""
        return self._monitor.coming(_is_migration({*wanted, "failed", "cancelled"}), "move its device state")

    def _checked(self, event: dict[str, Any]) -> None:
        if event["event"] == "MIGRATION" and event["data"]["status"] in ("failed", "cancelled"):
            raise HostError(f"QEMU of guest {self._name} could not move its device state: {self._reason()}")

    def _reason(self) -> str:
        try:
            return str(self._monitor.execute("query-migrate")["error-desc"])
        except (HostError, KeyError):  # an incoming one that cannot load ends, and says why in its log
            return self._last_words()


class OutgoingQemuState(_State):
    """Implements `workers.guests.contract.OutgoingState`; `pause` is the guest's `stop`."""

    def __init__(self, name: str, monitor: Monitor, last_words: Callable[[], str], send: Send) -> None:
        super().__init__(name, monitor, last_words, send, "pause-before-switchover")
        self._stopping: Future[dict[str, Any]] | None = None

    def prepare(self) -> None:
        """Begin to send what can go while the guest runs; then QEMU pauses the guest, and drains its disks."""
        self._monitor.forget_events()  # a guest that is stopped in each round, so that it drains, has said STOP before
        self._stopping = self._cleanup.enter_context(self._monitor.coming(_is_pause, "pause the guest"))
        self._monitor.execute("migrate", uri="fd:stream")

    def prepared(self) -> bool:
        """Whether QEMU has paused the guest; its disks may have to be drained yet."""
        if self._stopping is None or not self._stopping.done():
            return False
        self._checked(self._stopping.result())
        return True

    def pause(self) -> None:
        """When this returns the guest is paused and its disks are drained."""
        if self._stopping is None:
            self.prepare()
        assert self._stopping is not None
        event = self._monitor.result(self._stopping, STATE_SECONDS, "pause the guest")
        if event["event"] == "STOP":
            with self._migration("pre-switchover") as paused:
                event = self._monitor.result(paused, STATE_SECONDS, "pause for the switch-over")
        self._checked(event)

    def save(self) -> None:
        """Let QEMU send its devices' state."""
        self._completed = self._cleanup.enter_context(self._migration("completed"))
        self._monitor.execute("migrate-continue", state="pre-switchover")

    def answer(self, piece: bytes) -> None:
        """The return path."""
        self._stream.write(piece)

    def completed(self) -> bool:
        """From then on QEMU does not resume the guest by itself any more."""
        if not self._completed.done():
            return False
        self._checked(self._completed.result())
        return True


class IncomingQemuState(_State):
    """Implements `workers.guests.contract.IncomingState`."""

    def _begin(self, cleanup: contextlib.ExitStack) -> None:
        self._completed = cleanup.enter_context(self._migration("completed"))
        self._monitor.execute("migrate-incoming", uri="fd:stream")

    def feed(self, piece: bytes) -> None:
        """To QEMU, which loads while it reads."""
        try:
            self._stream.write(piece)
        except HostError:
            wait([self._completed], _LAST_WORDS_SECONDS)  # it has failed or ended; that is heard of by another way
            self.loaded()  # it may know why
            raise

    def loaded(self) -> bool:
        """Raises HostError with what QEMU said last: one that cannot load what it reads ends."""
        if not self._completed.done():
            return False
        try:
            self._checked(self._completed.result())
        except HostError:
            raise HostError(
                f"QEMU of guest {self._name} could not load its device state: {self._last_words()}"
            ) from None
        return True


def last_words(*logs: Path) -> str:
    """QEMU says what is wrong in a line or two, and may add advice."""
    said = "".join(log.read_text("utf-8", "replace") for log in logs if log.exists())
    lines = [line.strip() for line in said.splitlines()]
    return "; ".join([line for line in lines if line][-3:]) or "it ended without a word"


def _is_pause(event: dict[str, Any]) -> bool:
    """QEMU says STOP before it drains the disks, and not of a guest that was paused already."""
    return event["event"] == "STOP" or _is_migration({"pre-switchover", "failed", "cancelled"})(event)


def _is_migration(states: Collection[str]) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "MIGRATION" and event["data"]["status"] in states
