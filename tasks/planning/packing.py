"""Tight packing: places for the guests of evacuated hosts where one guest after the other finds none. Pure.

CP-SAT (OR-Tools, the extra `cp-sat`) decides on all of them at once, and on those that are in their way. First it
places as many guests as it can by as few moves as it can, then it takes the most even of these solutions. It has one
worker, one seed, and a limit that counts its work instead of its seconds: the same fleet gives the same plan.

    guests, and where each may be ─► solver: where each is afterwards ─► an order in which the moves can be made

The solver sees the fleet as it will be. Whether each move can be made on the way is found out by making them; where no
order is found, the solver is asked again for moves that can be made in any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from tasks.planning.cluster import Cluster
from tasks.planning.moves import Move
from tasks.planning.placement import Floats, Ints, Placement
from tasks.planning.rules import held

#: Places (guest by host) that the solver decides on at once: as many hosts take part, those with most room first. What
#: that leaves without a place is asked again, with what was found, on the hosts that then have most room.
_MOST_PLACES, _ROUNDS = 20_000, 3
#: What the solver may do to place guests, and then to even out, in its own measure of work: seconds, more or less.
_WORK, _WORK_FOR_EVENNESS = 5.0, 1.0
#: Whole numbers are what it reckons with: so many of them are the whole of a host.
_WHOLE = 1_000_000


_Places = Mapping[tuple[str, int | None], bool]
"""(guest, row of a host where it may be; None: it stays, or is without a place) → whether it is there."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Moves in an order in which each can be made once those before it are.

    `waiting`: guests that have a place as soon as moves that are under way already have ended.
    """

    moves: tuple[Move, ...]
    waiting: frozenset[str]


def pack(
    cluster: Cluster,
    leaving: Collection[str],
    found: Mapping[str, Move],
    avoid: Mapping[str, frozenset[str]],
    *,
    make_room: bool,
) -> Packing | None:
    """A plan that places more of the guests `leaving`, none of which is held, than `found` does, or the same by fewer
    moves; None: none was found.

    `found`: the moves by guest that were found without a solver; it begins with these. `make_room`, `avoid`: as in
    tasks.planning.evacuation. Raises ImportError where OR-Tools is not installed.
    """
    settled, planned = _settled(cluster), found
    for _ in range(_ROUNDS):
        better = _better(_Question(cluster, leaving, planned, avoid, make_room), settled)
        if _worth(better, leaving) <= _worth(planned, leaving):
            break
        planned = better
        if planned.keys() >= set(leaving):
            break
    if planned is found:
        return None
    made = _in_order(cluster, planned.values())
    return Packing(tuple(made.values()), frozenset(leaving) & (planned.keys() - made.keys()))


def _better(question: _Question, settled: Cluster) -> Mapping[str, Move]:
    """The solver's moves by guest, those that can be made once what is under way has ended; none: it found nothing."""
    best: Mapping[str, Move] = {}
    for in_any_order in (False, True):
        moves = _answer(question, in_any_order)
        made = _in_order(settled, moves)
        best = max(best, made, key=lambda each: _worth(each, question.asked_for))
        if len(made) == len(moves):
            break
    return best


def _worth(moves: Collection[str], leaving: Collection[str]) -> tuple[int, int]:
    """How many guests have a place, and how few moves that takes; the more the better."""
    return len(set(leaving).intersection(moves)), -len(moves)


def _settled(cluster: Cluster) -> Cluster:
    """The cluster once all that is under way has ended well."""
    moving = [guest for guest in cluster.guests.values() if guest.moving_to]
    return cluster.placed(replace(guest, host=guest.moving_to, moving_to="") for guest in moving)


def _in_order(cluster: Cluster, moves: Iterable[Move]) -> dict[str, Move]:
    """Those that can be made, by guest, each once those before it are: again and again the next one that can."""
    placement = Placement(cluster)
    left, made = list(moves), dict[str, Move]()
    while True:
        waiting = []
        for move in left:
            if placement.candidates(move.guest)[placement.row[move.destination]]:
                placement.move(move.guest, move.destination)
                made[move.guest] = move
            else:
                waiting.append(move)
        if len(waiting) == len(left):
            return made
        left = waiting


