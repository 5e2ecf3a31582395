"""One step of an evacuation under way: what it has come to, and what is to be asked for now. Pure, level-triggered.

A step looks at the fleet as it is, never at what an earlier step meant to do. So any number of steps may run, at once
or after a crash of everything: the same fleet gives the same step, and a move asked for twice has the same id.

    guests on the hosts ─► moved · gone · moving · waiting · failed (the budget of attempts is spent) · refused (a rule)
    waiting ─► planned anew on the fleet of this moment ─► the first of the plan's schedule are asked for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256

from tasks.planning.cluster import Cluster, Guest
from tasks.planning.evacuation import Solver, cordon, plan_evacuation
from tasks.planning.moves import Move
from tasks.planning.rules import Refusal


class Fate(StrEnum):
    """What has become of one guest of an evacuation."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    #: Its host says nothing of it any more: it was stopped.
    GONE = "gone"
    #: A rule keeps it where it is.
    REFUSED = "refused"
    #: Every attempt that it may have has failed.
    FAILED = "failed"


class State(StrEnum):
    """What has become of the evacuation."""

    RUNNING = "running"
    #: Nobody is asked for any more; what moves goes on to its end.
    ENDING = "ending"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: Moves that wait for the end of one other are asked for as well: a slot that falls free is then taken at once, not
#: with the next step.
_WAVES_AHEAD = 2
#: Such an end says nothing against the guest or its destination: nobody had begun to move it.
_NOT_TRIED = frozenset({"pinned", "cordoned", "expired", "guest-moved", "cancelled"})
#: Rules that refuse for as long as something else lasts: a worker that starts again, a move that ends.
_PASSING = frozenset({"stale", "moving"})
#: From which there is no way back.
ENDED = frozenset({State.COMPLETED, State.PARTIAL, State.FAILED, State.CANCELLED})


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
    #: What looks for places, at every step anew.
    solver: Solver = Solver.GREEDY


@dataclass(frozen=True, slots=True)
class Attempt:
    """One move of a guest that this evacuation asked for. `open`: it has not ended; `reason`: how it failed.

    `queued`: it has not been admitted yet, so that it can be taken back at no cost.
    """

    guest: str
    destination: str
    number: int
    open: bool
    completed: bool = False
    reason: str = ""
    queued: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """A move to ask for, under an id that does not depend on who asks."""

    migration: str
    move: Move
    number: int


@dataclass(frozen=True, slots=True)
class Standing:
    """One guest: its fate, why, where it is now ("": gone), and how many attempts it has had."""

    fate: Fate
    reason: str
    host: str
    attempts: int = 0


@dataclass(frozen=True)
class Step:
    """What the evacuation has come to, and what is to be done: cordon all its hosts, ask for `asks`, end `cancels`."""

    state: State
    reason: str
    guests: Mapping[str, Standing] = field(default_factory=dict)
    asks: tuple[Ask, ...] = ()
    #: Guests whose open move is to be cancelled.
    cancels: tuple[str, ...] = ()


def step(asked: Evacuation, cluster: Cluster, attempts: Iterable[Attempt], now: float) -> Step:
    """The step to take now. `attempts` are all moves that this evacuation ever asked for, in any order."""
    had: dict[str, list[Attempt]] = {}
    for each in sorted(attempts, key=lambda each: each.number):
        had.setdefault(each.guest, []).append(each)
    closed = cordon(cluster, sorted(asked.hosts & cluster.hosts.keys()))
    there = [of.get(host, frozenset()) for host in asked.hosts for of in (closed.residents, closed.arrivals)]
    concerned = asked.guests.union(*there)
    standings = {name: _standing(asked, closed, name, had.get(name, [])) for name in sorted(concerned)}
    waiting = {name for name, each in standings.items() if each.fate is Fate.WAITING}
    late = asked.deadline is not None and now >= asked.deadline
    stopping = "it was cancelled" if asked.cancelled else "its deadline has passed" if late else ""
    asks: tuple[Ask, ...] = ()
    if waiting and not stopping:
        asks, refused = _next(asked, closed, waiting, had, standings)
        standings |= {name: _refused(standings[name], refusal) for name, refusal in refused.items()}
    state, reason = _state(asked, standings, stopping)
    open_ones = sorted(name for name, each in had.items() if _own(each))
    cancels = open_ones if asked.cancelled else [name for name in open_ones if _stranded(had[name][-1], closed)]
    return Step(state, reason, standings, asks, tuple(cancels))


def migration_id(job: str, guest: str, number: int) -> str:
    """The id of the move of `guest` that is the attempt of this number: whoever asks for it, it is one migration."""
    return f"m-{sha256(f'{job} {guest} {number}'.encode()).hexdigest()[:16]}"


