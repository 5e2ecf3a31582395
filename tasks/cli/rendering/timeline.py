"""When each phase of one migration was, both sides on one axis. Pure.

The axis begins when the migration was asked for, on Redis' clock. Each mover measures on its own clock since it was
ready to work: when its side was claimed, and what its process took to start, tell where that lies. The destination's
clock is then laid beside the source's by the moment when they greeted each other, which both know to within one
message's way (half a round trip) and as long as a busy host kept its mover waiting in that instant; what the clocks
drift apart from there on, some milliseconds in a minute at worst, adds to that. No error of these may turn cause and
effect round: GIVEN lies between READY and TAKEN. Claims tell it less well, to some hundredths of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.records import MigrationRecord, SideRecord
from workers.pairing.contract import Side
from workers.rounds.contract import PHASES

#: Each side's phases in their order. Registration runs beside the rounds and has no place of its own.
ORDER: Mapping[Side, tuple[str, ...]] = {
    Side.SOURCE: ("start", "pairing", "links", "survey", "bulk", "rounds", "downtime", "deregistration"),
    Side.DESTINATION: ("start", "pairing", "twin", "rounds", "handover", "deregistration"),
}
#: What journals reach on the way of a guest that is handed over; other ends are told by the outcome.
MOMENTS = ("ready", "given", "taken")
_WORDS = {
    "start": "its mover starts",
    "pairing": "paired, the twin started",
    "links": "waited for the links",
    "survey": "looked at the memory",
    "bulk": "bulk round",
    "rounds": "dirty rounds",
    "downtime": "downtime: the guest is paused",
    "twin": "starts the twin",
    "handover": "loads, verifies, takes over",
    "deregistration": "lets go of memory",
    "ready": "READY: it has it all",
    "given": "GIVEN: the guest is the other's",
    "taken": "TAKEN: it may run here",
}
_AT_DESTINATION = {"pairing": "hears what the source offers", "rounds": "receives all rounds"}


@dataclass(frozen=True, slots=True)
class Phase:
    """What lies in one piece: a phase, a round, or a moment (`seconds` 0). Both in seconds."""

    side: Side
    name: str
    #: Since the migration was asked for. None: its mover is of a release that measured only how long it took.
    began: float | None
    seconds: float
    #: The round that this is. The last one is called downtime: it lies in it, or ends with it where QEMU sends.
    round: int | None = None

    @property
    def ended(self) -> float:
        """Where it ends."""
        return (self.began or 0.0) + self.seconds

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.name == "downtime" and self.round is not None:
            return "the last round"
        return (_AT_DESTINATION if self.side is Side.DESTINATION else {}).get(self.name, _WORDS[self.name])

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "side": str(self.side),
            "phase": self.name,
            "round": self.round,
            "began": self.began,
            "seconds": self.seconds,
        }


def phases(record: MigrationRecord) -> list[Phase]:
    """What each side has measured so far, the source's first, each side's in order of time."""
    ready = _ready(record)
    return [each for side in Side for each in _of(side, record.side(side), ready[side])]


def rows(found: Sequence[Phase]) -> list[list[Phase]]:
    """What people see as one: the dirty rounds of a side together, everything else by itself."""
    made: dict[tuple[Side, str], list[Phase]] = {}
    for each in found:
        made.setdefault((each.side, each.words), []).append(each)
    return list(made.values())


def measured(side: SideRecord) -> bool:
    """Whether its mover says when its phases were."""
    return bool((side.progress or {}).get("began"))


def _ready(record: MigrationRecord) -> dict[Side, float]:
    """Where on the axis each side's mover was ready to work, the beginning of its own clock."""
    source, apart = _by_claim(record, record.source), _apart(record)
    destination = _by_claim(record, record.destination) if apart is None else source + apart
    return {Side.SOURCE: source, Side.DESTINATION: destination}


def _apart(record: MigrationRecord) -> float | None:
    """What a time on the destination's clock takes to be one on the source's; None when the two never met."""
    here, there = (_said(record.side(side), "moments") for side in (Side.SOURCE, Side.DESTINATION))
    if "greeted" not in here or "greeted" not in there:
        return None
    apart: float = here["greeted"] - there["greeted"]
    if "given" in here and "ready" in there and "taken" in there:
        began, took = (_said(record.source, what).get("downtime") for what in ("began", "seconds"))
        # Ours tell of GIVEN when the downtime was measured; another release may do so before.
        heard = math.inf if began is None or took is None else began + took
        latest = min(here["given"] - there["ready"], heard - there["taken"])
        apart = min(max(apart, here["given"] - there["taken"]), latest)
    return apart


def _by_claim(record: MigrationRecord, side: SideRecord) -> float:
    """0 where nobody knows any more when it was claimed: then the axis begins there."""
    if side.claimed is None or record.restored:
        return 0.0
    started: float = _said(side, "seconds").get("start", 0.0)
    return side.claimed - record.created + started


def _of(side: Side, record: SideRecord, ready: float) -> Iterator[Phase]:
    took, began, moments = (_said(record, what) for what in ("seconds", "began", "moments"))
    if not began:
        yield from (Phase(side, name, None, took[name]) for name in ORDER[side] if name in took)
        return
    rounds = _rounds(side, record, ready)
    found = [*rounds, *_unfinished(side, record, ready, rounds)]
    in_rounds = {each.name for each in found if each.name != "downtime"}
    alone = [name for name in ORDER[side] if name in took and name in began and name not in in_rounds]
    found += [Phase(side, name, ready + began[name], took[name]) for name in alone]
    found += [Phase(side, name, ready + moments[name], 0.0) for name in MOMENTS if name in moments]
    yield from sorted(found, key=lambda each: (each.began or 0.0, -each.seconds))


def _rounds(side: Side, record: SideRecord, ready: float) -> list[Phase]:
    said = [each for each in (record.progress or {}).get("rounds", ()) if "began" in each]
    return [
        Phase(side, PHASES.get(each["kind"], "rounds"), ready + each["began"], each["seconds"], each["index"])
        for each in said
    ]


def _unfinished(side: Side, record: SideRecord, ready: float, rounds: Sequence[Phase]) -> Iterator[Phase]:
    """The dirty round that the end of the move cut off: measured as a phase, and no round yet."""
    began, took = _said(record, "began").get("rounds"), _said(record, "seconds").get("rounds", 0.0)
    dirty = [each for each in rounds if each.name == "rounds"]
    rest = took - sum(each.seconds for each in dirty)
    if dirty and began is not None and rest > 0 and ready + began >= dirty[-1].ended:
        yield Phase(side, "rounds", ready + began, rest, len(rounds))


def _said(side: SideRecord, what: str) -> Mapping[str, Any]:
    said: Mapping[str, Any] = (side.progress or {}).get(what) or {}
    return said