class _Question:
    """What the solver decides on: guests, and the rows of the hosts where each may be afterwards. All else is fixed."""

    def __init__(
        self,
        cluster: Cluster,
        leaving: Collection[str],
        found: Mapping[str, Move],
        avoid: Mapping[str, frozenset[str]],
        make_room: bool,
    ) -> None:
        self.cluster, self.asked_for, self.found, self.avoid = cluster, frozenset(leaving), found, avoid
        self.now = Placement(cluster)
        self.hosts = self._hosts([name for name in leaving if name not in found])
        here = {self.now.hosts[row] for row in self.hosts}
        elsewhere = {name for name, move in found.items() if move.destination not in here}
        #: They may end without a place.
        self.leaving = sorted(set(leaving) - elsewhere)
        #: They may stay where they are.
        self.staying = [name for name in self._in_the_way() if name not in elsewhere] if make_room else []
        asked = {*self.leaving, *self.staying}
        #: Moves of guests that are not asked about are made as they were found.
        self.kept = [move for name, move in found.items() if name not in asked]
        #: The fleet without those that are asked about, all others where they will be: room left by row, in bytes.
        self.fixed = Placement(
            replace(cluster, guests={name: guest for name, guest in cluster.guests.items() if name not in asked})
        )
        for move in self.kept:
            self.fixed.move(move.guest, move.destination)
        self.room = self.fixed.memory - self.fixed.settled
        fixed = self.fixed
        #: (group, row of a host) where somebody who is fixed will be.
        self.taken = {
            (group, int(fixed.home[row]))
            for row in np.flatnonzero(fixed.grouped).tolist()
            for group in fixed.guest(row).groups
        }
        self.places = {name: self._places(name) for name in (*self.leaving, *self.staying)}

    def _hosts(self, without: Sequence[str]) -> list[int]:
        """Rows of the hosts with most room once the moves that were found are made: by turns one that a guest without a
        place could go to, and one more, as long as there are not too many places."""
        now, room = self.now, self.now.memory - self.now.settled
        able = now.open & (room >= 0)
        for name, move in self.found.items():
            for host, change in ((move.source, 1), (move.destination, -1)):
                room[now.row[host]] += change * self.cluster.guests[name].memory
        wanted = able & np.any([np.zeros_like(able), *(now.roomless(name) for name in without)], axis=0)
        order = [row for row in np.argsort(-room, kind="stable").tolist() if able[row]]
        turns = zip_longest([row for row in order if wanted[row]], [row for row in order if not wanted[row]])
        guests, chosen = len(without), list[int]()
        for row in (row for turn in turns for row in turn if row is not None):
            guests += len(now.residents(row))
            if guests * (len(chosen) + 1) > _MOST_PLACES and len(chosen) > 1:
                break
            chosen.append(row)
        return sorted(chosen)

    def _in_the_way(self) -> list[str]:
        there = [self.now.guests[row] for host in self.hosts for row in self.now.residents(host).tolist()]
        return [name for name in there if held(self.cluster, name) is None]

    def _places(self, name: str) -> list[int]:
        """Rows of the hosts that the guest may go to as far as what is fixed goes."""
        guest = self.cluster.guests[name]
        allowed = self.now.roomless(name) & (self.room >= guest.memory)
        return [
            row for row in self.hosts if allowed[row] and not any((group, row) in self.taken for group in guest.groups)
        ]


def _answer(question: _Question, in_any_order: bool) -> list[Move]:
    """Where everybody goes who moves, whoever makes room before those who need it; empty: nothing was found."""
    model = _Model(question)
    if in_any_order:
        model.make_any_order_do()
    fewest = model.fewest()
    found = model.solve(fewest, _WORK, model.hint())
    if found is None:
        return []
    model.model.add(fewest <= model.value(fewest))
    found = model.solve(model.evenness(), _WORK_FOR_EVENNESS, found) or found
    hosts = question.now.hosts
    chosen = [(name, row) for (name, row), is_there in found.items() if is_there and row is not None]
    moves = [Move(name, question.cluster.guests[name].host, hosts[row]) for name, row in chosen]
    return sorted([*question.kept, *moves], key=lambda move: (move.guest in question.asked_for, move.guest))


