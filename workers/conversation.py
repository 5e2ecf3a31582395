"""Messages over a transport's control channel: encode, wait, check who is talking and what may come next."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from config.errors import MessageError, PeerError, PeerLostError, PeerRefusedError
from workers.pairing.contract import Ticket
from workers.protocol import Message, MessageType, decode, encode
from workers.transports.contract import Endpoint
from workers.wire import WIRE

#: How often a wait looks up to see whether it was cancelled, in seconds.
_LOOK_UP = 0.2
#: The same where something other than a message is waited for too, and a guest is paused meanwhile.
_GLANCE = 0.001
#: What a reason may look like: it becomes a word in records and metrics.
_REASON = re.compile(r"[a-z][a-z-]{0,40}")


def _out_of_turn(message: Message) -> PeerError | MessageError:
    if message.type is MessageType.ABORT:
        return PeerError("the other side gave the migration up")
    return MessageError(f"the other side said {message.type.name} out of turn")


def _reported(message: Message) -> PeerError:
    """The peer's own word for what went wrong there, once it is fit for a record and an operator's terminal."""
    said = "".join(letter if letter.isprintable() else "?" for letter in message.body["message"])
    reason = message.body["reason"]
    return PeerRefusedError(f"the other side failed: {said}", reason if _REASON.fullmatch(reason) else "peer")


class Conversation:
    """One side's end of the control channel of one attempt.

    `check` is called at least every 0.2 s of waiting; it raises to end the wait (the attempt was cancelled). `wire` is
    what both speak.
    """

    def __init__(self, endpoint: Endpoint, check: Callable[[], None], wire: int = WIRE) -> None:
        self._endpoint = endpoint
        self._wire = wire
        self._check = check
        self._aside: dict[MessageType, Callable[[Message], None]] = {}
        #: No wait for the peer lasts longer than this, in seconds: lowered while a guest is paused.
        self.patience = math.inf

    def say(self, kind: MessageType, body: Mapping[str, Any] | None = None, blob: bytes | memoryview = b"") -> None:
        """Send one message."""
        self._endpoint.send(encode(Message(kind, body or {}, blob), self._wire))

    @contextlib.contextmanager
    def aside(self, kind: MessageType, taker: Callable[[Message], None]) -> Iterator[None]:
        """Let messages of this kind, which may come at any time, go to `taker` alone for the time of the body."""
        self._aside[kind] = taker
        try:
            yield
        finally:
            del self._aside[kind]

    def hear(self, timeout: float) -> Message | None:
        """The next message, or None: none came in `timeout` seconds, or one that went aside.

        Raises PeerError when the peer reports its own failure.
        """
        message = self._receive(timeout)
        if message is not None and (taker := self._aside.get(message.type)) is not None:
            taker(message)
            return None
        return message

    def hear_nothing(self, timeout: float) -> None:
        """As `hear`, of a peer that has nothing to say now, unless that it failed or gave up, and what goes aside."""
        if (message := self.hear(timeout)) is not None:
            raise _out_of_turn(message)

    def _receive(self, timeout: float) -> Message | None:
        frame = self._endpoint.receive(timeout)
        message = None if frame is None else decode(frame, self._wire)
        if message is not None and message.type is MessageType.ERROR:
            raise _reported(message)
        return message

    def expect(self, kinds: Collection[MessageType], timeout: float) -> Message:
        """The next message, which must be one of `kinds`. Raises PeerLostError when none comes in `timeout` seconds."""
        timeout = min(timeout, self.patience)
        deadline = time.monotonic() + timeout
        while True:
            self._check()
            left = deadline - time.monotonic()
            message = self.hear(min(_LOOK_UP, max(0.0, left)))
            if message is not None and message.type in kinds:
                return message
            if message is not None:
                raise _out_of_turn(message)
            if left <= 0:
                names = " or ".join(kind.name for kind in kinds)
                raise PeerLostError(f"the other side did not say {names} within {timeout:g} s")

    def attend(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        """Take what comes aside until `done`, looked at each ms at least. Raises PeerLostError after `timeout` s."""
        deadline = time.monotonic() + min(timeout, self.patience)
        while not done():
            self._check()
            self.hear_nothing(_GLANCE)
            if time.monotonic() > deadline:
                raise PeerLostError(f"{what} within {timeout:g} s")

    def greet(self, ticket: Ticket, timeout: float) -> None:
        """Make sure that both ends mean the same attempt: a stale listener must not meet a fresh source.

        It ends on both sides within one message's way of each other, whichever began first: each has then said its own
        word and heard the other's. That makes it the moment by which two clocks are laid beside each other.
        """
        mine = {"migration": ticket.migration, "guest": ticket.guest, "epoch": ticket.epoch}
        self.say(MessageType.HELLO, mine)
        theirs = self.expect([MessageType.HELLO], timeout).body
        if theirs != mine:
            raise PeerError(f"the other side is on attempt {dict(theirs)}, this side on {mine}: retry the migration")

    def why_lost(self, lost: PeerLostError) -> PeerError:
        """What the peer said of its own failure before it left, else `lost`: who writes notices the end first."""
        try:
            while self._receive(0) is not None:  # whatever else it said is for nobody any more
                pass
        except PeerLostError:
            pass
        except PeerError as said:
            return said
        except MessageError:
            pass
        return lost

    def report_failure(self, reason: str, message: str) -> None:
        """Tell the peer why this side gives up, if it still listens."""
        with contextlib.suppress(PeerError, MessageError):  # a deaf peer notices the connection's end instead
            self.say(MessageType.ERROR, {"reason": reason, "message": message[:2000]})
