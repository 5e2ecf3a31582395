"""What every job is made of, whatever it wants of its guests: attempts, a fate for each guest, a step, an end. Pure.

A step looks at the fleet as it is, never at what an earlier step meant to do. So any number of steps may run, at once
or after a crash of everything: the same fleet gives the same step, and a move asked for twice has the same id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256

from tasks.planning.cluster import Cluster
from tasks.planning.moves import Move
from tasks.planning.rules import Refusal


class Fate(StrEnum):
    """What has become of one guest of a job."""

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
    """What has become of the job."""

    RUNNING = "running"
    #: Nobody is asked for any more; what moves goes on to its end.
    ENDING = "ending"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: Moves that wait for the end of one other are asked for as well: a slot that falls free is then taken at once, not
#: with the next step.
WAVES_AHEAD = 2
#: Such an end says nothing against the guest or its destination: nobody had begun to move it.
_NOT_TRIED = frozenset({"pinned", "cordoned", "expired", "guest-moved", "cancelled"})
#: Rules that refuse for as long as something else lasts: a worker that starts again, a move that ends.
PASSING = frozenset({"stale", "moving"})
#: From which there is no way back.
ENDED = frozenset({State.COMPLETED, State.PARTIAL, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One move of a guest that this job asked for. `open`: it has not ended; `reason`: how it failed.

    `queued`: it was not let onto the links yet, so that it can be taken back at no cost.
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
    """One guest: its fate, why, where it is now ("": gone), and how many attempts it has had.

    `home`: the emptied host that it was on; "" where the job empties none.
    """

    fate: Fate
    reason: str
    host: str
    attempts: int = 0
    home: str = ""


@dataclass(frozen=True)
class Step:
    """What the job has come to, and what is to be done: ask for `asks`, end `cancels`."""

    state: State
    reason: str
    guests: Mapping[str, Standing] = field(default_factory=dict)
    asks: tuple[Ask, ...] = ()
    #: Guests whose open move is to be cancelled.
    cancels: tuple[str, ...] = ()


def migration_id(job: str, guest: str, number: int) -> str:
    """The id of the move of `guest` that is the attempt of this number: whoever asks for it, it is one migration."""
    return f"m-{sha256(f'{job} {guest} {number}'.encode()).hexdigest()[:16]}"


def by_guest(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    """Each guest's attempts, the first one first."""
    had: dict[str, list[Attempt]] = {}
    for each in sorted(attempts, key=lambda each: each.number):
        had.setdefault(each.guest, []).append(each)
    return had


def failed(had: Iterable[Attempt]) -> list[Attempt]:
    """Those that count against the budget."""
    return [each for each in had if not each.open and not each.completed and each.reason not in _NOT_TRIED]


def under_way(had: list[Attempt]) -> bool:
    """Whether the last one has not ended."""
    return bool(had) and had[-1].open


def taken_back(attempt: Attempt, cluster: Cluster, stopping: str) -> bool:
    """Whether a move that nobody has begun is not to be begun: the job is `stopping`, or its destination is a host that
    nobody speaks for: it might wait for that for ever, and others would take the guest."""
    host = cluster.hosts.get(attempt.destination)
    return attempt.queued and (bool(stopping) or host is None or host.stale)


def standing(cluster: Cluster, name: str, had: list[Attempt], budget: int, arrived: str) -> Standing:
    """How this guest stands. `arrived`: why it need not be moved any more, if it is not on its way; "": it is to be."""
    guest = cluster.guests.get(name)
    if guest is None:
        return Standing(Fate.GONE, "no host has it any more", "", len(had))
    if guest.moving_to or under_way(had):
        to = guest.moving_to or had[-1].destination
        return Standing(Fate.MOVING, f"it is on its way to {to}", guest.host, len(had))
    if arrived:
        return Standing(Fate.MOVED, arrived, guest.host, len(had))
    lost = failed(had)
    if len(lost) >= budget:
        return Standing(Fate.FAILED, lost[-1].reason or "its move failed", guest.host, len(had))
    silent = "" if guest.host in cluster.hosts else f"unknown-host: nobody speaks for {guest.host}"
    return Standing(Fate.WAITING, silent or (lost[-1].reason if lost else ""), guest.host, len(had))


def refused(before: Standing, refusal: Refusal, passing: bool) -> Standing:
    """The same, kept where it is by a rule; `passing`: only for as long as something else lasts."""
    fate = Fate.WAITING if passing else Fate.REFUSED
    return replace(before, fate=fate, reason=f"{refusal.rule}: {refusal.why}")


def given_up(standings: Mapping[str, Standing], silent: Collection[str]) -> dict[str, Standing]:
    """Guests that wait on hosts which have been silent for long, or move from there: only these hosts could say more,
    and no job waits for that without end. What is under way is not ended by it: the guest may have been given away."""
    return {
        name: replace(
            each,
            fate=Fate.FAILED,
            reason=f"silent: nobody has spoken for {each.host} for long; start its workers, or, once it is fenced, say"
            f" so (droveway reconcile --fenced {each.host})",
        )
        for name, each in standings.items()
        if each.host in silent and each.fate in (Fate.WAITING, Fate.MOVING)
    }


def outcome(
    standings: Mapping[str, Standing], *, stopping: str, cancelled: bool, all_done: str, none: str
) -> tuple[State, str]:
    """What the job has come to, and why. `stopping`: why nothing more is asked for; "": it is.

    `all_done` says it with `{done}` guests, `none` when there was not one.
    """
    counts = {fate: sum(each.fate is fate for each in standings.values()) for fate in Fate}
    left = counts[Fate.WAITING] + counts[Fate.REFUSED] + counts[Fate.FAILED]
    done = counts[Fate.MOVED] + counts[Fate.GONE]
    if not left + counts[Fate.MOVING]:
        return State.COMPLETED, all_done.format(done=done) if done else none
    if counts[Fate.MOVING]:
        return (
            (State.ENDING, f"{stopping}; {counts[Fate.MOVING]} are still moving") if stopping else (State.RUNNING, "")
        )
    if cancelled:
        return State.CANCELLED, f"{stopping}; {left} of {done + left} guests stay"
    if counts[Fate.WAITING] and not stopping:
        return State.RUNNING, ""
    why = stopping or "nothing more can be moved"
    return State.PARTIAL if done else State.FAILED, f"{why}; {left} of {done + left} guests stay"
