"""Messages between movers: what was said arrives, and nothing malformed is believed."""

import struct

import pytest

from config.errors import MessageError
from workers.protocol import Message, MessageType, decode, decode_regions, encode, encode_regions
from workers.transports.contract import MAX_MESSAGE, RemoteRegion
from workers.wire import WIRE

HELLO = Message(MessageType.HELLO, {"migration": "m1", "guest": "g1", "epoch": 3})


def frame(
    *, magic: bytes = b"DRVW", version: int = WIRE, kind: int = 5, zero: int = 0, body: bytes = b'{"round": 1}'
) -> bytes:
    return struct.pack("!4sBBHII", magic, version, kind, zero, len(body), 0) + body


def test_every_type_round_trips() -> None:
    bodies = {str: "x", int: 1}
    for kind in MessageType:
        from workers.protocol import _BODIES

        message = Message(kind, {key: bodies[type_] for key, type_ in _BODIES[kind].items()}, b"blob")
        got = decode(encode(message))
        assert (got.type, got.body, bytes(got.blob)) == (kind, message.body, b"blob")


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (b"", "shorter than its header"),
        (b"DRVW", "shorter than its header"),
        (frame(magic=b"HTTP"), "not a Droveway message"),
        (frame(zero=1), "not a Droveway message"),
        (frame(version=WIRE + 1), f"version {WIRE + 1}"),
        (frame(version=WIRE - 1), f"version {WIRE - 1}"),
        (frame() + b"x", "do not add up"),
        (frame(kind=0), "unknown type 0"),
        (frame(kind=99), "unknown type 99"),
        (frame(body=b"{"), "damaged body"),
        (frame(body=b"[1]"), "carries"),
        (frame(body=b"{}"), "carries"),
        (frame(body=b'{"round": 1, "more": 2}'), "carries"),
        (frame(body=b'{"round": "1"}'), "must be int"),
        (frame(body=b'{"round": true}'), "must be int"),
    ],
)
def test_a_malformed_frame_is_refused_in_words(damaged: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        decode(damaged)


def test_an_oversized_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(MessageError, match="exceeds"):
        encode(Message(MessageType.WRITTEN, {}, bytes(MAX_MESSAGE)))


def test_regions_round_trip_and_empty_or_keyless_ones_are_refused() -> None:
    regions = [RemoteRegion(0, 4096, 0x7F00_0000_0000, 7), RemoteRegion(8192, 16384, 8192, (1 << 32) - 1)]
    assert decode_regions(encode_regions(regions)) == regions
    for wrong in (RemoteRegion(4096, 4096, 0, 7), RemoteRegion(0, 4096, 0, 0)):
        with pytest.raises(MessageError, match="region"):
            decode_regions(encode_regions([wrong]))
    with pytest.raises(MessageError, match="truncated"):
        decode_regions(encode_regions(regions)[:-1])


def test_the_agreed_version_is_what_is_sent_and_what_is_taken() -> None:
    older = encode(HELLO, WIRE - 1)
    assert decode(older, WIRE - 1).body == HELLO.body
    with pytest.raises(MessageError, match=f"wire version {WIRE - 1}, and {WIRE} was agreed on"):
        decode(older)
