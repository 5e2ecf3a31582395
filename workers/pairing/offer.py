"""What one side tells the other before they are connected: the codec of an offer. Pure.

An offer is JSON of at most 64 KiB. Unknown keys and unknown kinds of transport are ignored, so that a newer peer may
say more than this program understands; the version moves only when a key changes its meaning, and this program speaks
its own version and the one before. Zero is no version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.errors import MessageError
from workers.ram import RamBlock
from workers.registration.limits import LockLimits
from workers.wire import UNSAID

VERSION = 1
SPOKEN = frozenset({VERSION, VERSION - 1} - {0})

#: Bytes. A guest of 64 blocks with offers of three transports takes 8 KiB; the rest is head room, not an invitation.
MAX_OFFER = 64 << 10

#: Transports in the order in which they are preferred; others in an offer are of a newer release, and ignored.
TRANSPORTS = ("verbs", "tcp", "stub")

#: Characters of a reason why a transport is not offered: a sentence.
MAX_REASON = 300

_Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]
_Word = Annotated[str, Field(min_length=1, max_length=128)]
#: On one line: it becomes part of a sentence of ours.
_Reason = Annotated[str, Field(max_length=MAX_REASON, pattern=r"^\P{Cc}*$")]


class Block(BaseModel):
    """A RAM block as it travels: sizes in bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    id: _Word
    size: Annotated[int, Field(gt=0, lt=1 << 63)]
    page_size: Annotated[int, Field(ge=4096, le=1 << 30)]


class Offer(BaseModel):
    """One side's terms for one attempt. Sizes in bytes.

    Source only: `guest` (what a destination needs to start the incoming twin). The destination answers with the blocks
    of the twin that it started, so that both sides can see that they are the same.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    version: int = VERSION
    host: _Word
    #: What this side's program speaks, see workers/wire.py; a program of before says nothing of it.
    wire: Annotated[int, Field(ge=1, le=1 << 15)] = UNSAID
    blocks: Annotated[tuple[Block, ...], Field(max_length=64)]
    #: The host's page size: dirty pages of one size cannot be copied by a host of another.
    page_size: Annotated[int, Field(ge=4096, le=1 << 30)]
    #: What was asked for, as both sides read it in the record.
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]
    #: Capabilities that this side's program has, asked for or not.
    supported: frozenset[str]
    #: Per kind, that transport's own offer; each transport checks its own.
    transports: Mapping[str, Mapping[str, Any]]
    #: Per kind that this side was to open and could not: why.
    unavailable: Mapping[str, _Reason] = Field(default_factory=dict)
    trackers: tuple[str, ...] = ()
    #: How much more this side may lock, and take up (see LockLimits); the destination: before its twin started.
    memlock: _Bytes | None = None
    cgroup: _Bytes | None = None
    available: _Bytes | None = None
    #: Source only: guest memory that holds data now, rounded out as it is registered.
    populated: _Bytes | None = None
    guest: Mapping[str, Any] | None = None
    #: Who can move this side's guest, or twin, and why its RAM cannot be moved from outside where it cannot.
    engines: tuple[_Word, ...] = ("droveway",)
    not_from_outside: _Reason | None = None

    @property
    def memory(self) -> int:
        """The guest's RAM."""
        return sum(block.size for block in self.blocks)

    @property
    def touched(self) -> int:
        """What there is to move of the guest's RAM; all of it where the source does not say."""
        return self.memory if self.populated is None else min(self.populated, self.memory)

    @property
    def limits(self) -> LockLimits:
        """What this side said that it may lock and take up."""
        return LockLimits(self.memlock, self.cgroup, self.available)


def blocks_of(blocks: tuple[RamBlock, ...] | list[RamBlock]) -> tuple[Block, ...]:
    """A guest's RAM blocks in the form that travels."""
    return tuple(Block(id=block.id, size=block.size, page_size=block.page_size) for block in blocks)


def encode(offer: Offer) -> bytes:
    """An offer's JSON. Raises MessageError when it exceeds 64 KiB."""
    data = json.dumps(offer.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
    if len(data) > MAX_OFFER:
        raise MessageError(f"the offer of {offer.host} has {len(data)} bytes, more than {MAX_OFFER}: fewer RAM blocks.")
    return data


def decode(data: bytes) -> Offer:
    """The offer in `data`. Raises MessageError: too large, not JSON, of another version, or malformed."""
    if len(data) > MAX_OFFER:
        raise MessageError(f"the peer's offer has {len(data)} bytes, more than {MAX_OFFER}; it was not read.")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise MessageError("the peer's offer is not JSON; run the same release on both hosts.") from None
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is not int or version not in SPOKEN:
        spoken = " and ".join(str(each) for each in sorted(SPOKEN))
        raise MessageError(
            f"the peer's offer is of version {version!r:.20}, this program speaks {spoken}; upgrade the older host."
        )
    try:
        # Validated from the text, not from `document`: pydantic's strict mode takes JSON arrays for tuples only there.
        offer = Offer.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageError(f"the peer's offer is malformed at {where!r:.80}: {first['msg']}.") from None
    known = {kind: offer.transports[kind] for kind in TRANSPORTS if kind in offer.transports}
    return offer.model_copy(update={"transports": known})
