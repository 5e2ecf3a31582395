"""How good a placement is: a weighted table of named figures, 0 at best; and what one move would change. Pure.

Figures are normalised, so that a cluster of three hosts and one of ten thousand are judged alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.planning.cluster import Cluster
from tasks.planning.placement import NOWHERE, Bools, Floats, Ints, Placement


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` is it now; `change` how it would change with the guest of a row on each host in turn."""

    name: str
    weight: float
    reason: str
    value: Callable[[Placement], float]
    change: Callable[[Placement, int], Floats]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row's name, weight and value."""

    name: str
    weight: float
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """The weighted sum, and what it is made of."""

    total: float
    rows: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{"name": row.name, "weight": row.weight, "value": row.value} for row in self.rows]
        return {"total": self.total, "rows": rows}


def score(cluster: Cluster) -> Score:
    """The score of a cluster."""
    return score_of(Placement(cluster))


def score_of(placement: Placement) -> Score:
    """The score of a placement as it is now."""
    rows = tuple(Figure(row.name, row.weight, row.value(placement)) for row in ROWS)
    return Score(sum(row.weight * row.value for row in rows), rows)


def changes(placement: Placement, guest: str) -> Floats:
    """How the total would change with `guest` on each host in turn: below 0 is better, 0 where it is.

    Says nothing of whether it may go there: that is `placement.candidates`.
    """
    row = placement.guest_row[guest]
    total = np.zeros(len(placement.hosts))
    for each in ROWS:
        total += each.weight * each.change(placement, row)
    return total


def imbalance(shares: Floats) -> float:
    """The coefficient of variation: standard deviation by mean. 0: all alike, or nothing there."""
    mean = float(shares.mean()) if shares.size else 0.0
    return float(shares.std()) / mean if mean > 0 else 0.0


def worst_spread(placement: Placement) -> float:
    """The worse of the two spreads as they are now."""
    return max(_memory_spread(placement), _load_spread(placement))


def _spread_changes(shares: Floats, counts: Bools, source: int, steps: Floats) -> Floats:
    """How `imbalance(shares[counts])` changes when `steps[source]` leaves the source and `steps[d]` arrives at d.

    From the sums of shares and of their squares; what does not count adds to neither.
    """
    number = int(counts.sum())
    if not number:
        return np.zeros(len(shares))
    kept, added = np.where(counts, shares, 0.0), np.where(counts, steps, 0.0)
    gone = added[source] if source != NOWHERE else 0.0
    there = kept[source] if source != NOWHERE else 0.0
    # Measured from the mean, the squares lose no digits where ten thousand hosts are nearly alike.
    centre = kept.sum() / number
    squares = np.square(kept - centre)[counts].sum()
    total = kept.sum() - gone + added
    before = np.sqrt(squares / number) / centre if centre > 0 else 0.0
    moved = gone * gone - 2 * gone * (there - centre) + added * added + 2 * added * (kept - centre)
    mean = total / number
    variance = np.maximum((squares + moved) / number - np.square(mean - centre), 0.0)
    after = np.divide(np.sqrt(variance), mean, out=np.zeros(len(shares)), where=mean > 0)
    found = after - before
    if source != NOWHERE:
        found[source] = 0.0
    return np.asarray(found, dtype=np.float64)


def per(amount: Floats | Ints, capacity: Floats | Ints) -> Floats:
    """The part of each capacity that is in use; 0 where there is none."""
    return np.divide(amount, capacity, out=np.zeros(len(capacity)), where=capacity > 0)


def _memory_spread(placement: Placement) -> float:
    return imbalance(per(placement.settled, placement.memory)[placement.open])


def _memory_spread_change(placement: Placement, guest: int) -> Floats:
    steps = per(np.full(len(placement.hosts), placement.guest_memory[guest]), placement.memory)
    shares = per(placement.settled, placement.memory)
    return _spread_changes(shares, placement.open, int(placement.home[guest]), steps)


