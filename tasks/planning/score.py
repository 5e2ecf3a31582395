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
class Shift:
    """Guests that would leave the host of row `source`, one in each row, for other hosts, one in each column.

    With `back`, the guest of each column would come back for it: an exchange, by which only the difference of the two
    is shifted. The two of an exchange share no group.
    """

    source: int
    guests: Ints
    to: Ints
    back: Ints | None = None

    def of(self, amount: Ints | Floats) -> Floats:
        """What is shifted of an amount that each guest has; below 0 where more comes back."""
        leaving = amount[self.guests][:, np.newaxis]
        shifted = leaving if self.back is None else leaving - amount[self.back]
        return shifted.astype(np.float64)

    def nothing_at_home(self, found: Floats) -> Floats:
        """The same, and 0 for guests that would stay where they are."""
        found[:, self.to == self.source] = 0.0
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` is it now; `change` how each of a shift would change it, or what broadcasts to that."""

    name: str
    weight: float
    reason: str
    value: Callable[[Placement], float]
    change: Callable[[Placement, Shift], Floats]


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
    shift = Shift(int(placement.home[row]), np.array([row]), np.arange(len(placement.hosts)))
    found: Floats = changes_of(placement, shift)[0]
    return found


def changes_of(placement: Placement, shift: Shift) -> Floats:
    """How the total would change with each guest of a shift (rows) on each other host (columns)."""
    total = np.zeros((len(shift.guests), len(shift.to)))
    for each in ROWS if total.size else ():
        total += each.weight * each.change(placement, shift)
    return total


def imbalance(shares: Floats) -> float:
    """The coefficient of variation: standard deviation by mean. 0: all alike, or nothing there."""
    mean = float(shares.mean()) if shares.size else 0.0
    return float(shares.std()) / mean if mean > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The part of each host's `capacity` that is in use, and which hosts count for how evenly it is spread."""

    shares: Floats
    capacity: Floats | Ints
    counts: Bools

    @property
    def imbalance(self) -> float:
        """Over the hosts that count."""
        return imbalance(self.shares[self.counts])

    def change(self, shift: Shift, steps: Floats) -> Floats:
        """How the imbalance changes when `steps`, in the unit of the capacity, are shifted.

        From the sums of shares and of their squares; what does not count adds to neither.
        """
        number = int(self.counts.sum())
        if not number:
            return np.zeros((1, 1))
        centre = float(self.shares[self.counts].mean())
        # Measured from the mean, the squares lose no digits where ten thousand hosts are nearly alike.
        off = np.where(self.counts, self.shares - centre, 0.0)
        units = np.where(self.counts, per(np.ones(len(off)), self.capacity), 0.0)
        squares = float(np.square(off).sum())
        # Where all are alike, as they mostly are, one column says it.
        there = units[shift.to] if np.ptp(units[shift.to]) else units[shift.to][:1]
        gone, added = steps * (units[shift.source] if shift.source != NOWHERE else 0.0), steps * there
        drift = (added - gone) / number
        mean = centre + drift
        # Where the source is NOWHERE nothing is gone, whatever `off` has in its last row.
        left = (squares + gone * (gone - 2 * off[shift.source])) / number - np.square(drift)
        after = (added + 2 * off[shift.to]) * (added / number)
        after += left
        np.sqrt(np.maximum(after, 0.0, out=after), out=after)
        after *= np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)
        after -= np.sqrt(squares / number) / centre if centre > 0 else 0.0
        return shift.nothing_at_home(np.asarray(after, dtype=np.float64))


def memory_spread(placement: Placement) -> Spread:
    """Of the memory that is promised, once what is under way has ended."""
    return Spread(per(placement.settled, placement.memory), placement.memory, placement.open)


def load_spread(placement: Placement) -> Spread:
    """Of the cores that are busy, over the hosts of which the cores are known."""
    return Spread(per(placement.load, placement.cpus), placement.cpus, placement.open & (placement.cpus > 0))


def worst_spread(placement: Placement) -> Spread:
    """The less even of the two as they are now."""
    return max(memory_spread(placement), load_spread(placement), key=lambda spread: spread.imbalance)


def per(amount: Floats | Ints, capacity: Floats | Ints) -> Floats:
    """The part of each capacity that is in use; 0 where there is none."""
    return np.divide(
        amount, capacity, out=np.zeros(np.broadcast_shapes(amount.shape, capacity.shape)), where=capacity > 0
    )


def _memory_spread_change(placement: Placement, shift: Shift) -> Floats:
    return memory_spread(placement).change(shift, shift.of(placement.guest_memory))


def _load_spread_change(placement: Placement, shift: Shift) -> Floats:
    return load_spread(placement).change(shift, shift.of(placement.guest_load))


def _contention(placement: Placement) -> float:
    return float(_excess(placement.load, placement.cpus).mean()) if len(placement.hosts) else 0.0


def _contention_change(placement: Placement, shift: Shift) -> Floats:
    steps, load, cpus = shift.of(placement.guest_load), placement.load, placement.cpus
    now = _excess(load, cpus)
    found = _excess(load[shift.to] + steps, cpus[shift.to]) - now[shift.to]
    if shift.source != NOWHERE:
        found = found + _excess(load[shift.source] - steps, cpus[shift.source]) - now[shift.source]
    return shift.nothing_at_home(found / len(placement.hosts))


def _excess(load: Floats, cpus: Floats) -> Floats:
    return np.asarray(np.maximum(per(load, cpus) - 1, 0.0), dtype=np.float64)


def _on_cordoned(placement: Placement) -> float:
    home = placement.home[placement.home != NOWHERE]
    return float(placement.cordoned[home].mean()) if len(home) else 0.0


def _on_cordoned_change(placement: Placement, shift: Shift) -> Floats:
    if shift.back is not None:
        return np.zeros((1, 1))  # as many come as go
    number = max(1, int((placement.home != NOWHERE).sum()))
    now = float(placement.cordoned[shift.source]) if shift.source != NOWHERE else 0.0
    return np.asarray((placement.cordoned[shift.to] - now) / number, dtype=np.float64)[np.newaxis, :]


def _group_uplinks(placement: Placement) -> float:
    counts = [count for group in placement.group_uplinks.values() for count in group.values()]
    return sum(count - 1 for count in counts) / max(1, placement.memberships)


def _group_uplinks_change(placement: Placement, shift: Shift) -> Floats:
    found = np.zeros((len(shift.guests), len(shift.to)))
    if not placement.uplinks:
        return found
    for place, guest in enumerate(shift.guests.tolist()):
        if placement.grouped[guest]:
            found[place] += _shared_uplinks(placement, guest, shift.source)[placement.uplink[shift.to]]
    back = [] if shift.back is None else shift.back.tolist()
    for place, guest in enumerate(back):
        if placement.grouped[guest]:
            steps = _shared_uplinks(placement, guest, int(shift.to[place]))
            found[:, place] += steps[placement.uplink[shift.source]]
    return np.asarray(found / max(1, placement.memberships), dtype=np.float64)


def _shared_uplinks(placement: Placement, guest: int, home: int) -> Floats:
    """How many more memberships share an uplink with this guest behind each in turn; the last: behind none, where
    nothing is shared."""
    source = NOWHERE if home == NOWHERE else int(placement.uplink[home])
    shared = np.zeros(len(placement.uplinks) + 1)
    for group in sorted(placement.guest(guest).groups):
        for uplink, count in placement.group_uplinks.get(group, {}).items():
            shared[uplink] += count > (uplink == source)
    return np.asarray(shared - shared[source], dtype=np.float64)


ROWS: Sequence[Row] = (
    Row(
        "memory-spread",
        1.0,
        "what every move is measured by: memory is what a host runs out of first and cannot share",
        lambda placement: memory_spread(placement).imbalance,
        _memory_spread_change,
    ),
    Row(
        "load-spread",
        0.5,
        "load comes and goes, and the measured figure is minutes old: half of what memory weighs",
        lambda placement: load_spread(placement).imbalance,
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