class _Model:
    """The question in the solver's terms: one literal for each place that a guest may have."""

    def __init__(self, question: _Question) -> None:
        from ortools.sat.python import cp_model  # noqa: PLC0415 - an extra: loaded where it was asked for

        self.sat: Any = cp_model
        self.model: Any = cp_model.CpModel()
        self.solver: Any = cp_model.CpSolver()
        self.question = question
        #: The solver's words for `_Places`.
        self.literals: dict[tuple[str, int | None], Any] = {}
        self.at: dict[int, list[tuple[str, Any]]] = defaultdict(list)
        self.home = {name: question.now.row[question.cluster.guests[name].host] for name in question.staying}
        for name, rows in question.places.items():
            literals = {row: self.model.new_bool_var("") for row in (*rows, None)}
            self.model.add_exactly_one(literals.values())
            self.literals |= {(name, row): literal for row, literal in literals.items()}
            for row in rows:
                self.at[row].append((name, literals[row]))
            if name in self.home:
                self.at[self.home[name]].append((name, literals[None]))
        self._memory_suffices()
        self._groups_stay_apart()

    def _memory_suffices(self) -> None:
        guests, room = self.question.cluster.guests, self.question.room
        for row, there in self.at.items():
            self.model.add(sum(guests[name].memory * literal for name, literal in there) <= int(room[row]))

    def _groups_stay_apart(self) -> None:
        """Whoever comes finds nobody of its group; two that are together already may stay so."""
        guests = self.question.cluster.guests
        for row, there in self.at.items():
            coming: dict[str, list[Any]] = defaultdict(list)
            present: dict[str, list[Any]] = defaultdict(list)
            for name, literal in there:
                for group in sorted(guests[name].groups):
                    (present if self.home.get(name) == row else coming)[group].append(literal)
            for group, literals in coming.items():
                for stays in present[group] or [None]:
                    self.model.add_at_most_one(literals if stays is None else [*literals, stays])

    def make_any_order_do(self) -> None:
        """Whoever makes room goes where there is room now, and nobody of its group: they wait for nothing then."""
        now, guests = self.question.now, self.question.cluster.guests
        for row, there in self.at.items():
            coming = [(name, literal) for name, literal in there if self.home.get(name, row) != row]
            self.model.add(sum(guests[name].memory * literal for name, literal in coming) <= max(0, int(now.left[row])))
            for name, literal in coming:
                if any(row in now.group_hosts.get(group, ()) for group in guests[name].groups):
                    self.model.add(literal == 0)

    def fewest(self) -> Any:
        """Guests without a place first, then moves, then places to avoid: none is traded for those after it."""
        avoided = [
            literal
            for (name, row), literal in self.literals.items()
            if row is not None and self.question.now.hosts[row] in self.question.avoid.get(name, ())
        ]
        a_move = len(self.question.leaving) + 1
        a_place = a_move * (len(self.question.staying) + 1)
        without = sum(self.literals[name, None] for name in self.question.leaving)
        moved = sum(1 - self.literals[name, None] for name in self.question.staying)
        return a_place * without + a_move * moved + sum(avoided)

    def evenness(self) -> Any:
        """What hosts have above the mean of their memory and load, and load above their cores, weighed as the score
        weighs them."""
        fixed, asked = self.question.fixed, self.question.places
        memory = {name: float(self.question.cluster.guests[name].memory) for name in asked}
        load = {name: self.question.cluster.guests[name].load for name in asked}
        return (
            self._above(memory, fixed.settled, fixed.memory, 1.0, None)
            + self._above(load, fixed.load, fixed.cpus, 0.5, None)
            + self._above(load, fixed.load, fixed.cpus, 4.0, 1.0)
        )

    def _above(
        self, of: Mapping[str, float], there: Ints | Floats, capacity: Ints | Floats, weight: float, limit: float | None
    ) -> Any:
        """What hosts have above this part of their capacity, or, where that is None, above the mean, in parts of it."""
        hosts = [row for row in self.question.hosts if capacity[row] > 0]
        mean = (sum(of.values()) + sum(float(there[row]) for row in hosts)) / max(
            1, sum(int(capacity[row]) for row in hosts)
        )
        limit, scale = (limit, weight * _WHOLE) if limit else (mean, weight * _WHOLE / (mean or 1.0))
        terms = []
        for row in hosts:
            steps = [(round(scale * of[name] / float(capacity[row])), literal) for name, literal in self.at[row]]
            already = round(scale * (float(there[row]) / float(capacity[row]) - limit))
            above = self.model.new_int_var(0, max(0, already + sum(step for step, _ in steps)), "")
            self.model.add(above >= already + sum(step * literal for step, literal in steps))
            terms.append(above)
        return sum(terms)

    def hint(self) -> _Places:
        """The moves that were found without it."""
        found, row = self.question.found, self.question.now.row
        chosen = {name: row[found[name].destination] if name in found else None for name in self.question.places}
        return {(name, row): chosen[name] == row for name, row in self.literals}

    def solve(self, least: Any, work: float, hint: _Places) -> _Places | None:
        """What makes `least` least, as far as `work` goes; None: nothing was found."""
        self.model.minimize(least)
        self.model.clear_hints()
        for key, literal in self.literals.items():
            self.model.add_hint(literal, hint[key])
        self.solver.parameters.num_workers = 1
        self.solver.parameters.random_seed = 0
        self.solver.parameters.max_deterministic_time = work
        if self.solver.solve(self.model) not in (self.sat.OPTIMAL, self.sat.FEASIBLE):
            return None
        return {key: self.solver.boolean_value(literal) for key, literal in self.literals.items()}

    def value(self, of: Any) -> int:
        """What a sum is in the solution found last."""
        return int(self.solver.value(of))