def _with_cores(placement: Placement) -> Bools:
    return np.asarray(placement.open & (placement.cpus > 0), dtype=np.bool_)


def _load_spread(placement: Placement) -> float:
    return imbalance(per(placement.load, placement.cpus)[_with_cores(placement)])


def _load_spread_change(placement: Placement, guest: int) -> Floats:
    steps = per(np.full(len(placement.hosts), placement.guest_load[guest]), placement.cpus)
    shares = per(placement.load, placement.cpus)
    return _spread_changes(shares, _with_cores(placement), int(placement.home[guest]), steps)


def _contention(placement: Placement) -> float:
    return float(_excess(placement.load, placement).mean()) if len(placement.hosts) else 0.0


def _contention_change(placement: Placement, guest: int) -> Floats:
    load, home, number = placement.guest_load[guest], int(placement.home[guest]), len(placement.hosts)
    now = _excess(placement.load, placement)
    found = _excess(placement.load + load, placement) - now
    if home != NOWHERE:
        without = placement.load[home : home + 1] - load
        cpus = placement.cpus[home : home + 1]
        found += np.maximum(per(without, cpus) - 1, 0)[0] - now[home]
        found[home] = 0.0
    return np.asarray(found / number, dtype=np.float64)


def _excess(load: Floats, placement: Placement) -> Floats:
    return np.maximum(per(load, placement.cpus) - 1, 0)


def _on_cordoned(placement: Placement) -> float:
    home = placement.home[placement.home != NOWHERE]
    return float(placement.cordoned[home].mean()) if len(home) else 0.0


def _on_cordoned_change(placement: Placement, guest: int) -> Floats:
    home = int(placement.home[guest])
    number = max(1, int((placement.home != NOWHERE).sum()))
    now = float(placement.cordoned[home]) if home != NOWHERE else 0.0
    return np.asarray((placement.cordoned - now) / number, dtype=np.float64)


def _group_uplinks(placement: Placement) -> float:
    counts = [count for group in placement.group_uplinks.values() for count in group.values()]
    return sum(count - 1 for count in counts) / max(1, placement.memberships)


def _group_uplinks_change(placement: Placement, guest: int) -> Floats:
    groups = placement.guest(guest).groups
    found = np.zeros(len(placement.hosts))
    home = int(placement.home[guest])
    source = NOWHERE if home == NOWHERE else int(placement.uplink[home])
    if not groups or not placement.uplinks:
        return found
    shared = np.zeros(len(placement.uplinks) + 1)  # the last is of hosts without an uplink: nothing is shared there
    for group in sorted(groups):
        for uplink, count in placement.group_uplinks.get(group, {}).items():
            shared[uplink] += count > (uplink == source)
    before = shared[source] if source != NOWHERE else 0.0
    found = shared[placement.uplink] - before
    return np.asarray(found / max(1, placement.memberships), dtype=np.float64)


ROWS: Sequence[Row] = (
    Row(
        "memory-spread",
        1.0,
        "what every move is measured by: memory is what a host runs out of first and cannot share",
        _memory_spread,
        _memory_spread_change,
    ),
    Row(
        "load-spread",
        0.5,
        "load comes and goes, and the measured figure is minutes old: half of what memory weighs",
        _load_spread,
        _load_spread_change,
    ),
    Row(
        "cpu-contention",
        4.0,
        "guests on a host with more to do than cores are slowed now; a host that is merely busier is not",
        _contention,
        _contention_change,
    ),
    Row(
        "on-cordoned",
        4.0,
        "somebody wants these hosts empty: no balance gained elsewhere is worth filling one (hbal weighs it alike)",
        _on_cordoned,
        _on_cordoned_change,
    ),
    Row(
        "group-uplinks",
        0.5,
        "guests that must not share a host should not fall with one rack's link either; a wish, no rule",
        _group_uplinks,
        _group_uplinks_change,
    ),
)
