"""Plans that were kept: what `--plan --json` printed, read again for `--apply`. Strict; pure.

The file may have been edited by hand, or come from another release: whatever is not as it was printed is an error that
names the place, for a plan that is half understood moves guests to where nobody wanted them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from config.errors import RequestError
from tasks.messages import GuestName, Host
from tasks.planning.moves import Move

#: The version that is printed and read.
VERSION = 1
#: Bytes of a file. A plan of ten thousand moves has 2 MiB.
MAX_BYTES = 16 << 20

#: Seconds, bytes, scores: said by the planner and only looked at by people.
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class PlannedMove(_Strict):
    """One move, with what it was expected to take."""

    guest: GuestName
    source: Host
    destination: Host
    wave: Annotated[int, Field(ge=1)]
    start_seconds: Figure
    seconds: Figure
    downtime_seconds: Figure
    bytes: Annotated[int, Field(ge=0)]
    converges: bool

    @property
    def move(self) -> Move:
        """The move alone."""
        return Move(self.guest, self.source, self.destination)


class PlannedRefusal(_Strict):
    """A guest that could go nowhere."""

    guest: str
    rule: str
    why: str


def _sound(moves: tuple[PlannedMove, ...]) -> tuple[PlannedMove, ...]:
    seen: set[str] = set()
    for each in moves:
        if each.guest in seen:
            raise ValueError(f"{each.guest} is moved twice")
        if each.source == each.destination:
            raise ValueError(f"{each.guest} is moved from {each.source} to itself")
        seen.add(each.guest)
    return moves


Moves = Annotated[tuple[PlannedMove, ...], AfterValidator(_sound)]


class EvacuationPlan(_Strict):
    """What `droveway evacuate --plan --json` prints."""

    version: Literal[1]
    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    moves: Moves
    refused: tuple[PlannedRefusal, ...]
    makespan_seconds: Figure
    lower_bound_seconds: Figure


class RebalancePlan(_Strict):
    """What `droveway rebalance --plan --json` prints."""

    version: Literal[1]
    moves: Moves
    imbalance_before: Figure
    imbalance_after: Figure
    reason: str
    makespan_seconds: Figure
    lower_bound_seconds: Figure


Plan = TypeVar("Plan", EvacuationPlan, RebalancePlan)


def read_evacuation(document: bytes, named: Collection[str]) -> EvacuationPlan:
    """The plan of an evacuation of the hosts that are `named`; of whichever, if none is. Raises RequestError."""
    plan = _read(document, EvacuationPlan, "evacuate")
    if named and set(named) != set(plan.hosts):
        raise RequestError(
            f"the plan empties {', '.join(sorted(plan.hosts))}, not {', '.join(sorted(named))}; leave the hosts out, or"
            " name those of the plan"
        )
    for each in plan.moves:
        if each.destination in plan.hosts:
            raise RequestError(f"the plan sends {each.guest} to {each.destination}, which it empties")
    return plan


def read_rebalance(document: bytes) -> RebalancePlan:
    """The plan of a rebalancing. Raises RequestError."""
    return _read(document, RebalancePlan, "rebalance")


def _read(document: bytes, kind: type[Plan], command: str) -> Plan:
    if len(document) > MAX_BYTES:
        raise RequestError(f"the plan has more than {MAX_BYTES >> 20} MiB, no plan of a fleet has; give another file")
    said = _object(document)
    version = said.get("version")
    if type(version) is not int or version != VERSION:
        raise RequestError(
            f"the plan is of version {version!r:.20}, this release reads {VERSION}; make it anew: droveway {command}"
            " --plan --json"
        )
    other = "rebalance" if command == "evacuate" else "evacuate"
    if ("imbalance_before" in said) != (command == "rebalance"):
        raise RequestError(f"this is no plan of `droveway {command} --plan --json`; is it one for `droveway {other}`?")
    try:
        return kind.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"the plan is wrong at {where:.80} ({first['msg'].removeprefix('Value error, '):.200}); correct it, or make"
            f" it anew: droveway {command} --plan --json"
        ) from None


def _object(document: bytes) -> dict[str, Any]:
    try:
        said = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the plan is no JSON ({error!s:.100}); give what `--plan --json` printed") from None
    if not isinstance(said, dict):
        raise RequestError(f"the plan is a {type(said).__name__}, not an object; give what `--plan --json` printed")
    return said