def _standing(asked: Evacuation, cluster: Cluster, name: str, had: list[Attempt]) -> Standing:
    guest = cluster.guests.get(name)
    failed = _failed(had)
    if guest is None:
        return Standing(Fate.GONE, "no host has it any more", "", len(had))
    if guest.moving_to or _own(had):
        return Standing(
            Fate.MOVING, f"it is on its way to {guest.moving_to or had[-1].destination}", guest.host, len(had)
        )
    if guest.host not in asked.hosts:
        return Standing(Fate.MOVED, f"it is on {guest.host}", guest.host, len(had))
    if len(failed) >= asked.attempts:
        return Standing(Fate.FAILED, failed[-1].reason or "its move failed", guest.host, len(had))
    silent = "" if guest.host in cluster.hosts else f"unknown-host: nobody speaks for {guest.host}"
    return Standing(Fate.WAITING, silent or (failed[-1].reason if failed else ""), guest.host, len(had))


def _failed(had: Iterable[Attempt]) -> list[Attempt]:
    return [each for each in had if not each.open and not each.completed and each.reason not in _NOT_TRIED]


def _own(had: list[Attempt]) -> bool:
    return bool(had) and had[-1].open


def _stranded(attempt: Attempt, cluster: Cluster) -> bool:
    """Whether it waits for a host that nobody speaks for: it might do so for ever, and others would take the guest."""
    host = cluster.hosts.get(attempt.destination)
    return attempt.queued and (host is None or host.stale)


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
    plan = plan_evacuation(kept, asked.hosts & cluster.hosts.keys(), avoid=avoid, solver=asked.solver)
    under_way = sum(each.fate is Fate.MOVING for each in standings.values())
    room = len(plan.moves) if not asked.most_at_once else max(0, asked.most_at_once - under_way)
    sending = Counter(cluster.guests[name].host for name in had if name in cluster.guests and _own(had[name]))
    first = _ahead(cluster, sending, (timed.move for timed in plan.schedule.moves if timed.wave <= _WAVES_AHEAD))
    asks = [_ask(asked, move, len(had.get(move.guest, ())) + 1) for move in first][:room]
    return tuple(asks), {name: refusal for name, refusal in plan.refused if name in waiting}


def _spent(asked: Evacuation, guest: Guest, had: list[Attempt]) -> str:
    """Why nothing more is asked for this guest; "": something may be."""
    if len(_failed(had)) >= asked.attempts:
        return "its attempts are spent"
    moved = guest.host not in asked.hosts and any(each.completed for each in had)
    return "it was moved for this evacuation already" if moved else ""


def _ahead(cluster: Cluster, sending: Counter[str], moves: Iterable[Move]) -> list[Move]:
    """Those that give no source more than its slots take in so many waves, with what it is `sending` for us already.

    The others are not asked for now: a later step plans them anew, on the fleet as it will be then.
    """
    taken = []
    for move in moves:
        if sending[move.source] < _WAVES_AHEAD * max(1, cluster.hosts[move.source].outbound):
            sending[move.source] += 1
            taken.append(move)
    return taken


def _ask(asked: Evacuation, move: Move, number: int) -> Ask:
    return Ask(migration_id(asked.job, move.guest, number), move, number)


def _refused(before: Standing, refusal: Refusal) -> Standing:
    fate = Fate.WAITING if refusal.rule in _PASSING else Fate.REFUSED
    return replace(before, fate=fate, reason=f"{refusal.rule}: {refusal.why}")


def _state(asked: Evacuation, standings: Mapping[str, Standing], stopping: str) -> tuple[State, str]:
    counts = {fate: sum(each.fate is fate for each in standings.values()) for fate in Fate}
    left = counts[Fate.WAITING] + counts[Fate.REFUSED] + counts[Fate.FAILED]
    on_the_hosts = left + counts[Fate.MOVING]
    done = counts[Fate.MOVED] + counts[Fate.GONE]
    if not on_the_hosts:
        return State.COMPLETED, f"all {done} guests have left" if done else "there was no guest"
    if counts[Fate.MOVING]:
        return (
            (State.ENDING, f"{stopping}; {counts[Fate.MOVING]} are still moving") if stopping else (State.RUNNING, "")
        )
    if asked.cancelled:
        return State.CANCELLED, f"{stopping}; {left} of {done + left} guests stay"
    if counts[Fate.WAITING] and not stopping:
        return State.RUNNING, ""
    why = stopping or "nothing more can be moved"
    return State.PARTIAL if done else State.FAILED, f"{why}; {left} of {done + left} guests stay"
