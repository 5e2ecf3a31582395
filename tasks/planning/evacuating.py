"""One step of an evacuation under way: what it has come to, and what is to be asked for now. Pure, level-triggered.

guests on the hosts ─► moved · gone · moving · waiting · failed (the budget of attempts is spent) · refused (a rule)
waiting ─► planned anew on the fleet of this moment ─► the first of the plan's schedule are asked for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tasks.planning.cluster import Cluster, Guest
from tasks.planning.evacuation import Solver, cordon, plan_evacuation
from tasks.planning.job import (
    PASSING,
    WAVES_AHEAD,
    Ask,
    Attempt,
    Fate,
    Standing,
    Step,
    by_guest,
    failed,
    given_up,
    migration_id,
    outcome,
    refused,
    standing,
    taken_back,
    under_way,
)
from tasks.planning.moves import Move
from tasks.planning.rules import Refusal, judge


@dataclass(frozen=True, slots=True)
class Evacuation:
    """What was asked for. `deadline` in seconds since 1970; `most_at_once` 0: as many as slots let through."""

    job: str
    hosts: frozenset[str]
    #: Every guest that was ever seen on the hosts: what is said of the evacuation is said of these.
    guests: frozenset[str] = frozenset()
    most_at_once: int = 0
    #: Moves of one guest that may fail before it is given up.
    attempts: int = 3
    deadline: float | None = None
    cancelled: bool = False
    #: Which of the hosts a guest was on when it was seen there last.
    homes: Mapping[str, str] = field(default_factory=dict)
    #: Guest → where a plan that was made before sends it first; the rules then may send it elsewhere.
    planned: Mapping[str, str] = field(default_factory=dict)
    #: What looks for places, at every step anew.
    solver: Solver = Solver.GREEDY


def step(
    asked: Evacuation,
    cluster: Cluster,
    attempts: Iterable[Attempt],
    now: float,
    silent: Collection[str] = frozenset(),
) -> Step:
    """The step to take now, all its hosts being cordoned. `attempts` are all moves that this evacuation ever asked for,
    in any order; `silent`: hosts for which nobody has spoken for long."""
    had = by_guest(attempts)
    closed = cordon(cluster, sorted(asked.hosts & cluster.hosts.keys()))
    there = [of.get(host, frozenset()) for host in asked.hosts for of in (closed.residents, closed.arrivals)]
    concerned = asked.guests.union(*there)
    standings = {name: _standing(asked, closed, name, had.get(name, [])) for name in sorted(concerned)}
    waiting = {name for name, each in standings.items() if each.fate is Fate.WAITING}
    late = asked.deadline is not None and now >= asked.deadline
    stopping = "it was cancelled" if asked.cancelled else "its deadline has passed" if late else ""
    asks: tuple[Ask, ...] = ()
    if waiting and not stopping:
        asks, refusals = _next(asked, closed, waiting, had, standings)
        standings |= {
            name: refused(standings[name], each, passing=each.rule in PASSING) for name, each in refusals.items()
        }
        standings |= _planned_anew(asked, closed, asks, standings)
    standings |= given_up(standings, silent)
    all_done, none = "all {done} guests have left", "there was no guest"
    state, reason = outcome(standings, stopping=stopping, cancelled=asked.cancelled, all_done=all_done, none=none)
    open_ones = {name: each[-1] for name, each in had.items() if under_way(each)}
    cancels = [name for name, last in open_ones.items() if asked.cancelled or taken_back(last, closed, stopping)]
    return Step(state, reason, standings, asks, tuple(sorted(cancels)))


def _standing(asked: Evacuation, cluster: Cluster, name: str, had: list[Attempt]) -> Standing:
    guest = cluster.guests.get(name)
    arrived = f"it is on {guest.host}" if guest and guest.host not in asked.hosts else ""
    found = standing(cluster, name, had, asked.attempts, arrived)
    planned = asked.planned.get(name)
    if had and planned and had[0].destination != planned and found.fate in (Fate.MOVING, Fate.MOVED):
        found = replace(found, reason=f"{found.reason}; the plan said {planned}, which was refused then")
    on_one_of_them = guest is not None and guest.host in asked.hosts
    return replace(found, home=guest.host if guest and on_one_of_them else asked.homes.get(name, ""))


def _next(
    asked: Evacuation,
    cluster: Cluster,
    waiting: set[str],
    had: Mapping[str, list[Attempt]],
    standings: Mapping[str, Standing],
) -> tuple[tuple[Ask, ...], dict[str, Refusal]]:
    """The moves to ask for now, and the guests that nothing can be planned for."""
    # Nobody is moved twice for one evacuation, nor asked for without end: room that was made and that another guest
    # took would else be made again and again, by the same guests.
    reasons = {name: _spent(asked, cluster.guests[name], each) for name, each in had.items() if name in cluster.guests}
    kept = cluster.placed(replace(cluster.guests[name], stays=why) for name, why in reasons.items() if why)
    avoid = {name: frozenset(each.destination for each in had.get(name, ())) for name in waiting}
    prefer = {name: host for name, host in asked.planned.items() if name not in had}
    hosts = asked.hosts & cluster.hosts.keys()
    plan = plan_evacuation(kept, hosts, avoid=avoid, prefer=prefer, solver=asked.solver)
    moving = sum(each.fate is Fate.MOVING for each in standings.values())
    room = len(plan.moves) if not asked.most_at_once else max(0, asked.most_at_once - moving)
    sending = Counter(cluster.guests[name].host for name in had if name in cluster.guests and under_way(had[name]))
    first = _ahead(cluster, sending, (timed.move for timed in plan.schedule.moves if timed.wave <= WAVES_AHEAD))
    asks = [_ask(asked, move, len(had.get(move.guest, ())) + 1) for move in first][:room]
    return tuple(asks), {name: refusal for name, refusal in plan.refused if name in waiting}


def _spent(asked: Evacuation, guest: Guest, had: list[Attempt]) -> str:
    """Why nothing more is asked for this guest; "": something may be."""
    if len(failed(had)) >= asked.attempts:
        return "its attempts are spent"
    moved = guest.host not in asked.hosts and any(each.completed for each in had)
    return "it was moved for this evacuation already" if moved else ""


def _ahead(cluster: Cluster, sending: Counter[str], moves: Iterable[Move]) -> list[Move]:
    """Those that give no source more than its slots take in so many waves, with what it is `sending` for us already.

    The others are not asked for now: a later step plans them anew, on the fleet as it will be then.
    """
    taken = []
    for move in moves:
        if sending[move.source] < WAVES_AHEAD * max(1, cluster.hosts[move.source].outbound):
            sending[move.source] += 1
            taken.append(move)
    return taken


def _ask(asked: Evacuation, move: Move, number: int) -> Ask:
    return Ask(migration_id(asked.job, move.guest, number), move, number)


def _planned_anew(
    asked: Evacuation, cluster: Cluster, asks: Iterable[Ask], standings: Mapping[str, Standing]
) -> dict[str, Standing]:
    """Guests that are now sent elsewhere than the plan said, with the rule that it has come to."""
    found = {}
    for ask in asks:
        guest, planned = ask.move.guest, asked.planned.get(ask.move.guest)
        if ask.number == 1 and planned not in (None, ask.move.destination) and guest in standings:
            refusal = judge(cluster, guest, str(planned))
            why = f"{refusal.rule}: {refusal.why}" if refusal else "others of this evacuation take the room there"
            found[guest] = replace(standings[guest], reason=f"planned anew, the plan said {planned}: {why}")
    return found
