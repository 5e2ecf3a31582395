"""Spreading guests out: whether it is worth acting at all, and the few moves that gain most. Pure.

What others' users suffer from is moves that go back and forth, gain next to nothing, or make it worse (ProxLB 128, 390,
416; descheduler KEP-1397). So: it begins only above a threshold that was held for some ticks, ends well below it, makes
no move of little gain, moves nobody twice in a while, and each move is reckoned with those before it made.

Where few guests of very unlike sizes share a host, no single move may gain though the fleet is far from even. Then two
guests change places: two moves, one after the other, of which each can be made when its turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tasks.planning.cluster import Cluster
from tasks.planning.estimate import DOWNTIME_LIMIT
from tasks.planning.moves import Move
from tasks.planning.placement import Bools, Floats, Placement
from tasks.planning.rules import held
from tasks.planning.score import Score, Shift, Spread, changes_of, load_spread, memory_spread, score_of, worst_spread
from tasks.planning.waves import Schedule, schedule

#: Hottest hosts with somebody who may move that are looked at for one move: each costs a look at all its guests.
_HOTTEST = 16
#: Coldest hosts whose guests are looked at for an exchange with one of a hot host.
_COLDEST = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """When to act, and how much. Imbalance: the coefficient of variation of memory or of load, the worse of the two."""

    #: Acts above this. Below a tenth, hosts differ by less than one usual guest.
    threshold: float = 0.10
    #: Moves until it is down to this: well below the threshold, or the next small change would set it off again.
    target: float = 0.06
    #: Ticks in a row above the threshold: a peak of load passes by itself.
    hold: int = 3
    #: What a move must gain in score, times the number of hosts: one move can even out one host's share of it. Two
    #: guests that change places are two moves.
    least_gain: float = 0.02
    #: Moves of one plan: what was planned on figures that are long past is not worth making.
    most_moves: int = 100
    #: Seconds in which a guest that was moved is not moved again.
    cool_down: float = 3600.0


@dataclass(frozen=True)
class RebalancePlan:
    """Moves in the order in which they gain most, why there are no more, and the imbalance before and after them."""

    moves: tuple[Move, ...]
    reason: str
    imbalance_before: float
    imbalance_after: float
    schedule: Schedule
    predicted: Cluster
    before: Score
    after: Score


def imbalance_of(cluster: Cluster) -> float:
    """How unevenly memory or load is spread over the hosts that take guests; 0: evenly."""
    return worst_spread(Placement(cluster)).imbalance


def plan_rebalance(
    cluster: Cluster, policy: Policy, now: float, *, downtime_limit: float = DOWNTIME_LIMIT
) -> RebalancePlan:
    """The moves that gain most, as `policy` allows them at `now` (seconds since 1970)."""
    placement = Placement(cluster)
    before, imbalance_before = score_of(placement), worst_spread(placement).imbalance
    moves, reason = _moves(cluster, placement, policy, now)
    predicted = cluster.placed(replace(cluster.guests[move.guest], host=move.destination, moved=now) for move in moves)
    after = Placement(predicted)
    return RebalancePlan(
        tuple(moves),
        reason,
        imbalance_before,
        worst_spread(after).imbalance,
        schedule(cluster, moves, downtime_limit),
        predicted,
        before,
        score_of(after),
    )


def _moves(cluster: Cluster, placement: Placement, policy: Policy, now: float) -> tuple[list[Move], str]:
    """The moves, made in `placement` as well, and why they end.

    Each gains in score, which weighs memory and load together; of that, what evens out most is kept: a move that pays
    for better memory with worse load only stays where a later one pays that back.
    """
    moves: list[Move] = []
    lowest, kept = worst_spread(placement).imbalance, 0
    free = np.array([_free(cluster, name, policy, now) for name in placement.guests], dtype=np.bool_)
    while True:
        imbalance = worst_spread(placement).imbalance
        if imbalance < lowest:
            lowest, kept = imbalance, len(moves)
        if imbalance <= policy.target:
            return moves, f"the imbalance is {imbalance:.3f}, not above the target of {policy.target:g}"
        found = _best(placement, policy, free) or _exchange(placement, policy, free)
        if len(moves) + max(1, len(found)) > policy.most_moves:
            return moves[:kept], f"{policy.most_moves} moves are the most of one plan"
        if not found:
            gain = f"no move that was looked at gains {policy.least_gain:g}"
            return moves[:kept], f"{gain}; the imbalance is {lowest:.3f}"
        for move in found:
            moves.append(move)
            free[placement.guest_row[move.guest]] = False
            placement.move(move.guest, move.destination)


def _best(placement: Placement, policy: Policy, free: Bools) -> list[Move]:
    """The move off the hottest host that gains most; off the next one where that host can gain nothing."""
    to = np.flatnonzero(placement.open)
    needed = policy.least_gain / max(1, len(to))
    for host in _hottest(placement, free):
        there = placement.residents(host)
        shift = Shift(host, there[free[there]], to)
        fits = placement.guest_memory[shift.guests][:, np.newaxis] <= placement.left[to]
        allowed = fits & placement.takes(shift.guests, to)
        if found := _gaining_most(placement, shift, allowed, needed):
            return [_move(placement, int(shift.guests[found[0]]), int(to[found[1]]))]
    return []


def _exchange(placement: Placement, policy: Policy, free: Bools) -> list[Move]:
    """The two moves by which a guest of the hottest host and one of a cold host change places and gain most.

    Hot and cold by what is spread worst: it is what all else has left over.
    """
    worst = worst_spread(placement)
    able = np.zeros(len(placement.hosts), dtype=np.bool_)
    able[placement.at[free]] = True
    rows = np.flatnonzero(able & worst.counts)
    rows = rows[np.argsort(worst.shares[rows], kind="stable")]
    back = np.flatnonzero(free & np.isin(placement.at, rows[:_COLDEST]))
    needed = 2 * policy.least_gain / max(1, int(placement.open.sum()))
    for host in rows[::-1][:_HOTTEST].tolist():
        there = placement.residents(host)
        shift = Shift(host, there[free[there]], placement.at[back], back)
        first, second = _orders(placement, shift)
        if found := _gaining_most(placement, shift, first | second, needed):
            leaving = _move(placement, int(shift.guests[found[0]]), int(shift.to[found[1]]))
            coming = _move(placement, int(back[found[1]]), host)
            return [leaving, coming] if first[found] else [coming, leaving]
    return []


def _orders(placement: Placement, shift: Shift) -> tuple[Bools, Bools]:
    """Which exchanges can be made with the hot host's guest moved first, and which with the other one first.

    Guests of one group cannot change places: whoever goes first finds the other one still there.
    """
    assert shift.back is not None
    taken = placement.takes(shift.guests, shift.to) & placement.takes(shift.back, np.array([shift.source])).T
    leaving, coming = placement.guest_memory[shift.guests][:, np.newaxis], placement.guest_memory[shift.back]
    here, there = placement.left[shift.source], placement.left[shift.to]
    first = taken & (leaving <= there) & (coming <= here + leaving)
    second = taken & (coming <= here) & (leaving <= there + coming)
    return first, second


def _gaining_most(placement: Placement, shift: Shift, allowed: Bools, needed: float) -> tuple[int, int] | None:
    """Row and column of what gains most of a shift, and at least `needed`; None: nothing does."""
    if not allowed.any():
        return None
    costs = np.where(allowed, changes_of(placement, shift), np.inf)
    guest, to = divmod(int(costs.argmin()), costs.shape[1])
    return (guest, to) if -costs[guest, to] >= needed else None


def _move(placement: Placement, guest: int, to: int) -> Move:
    return Move(placement.guests[guest], placement.hosts[int(placement.at[guest])], placement.hosts[to])


def _hottest(placement: Placement, free: Bools) -> list[int]:
    """Rows of hosts with somebody who may move, the one most above the mean first; memory and load weigh as in the
    score."""
    able = np.zeros(len(placement.hosts), dtype=np.bool_)
    able[placement.at[free]] = True
    able &= placement.open
    pressure = _above_mean(memory_spread(placement)) + 0.5 * _above_mean(load_spread(placement))
    order = np.argsort(np.where(able, -pressure, np.inf), kind="stable")[:_HOTTEST]
    return [int(row) for row in order if able[row]]


def _above_mean(spread: Spread) -> Floats:
    mean = float(spread.shares[spread.counts].mean()) if spread.counts.any() else 0.0
    return spread.shares / mean if mean > 0 else spread.shares


def _free(cluster: Cluster, guest: str, policy: Policy, now: float) -> bool:
    moved = cluster.guests[guest].moved
    cooling = moved is not None and now - moved < policy.cool_down
    return not cooling and held(cluster, guest) is None


# --- whether to act now -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick decides. `over` is handed to the next one: ticks in a row above the threshold, this one included."""

    act: bool
    reason: str
    over: int


def judge_tick(
    imbalance: float, over: int, policy: Policy, *, under_way: int, evacuating: bool, window_open: bool
) -> Tick:
    """Whether this tick may move guests. `over` is what the tick before handed on, 0 at first.

    `under_way`: moves of an earlier rebalancing that have not ended. Their load and dirty rate are not yet where they
    will be.
    """
    above = f"the imbalance is {imbalance:.3f}, above the threshold of {policy.threshold:g}"
    if imbalance <= policy.threshold:
        return Tick(False, f"the imbalance is {imbalance:.3f}, not above the threshold of {policy.threshold:g}", 0)
    over += 1
    if over < policy.hold:
        return Tick(False, f"{above} for {over} of {policy.hold} ticks", over)
    if under_way:
        return Tick(False, f"{above}, but {under_way} moves of an earlier rebalancing are under way", over)
    if evacuating:
        return Tick(False, f"{above}, but an evacuation or a restore needs the slots", over)
    if not window_open:
        return Tick(False, f"{above}, but no maintenance window is open", over)
    return Tick(True, f"{above} for {over} ticks", 0)
