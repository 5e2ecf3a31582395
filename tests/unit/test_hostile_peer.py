"""What a broken or hostile peer says ends the attempt with a sentence, and hides nothing that an honest one said."""

from __future__ import annotations

import struct
from collections import deque
from typing import cast

import numpy as np
import pytest

from config.errors import HostError, MessageError, PeerError, PeerLostError
from workers import destination, source
from workers.conversation import Conversation
from workers.digests import PageDigests
from workers.protocol import Message, MessageType, decode, encode
from workers.transports.contract import Endpoint
from workers.wire import WIRE


class Line:
    """An endpoint that gives out these frames, and then says that the peer has left."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = deque(frames)

    def send(self, message: bytes) -> None:
        pass

    def receive(self, timeout: float) -> bytes:
        if not self._frames:
            raise PeerLostError("the connection ended")
        return self._frames.popleft()


class Deaf:
    """Takes what goes aside for a QEMU that takes no more."""

    def __init__(self) -> None:
        self.heard = False

    def __call__(self, message: Message) -> None:
        self.heard = True
        raise HostError("QEMU takes no more")


def talk(*messages: Message) -> Conversation:
    return Conversation(cast(Endpoint, Line(*map(encode, messages))), lambda: None)


def failure(text: str) -> Message:
    return Message(MessageType.ERROR, {"reason": "host", "message": text})


def test_a_body_too_deep_to_be_read_is_refused() -> None:
    body = b"[" * 100_000
    with pytest.raises(MessageError, match="damaged body"):
        decode(struct.pack("!4sBBHII", b"DRVW", WIRE, MessageType.HELLO, 0, len(body), 0) + body)


def test_the_reason_that_the_peer_gave_is_told_and_not_that_it_left() -> None:
    said = talk(Message(MessageType.ROUND_DONE, {"round": 1}), failure("memory cannot be locked"))
    assert "memory cannot be locked" in str(said.why_lost(PeerLostError("the connection ended")))


@pytest.mark.parametrize(
    ("said", "kept"), [("verify-ram", "verify-ram"), ("../x", "peer"), ("a" * 99, "peer"), ("", "peer")]
)
def test_the_peers_reason_is_kept_when_it_can_be_one(said: str, kept: str) -> None:
    with pytest.raises(PeerError) as caught:
        talk(Message(MessageType.ERROR, {"reason": said, "message": "no"})).hear(0)
    assert caught.value.reason == kept


def test_nor_is_it_lost_behind_what_goes_aside_to_somebody_who_takes_no_more() -> None:
    said = talk(Message(MessageType.STATE, {}, b"piece"), failure("the twin ended"))
    with said.aside(MessageType.STATE, taken := Deaf()):
        assert "the twin ended" in str(said.why_lost(PeerLostError("the connection ended")))
    assert not taken.heard


def test_messages_go_aside_for_the_time_of_the_body_alone() -> None:
    piece = Message(MessageType.STATE, {}, b"piece")
    said = talk(piece, piece)
    with pytest.raises(HostError), said.aside(MessageType.STATE, Deaf()):
        said.hear_nothing(0)
    with pytest.raises(MessageError, match="STATE out of turn"):
        said.hear_nothing(0)


def test_a_peer_that_left_without_a_word_is_lost() -> None:
    lost = PeerLostError("the connection ended")
    assert talk().why_lost(lost) is lost


def test_the_peers_words_cannot_drive_an_operators_terminal() -> None:
    with pytest.raises(PeerError) as caught:
        talk(failure("\x1b[2Jgone")).hear(0)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 7, 17])
def test_digests_that_were_cut_are_refused(size: int) -> None:
    memory = np.zeros(1 << 20, np.uint8)
    with pytest.raises(MessageError, match="no whole number"):
        destination._compare(PageDigests(memory.data, memory.size), bytes(size), 1 << 20)


@pytest.mark.parametrize("blob", [b"", bytes(7), bytes(24)])
def test_hashes_of_another_memory_are_refused(blob: bytes) -> None:
    with pytest.raises(MessageError):
        source._ask_what_is_held(talk(Message(MessageType.HELD, {}, blob)), 128 << 10)()
