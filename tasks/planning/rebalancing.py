"""Spreading guests out: whether it is worth acting at all, and the few moves that gain most. Pure.

What others' users suffer from is moves that go back and forth, gain next to nothing, or make it worse (ProxLB 128, 390,
416; descheduler KEP-1397). So: it begins only above a threshold that was held for some ticks, ends well below it, makes
no move of little gain, moves nobody twice in a while, and each move is reckoned with those before it made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tasks.planning.cluster import Cluster
from tasks.planning.estimate import DOWNTIME_LIMIT
from tasks.planning.moves import Move
from tasks.planning.placement import Bools, Floats, Ints, Placement
from tasks.planning.rules import held
from tasks.planning.score import Score, changes, per, score_of, worst_spread
from tasks.planning.waves import Schedule, schedule

#: Hottest hosts with somebody who may move that are looked at for one move: each costs a look at all its guests.
_HOTTEST = 16


@dataclass(frozen=True, slots=True)
class Policy:
    """When to act, and how much. Imbalance: the coefficient of variation of memory or of load, the worse of the two."""

    #: Acts above this. Below a tenth, hosts differ by less than one usual guest.
    threshold: float = 0.10
    #: Moves until it is down to this: well below the threshold, or the next small change would set it off again.
    target: float = 0.06
    #: Ticks in a row above the threshold: a peak of load passes by itself.
    hold: int = 3
    #: What a move must gain in score, times the number of hosts: one move can even out one host's share of it.
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
    return worst_spread(Placement(cluster))


def plan_rebalance(
    cluster: Cluster, policy: Policy, now: float, *, downtime_limit: float = DOWNTIME_LIMIT
) -> RebalancePlan:
    """The moves that gain most, as `policy` allows them at `now` (seconds since 1970)."""
    placement = Placement(cluster)
    before, imbalance_before = score_of(placement), worst_spread(placement)
    moves, reason = _moves(cluster, placement, policy, now)
    predicted = cluster.placed(replace(cluster.guests[move.guest], host=move.destination, moved=now) for move in moves)
    after = Placement(predicted)
    return RebalancePlan(
        tuple(moves),
        reason,
        imbalance_before,
        worst_spread(after),
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
    lowest, kept = worst_spread(placement), 0
    free = np.array([_free(cluster, name, policy, now) for name in placement.guests], dtype=np.bool_)
    while True:
        imbalance = worst_spread(placement)
        if imbalance < lowest:
            lowest, kept = imbalance, len(moves)
        if imbalance <= policy.target:
            return moves, f"the imbalance is {imbalance:.3f}, not above the target of {policy.target:g}"
        if len(moves) >= policy.most_moves:
            return moves[:kept], f"{policy.most_moves} moves are the most of one plan"
        found = _best(placement, policy, free)
        if found is None:
            gain = f"no move that was looked at gains {policy.least_gain:g}"
            return moves[:kept], f"{gain}; the imbalance is {lowest:.3f}"
        moves.append(found)
        free[placement.guest_row[found.guest]] = False
        placement.move(found.guest, found.destination)


def _best(placement: Placement, policy: Policy, free: Bools) -> Move | None:
    """The move off the hottest host that gains most; off the next one where that host can gain nothing."""
    hosts = max(1, int(placement.open.sum()))
    for host in _hottest(placement, free):
        gains: list[tuple[float, str, int]] = []
        for name in (placement.guests[row] for row in placement.residents(host).tolist() if free[row]):
            allowed = placement.candidates(name)
            if allowed.any():
                costs = np.where(allowed, changes(placement, name), np.inf)
                to = int(costs.argmin())
                gains.append((float(costs[to]), name, to))
        if gains and -(best := min(gains))[0] * hosts >= policy.least_gain:
            return Move(best[1], placement.hosts[host], placement.hosts[best[2]])
    return None


def _hottest(placement: Placement, free: Bools) -> list[int]:
    """Rows of hosts with somebody who may move, the one most above the mean first; memory and load weigh as in the
    score."""
    able = np.zeros(len(placement.hosts), dtype=np.bool_)
    able[placement.at[free]] = True
    able &= placement.open
    pressure = _above_mean(placement.settled, placement.memory, placement)
    pressure += 0.5 * _above_mean(placement.load, placement.cpus, placement)
    order = np.argsort(np.where(able, -pressure, np.inf), kind="stable")[:_HOTTEST]
    return [int(row) for row in order if able[row]]


def _above_mean(amount: Floats | Ints, capacity: Floats | Ints, placement: Placement) -> Floats:
    share = per(amount, capacity)
    there = share[placement.open & (capacity > 0)]
    mean = float(there.mean()) if there.size else 0.0
    return share / mean if mean > 0 else share


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
