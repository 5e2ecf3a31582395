"""The fleets that are emptied, and what is promised of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """`line` is a simulated fleet; `most`: figure → the most that it may be."""

    line: str
    evacuated: int
    jobs: int
    most: tuple[tuple[str, float], ...]


#: No limit exceeded, nobody left.
_ALWAYS: tuple[tuple[str, float], ...] = (("left", 0), ("over_limit", 0))
#: A move needs six by itself: submit, two claims, two ends, the look for what can be admitted after it. Steps are
#: shared, by few in a small fleet.
_SCRIPTS = ("scripts_per_move", 9.0)

CASES: Mapping[str, Case] = {
    #: At the size of a cloud, in racks with a shared link each.
    "cloud": Case(
        "hosts=1000,guests=20000,seed=7,uplinks=50,fill=0.5",
        50,
        1,
        (*_ALWAYS, _SCRIPTS, ("makespan_by_lower_bound", 1.25)),
    ),
    #: Fifty hosts want into ten: whom does a destination take next? Alike guests, so that turns can be counted.
    "contended": Case(
        "hosts=60,guests=600,seed=7,fill=0.12,skew=0,busy=0",
        50,
        5,
        (*_ALWAYS, _SCRIPTS, ("makespan_by_lower_bound", 1.15), ("most_ahead", 6)),
    ),
    "small": Case("hosts=40,guests=400,seed=7,uplinks=4", 4, 2, _ALWAYS),
}
