"""What the two movers say to each other over a connected transport, as one table.

    source                                       destination
      HELLO ───────────────────────────────────►  is this the attempt that I am paired for?
      ◄─────────────────────────────────── HELLO
      GOING_ON seconds ────────────────────────►  (now and then, until it is let onto the links) wait so long
      REGISTER_REQUEST ranges ─────────────────►  make them regions; lock them, where that is due
      ◄───────────────── REGISTER_RESULT regions
      ══ one-sided writes ══════════════════════
      RELEASE ranges ──────────────────────────►  deregister the regions that make these up (flushed before)
      WRITTEN ranges (flushed before) ─────────►  digest them, beside whatever else goes on
      ROUND_END n ─────────────────────────────►
      ◄───────────────────────────── ROUND_DONE n  all that was written up to here is digested
      HELD_REQUEST ────────────────────────────►  (content tracker only) what does your memory hold?
      ◄────────────────────────────── HELD digests
    engine=qemu, instead of all of these (qemu_engine/):
      CALLING certificate's name ──────────────►  let QEMU wait for it
      ◄──────────────── LISTENING address, port
      GOING_ON seconds ────────────────────────►  (now and then) wait so long for the next word, or for QEMU's end
      ══ QEMU's own migration stream ═══════════  device state and all; then READY, as below
      … the switch-over begins: device state that is large and at rest goes while the guest still runs …
      STATE piece ─────────────────────────────►  load
      ◄────────────────────────────── STATE piece  what the guest's process there says back
      … the guest is paused, the last round written …
      DIGESTS of all chunks ───────────────────►  compare
      STATE piece … STATE, empty: the last ────►  load the rest, journal READY
      ◄──────────────────────────────────── READY
      GIVEN ───────────────────────────────────►  journal TAKEN, resume
      ◄──────────────────────────────────── TAKEN
    either: ABORT, ERROR reason

A frame is `!4sBBHII`: magic, version, type, zero, length of a JSON body, length of a binary part. The version is the
one that pairing agreed on (workers/wire.py); a peer of another one is refused in words. 2 brought RELEASE; 3 made
STATE a stream, both ways and at any time, gave the digests a message of their own, and brought CALLING and LISTENING;
4 brought GOING_ON; 5 is the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from config.errors import MessageError
from workers.transports.contract import MAX_MESSAGE, RemoteRegion
from workers.wire import WIRE

_MAGIC = b"DRVW"
_HEADER = struct.Struct("!4sBBHII")
_REGION = np.dtype([("start", ">u8"), ("end", ">u8"), ("address", ">u8"), ("key", ">u8")])


class MessageType(IntEnum):
    """Zero is invalid, so that a cleared buffer is never taken for a message."""

    HELLO = 1
    REGISTER_REQUEST = 2
    REGISTER_RESULT = 3
    WRITTEN = 4
    ROUND_END = 5
    ROUND_DONE = 6
    STATE = 7
    READY = 8
    GIVEN = 9
    TAKEN = 10
    ABORT = 11
    ERROR = 12
    HELD_REQUEST = 13
    HELD = 14
    RELEASE = 15
    DIGESTS = 16
    CALLING = 17
    LISTENING = 18
    GOING_ON = 19


#: Which JSON keys each type carries, and their types. More, fewer, or others: refused.
_BODIES: Mapping[MessageType, Mapping[str, type]] = {
    MessageType.HELLO: {"migration": str, "guest": str, "epoch": int},
    MessageType.REGISTER_REQUEST: {},
    MessageType.REGISTER_RESULT: {},
    MessageType.WRITTEN: {},
    MessageType.ROUND_END: {"round": int},
    MessageType.ROUND_DONE: {"round": int},
    MessageType.STATE: {},
    MessageType.READY: {"epoch": int},
    MessageType.GIVEN: {"epoch": int},
    MessageType.TAKEN: {"epoch": int},
    MessageType.ABORT: {"epoch": int},
    MessageType.ERROR: {"reason": str, "message": str},
    MessageType.HELD_REQUEST: {},
    MessageType.HELD: {},
    MessageType.RELEASE: {},
    MessageType.DIGESTS: {},
    MessageType.CALLING: {"name": str},
    MessageType.LISTENING: {"address": str, "port": int, "name": str},
    MessageType.GOING_ON: {"seconds": int},
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its type, its JSON body, its binary part."""

    type: MessageType
    body: Mapping[str, Any] = field(default_factory=dict)
    blob: bytes | memoryview = b""


def encode(message: Message, version: int = WIRE) -> bytes:
    """The frame, of an agreed version. Raises MessageError when it would exceed MAX_MESSAGE."""
    body = json.dumps(message.body).encode()
    size = _HEADER.size + len(body) + len(message.blob)
    if size > MAX_MESSAGE:
        raise MessageError(f"a {message.type.name} message of {size} bytes exceeds {MAX_MESSAGE}")
    header = _HEADER.pack(_MAGIC, version, message.type, 0, len(body), len(message.blob))
    return b"".join((header, body, message.blob))


def decode(frame: bytes, version: int = WIRE) -> Message:
    """The message, when it is of the agreed version. Raises MessageError naming what is wrong with the frame."""
    if len(frame) < _HEADER.size:
        raise MessageError(f"the peer sent a frame of {len(frame)} bytes, shorter than its header")
    magic, theirs, number, zero, body_size, blob_size = _HEADER.unpack_from(frame)
    if magic != _MAGIC or zero:
        raise MessageError("the peer sent something that is not a Droveway message")
    if theirs != version:
        raise MessageError(f"the peer speaks wire version {theirs}, and {version} was agreed on: migrate it again")
    if _HEADER.size + body_size + blob_size != len(frame):
        raise MessageError("the peer sent a frame whose lengths do not add up")
    try:
        kind = MessageType(number)
        body = json.loads(frame[_HEADER.size : _HEADER.size + body_size])
    except (ValueError, RecursionError):
        raise MessageError(f"the peer sent a message of unknown type {number} or with a damaged body") from None
    expected = _BODIES[kind]
    if not isinstance(body, dict) or body.keys() != expected.keys():
        raise MessageError(f"a {kind.name} message carries {sorted(expected)}, got {body!r:.80}")
    for key, value in body.items():
        if type(value) is not expected[key]:
            raise MessageError(f"{kind.name}.{key} must be {expected[key].__name__}, got {value!r:.40}")
    return Message(kind, body, memoryview(frame)[_HEADER.size + body_size :])


def encode_regions(regions: Sequence[RemoteRegion]) -> bytes:
    """Regions as 32 bytes each: start, end, address, key; big-endian u64."""
    rows = [(region.start, region.end, region.address, region.key) for region in regions]
    return np.array(rows, _REGION).tobytes()


def decode_regions(blob: bytes | memoryview) -> list[RemoteRegion]:
    """Decode `encode_regions`. Raises MessageError on a truncated list or an empty region."""
    if len(blob) % _REGION.itemsize:
        raise MessageError("the peer sent a truncated list of regions")
    regions = [RemoteRegion(*row) for row in np.frombuffer(blob, _REGION).tolist()]
    if any(region.start >= region.end or not region.key for region in regions):
        raise MessageError("the peer sent an empty region or one without a key")
    return regions
