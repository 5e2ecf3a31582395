"""Emptying hosts: every guest of theirs gets a place elsewhere, or the reason why it has none. Pure.

Guests with few hosts to choose from go first, then the biggest. Each goes where it harms the score least, among the
hosts that would still receive all that is sent to them before the busiest evacuated host has sent its last guest: the
evacuation then takes as long as that host's link needs, and no longer. Where that leaves guests without a place, or
moves others out of the way, a solver may look for a better plan (tasks.planning.packing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from tasks.planning.cluster import Cluster
from tasks.planning.estimate import DOWNTIME_LIMIT
from tasks.planning.moves import Move
from tasks.planning.packing import pack
from tasks.planning.placement import NOWHERE, Bools, Placement
from tasks.planning.rules import Refusal, held
from tasks.planning.score import Score, changes, score_of
from tasks.planning.traffic import Traffic
from tasks.planning.waves import Schedule, schedule

#: Hosts on which room is looked for, those that lack least first: each costs a look at all of its guests, and one that
#: lacks much is not helped by moving one guest.
_MAKE_ROOM_ON = 16


class Solver(StrEnum):
    """What looks for places."""

    #: One guest after the other, moving at most one other guest out of its way.
    GREEDY = "greedy"
    #: The same; and where guests are left without a place, all of them at once.
    CP_SAT = "cp-sat"


@dataclass(frozen=True)
class Plan:
    """What is moved, in an order in which each move can be made once those before it are, and what is not.

    `predicted` is the cluster once all moves are made, the evacuated hosts cordoned; `before` and `after` score it.
    """

    hosts: tuple[str, ...]
    moves: tuple[Move, ...]
    refused: tuple[tuple[str, Refusal], ...]
    schedule: Schedule
    predicted: Cluster
    before: Score
    after: Score


def plan_evacuation(
    cluster: Cluster,
    hosts: Collection[str],
    *,
    make_room: bool = True,
    avoid: Mapping[str, frozenset[str]] | None = None,
    prefer: Mapping[str, str] | None = None,
    solver: Solver = Solver.GREEDY,
    downtime_limit: float = DOWNTIME_LIMIT,
) -> Plan:
    """A plan that leaves no guest on `hosts`, as far as that can be.

    `make_room`: where a guest fits nowhere, one other guest may be moved out of its way. `avoid`: hosts that a guest is
    sent to only where no other takes it; `prefer`: the one that it is sent to where the rules allow it (a `solver` may
    send it elsewhere). Guests on their way to one of `hosts` are refused as `moving`: they are there once the plan has
    ended; as are, with a `solver`, guests for which such a move makes room. Raises ValueError for an unknown host,
    ImportError for a solver that is not installed.
    """
    if missing := sorted(set(hosts) - cluster.hosts.keys()):
        raise ValueError(f"there is no host {', '.join(missing)} in this cluster")
    emptied = tuple(sorted(set(hosts)))
    cordoned = cordon(cluster, emptied)
    search = _Search(cordoned, emptied, avoid or {}, prefer or {}, downtime_limit)
    before = score_of(search.placement)
    search.place_all(make_room)
    if solver is Solver.CP_SAT:
        search = search.packed(make_room)
    moves = tuple(search.moves.values())
    return Plan(
        emptied,
        moves,
        tuple(sorted(search.refused.items())),
        schedule(cordoned, moves, downtime_limit),
        cordoned.placed(replace(cordoned.guests[move.guest], host=move.destination) for move in moves),
        before,
        score_of(search.placement),
    )


def cordon(cluster: Cluster, hosts: Iterable[str], reason: str = "it is being evacuated") -> Cluster:
    """The same cluster with nothing moving to `hosts` any more; a reason that is there stays."""
    found = (cluster.hosts[name] for name in hosts)
    return cluster.changed(replace(host, cordoned=reason) for host in found if host.cordoned is None)


class _Search:
    """The evacuation in the making."""

    def __init__(
        self,
        cluster: Cluster,
        emptied: tuple[str, ...],
        avoid: Mapping[str, frozenset[str]],
        prefer: Mapping[str, str],
        downtime_limit: float,
    ) -> None:
        self.cluster = cluster
        self.emptied = frozenset(emptied)
        self.avoid, self.prefer, self.downtime_limit = avoid, prefer, downtime_limit
        self.placement = Placement(cluster)
        self.traffic = Traffic(self.placement, downtime_limit)
        #: By guest, in the order of the plan: nobody moves twice.
        self.moves: dict[str, Move] = {}
        self.refused: dict[str, Refusal] = {}
        self.leaving = self._leaving()
        self.traffic.expect(self.leaving)

    def place_all(self, make_room: bool) -> None:
        """Every guest on an emptied host, or on its way there, ends in `moves` or in `refused`."""
        self._place_each(self.leaving, make_room)

    def packed(self, make_room: bool) -> _Search:
        """A search that came to more with a solver; this one where that came to no more."""
        if self.moves.keys() == set(self.leaving):
            return self  # nobody is without a place, and nobody else is moved
        found = pack(self.cluster, self.leaving, self.moves, self.avoid, make_room=make_room)
        if found is None:
            return self
        other = _Search(self.cluster, tuple(self.emptied), self.avoid, self.prefer, self.downtime_limit)
        for move in found.moves:
            other._move(move.guest, other.placement.row[move.destination])
        why = "there is room for it once moves that are under way have ended"
        other.refused |= {name: Refusal("moving", why) for name in found.waiting}
        left = [name for name in self.leaving if name not in other.moves and name not in found.waiting]
        other._place_each(left, make_room and not found.waiting)
        return other

    def _leaving(self) -> list[str]:
        """Who is to be placed; who is held on an emptied host, or on its way there, is refused."""
        rows = np.array([self.placement.row[name] for name in sorted(self.emptied)], dtype=np.int64)
        concerned = np.isin(self.placement.at, rows) | np.isin(self.placement.home, rows)
        leaving = []
        for name in (self.placement.guests[row] for row in np.flatnonzero(concerned).tolist()):
            if refusal := held(self.cluster, name):
                self.refused[name] = refusal
            else:
                leaving.append(name)
        return leaving

    def _place_each(self, leaving: Iterable[str], make_room: bool) -> None:
        for name in sorted(leaving, key=self._hardest_first):  # keys are taken once, before the first move
            if not (self._place(name) or (make_room and self._make_room(name))):
                self.refused[name] = self.placement.why_nowhere(name)

    def _hardest_first(self, guest: str) -> tuple[int, int, str]:
        """Few hosts to choose from before many, by powers of two: within one, size decides."""
        choices = int(self.placement.candidates(guest).sum())
        return choices.bit_length(), -self.cluster.guests[guest].memory, guest

    def _place(self, guest: str) -> bool:
        row = self._choose(guest, self.placement.candidates(guest))
        if row is not None:
            self._move(guest, row)
        return row is not None

    def _choose(self, guest: str, allowed: Bools) -> int | None:
        """The best of the hosts that are allowed; None: there is none."""
        if not allowed.any():
            return None
        preferred = self.placement.row.get(self.prefer.get(guest, ""), NOWHERE)
        if preferred != NOWHERE and allowed[preferred]:
            return preferred
        better = allowed.copy()
        better[[self.placement.row[name] for name in self.avoid.get(guest, ()) if name in self.placement.row]] = False
        allowed = better if better.any() else allowed
        ends = self.traffic.ends(guest)
        latest = max(self.traffic.target, float(ends[allowed].min()))
        costs = np.where(allowed & (ends <= latest), changes(self.placement, guest), np.inf)
        return int(costs.argmin())

    def _move(self, guest: str, row: int) -> None:
        if before := self.moves.pop(guest, None):
            self.traffic.add(guest, self.placement.row[before.destination], times=-1)
        self.traffic.add(guest, row)
        self.placement.move(guest, self.placement.hosts[row])
        self.moves[guest] = Move(guest, self.cluster.guests[guest].host, self.placement.hosts[row])

    def _make_room(self, guest: str) -> bool:
        """Moves one other guest away where that lets this one in. Whether it did.

        One that was placed before for this plan is sent elsewhere instead, in its own one move.
        """
        placement = self.placement
        memory = self.cluster.guests[guest].memory
        lacking = memory - placement.left
        near = np.flatnonzero(placement.roomless(guest))
        for row in near[np.argsort(lacking[near], kind="stable")][:_MAKE_ROOM_ON]:
            for other in self._in_the_way(guest, int(row), int(lacking[row])):
                # One that was placed before still leaves from where it is, not from the place that it gives up.
                reachable = placement.reachable(self.cluster.guests[other].host)
                away = self._choose(other, placement.candidates(other) & reachable)
                if away is not None:
                    self._move(other, away)
                    self._move(guest, int(row))
                    return True
        return False

    def _in_the_way(self, guest: str, row: int, lacking: int) -> list[str]:
        """Guests of a host, the smallest first, each of which could be moved and, once gone, lets `guest` in."""
        guests, groups = self.cluster.guests, self.cluster.guests[guest].groups
        there = [self.placement.guests[each] for each in self.placement.residents(row)]
        rivals = {name for name in there if groups & guests[name].groups}
        fixed = sum(self.placement.group_hosts.get(group, {}).get(row, 0) for group in groups)
        if fixed > sum(len(groups & guests[name].groups) for name in rivals) or len(rivals) > 1:
            return []  # somebody else of its group is there, or on the way there
        able = [name for name in rivals or there if guests[name].memory >= lacking and self._may_move(name)]
        return sorted(able, key=lambda name: (guests[name].memory, name))

    def _may_move(self, guest: str) -> bool:
        """Whether it has not moved yet; or moved from an emptied host, where nobody needs the room that it left."""
        return guest not in self.moves or self.cluster.guests[guest].host in self.emptied
