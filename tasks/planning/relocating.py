"""One step of a relocation under way: these guests are to be on these hosts, and nowhere else. Pure, level-triggered.

    each wanted move ─► moved · gone · moving · waiting · failed (the budget of attempts is spent) · refused (a rule)
    waiting ─► judged by the rules on the fleet of this moment, in the order of the job ─► the first are asked for

A guest waits for what passes by itself: a host that is silent, a move that ends, room that somebody is leaving.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.planning.cluster import Cluster
from tasks.planning.job import (
    PASSING,
    WAVES_AHEAD,
    Ask,
    Attempt,
    Fate,
    Standing,
    Step,
    by_guest,
    given_up,
    migration_id,
    outcome,
    refused,
    standing,
    taken_back,
    under_way,
)
from tasks.planning.moves import Move, begin
from tasks.planning.rules import Refusal

#: A host that nobody speaks for is waited for like one that fell silent: its workers may only be starting again.
_PASSING = PASSING | {"unknown-host"}
#: Rules that refuse for want of room that guests who leave will give.
_ROOM = frozenset({"no-memory", "anti-affinity"})


@dataclass(frozen=True, slots=True)
class Relocation:
    """What was asked for: `moves`, one a guest, made in this order where it matters.

    `deadline` in seconds since 1970; `most_at_once` 0: as many as slots let through.
    """

    job: str
    moves: tuple[Move, ...]
    #: Hosts that it is for, as a `restore` has them; empty: none in particular.
    hosts: frozenset[str] = frozenset()
    most_at_once: int = 0
    #: Moves of one guest that may fail before it is given up.
    attempts: int = 3
    deadline: float | None = None
    cancelled: bool = False
    #: The evacuation or restore that it has given way to; "": none. What has not begun then never does.
    gave_way: str = ""


def step(
    asked: Relocation,
    cluster: Cluster,
    attempts: Iterable[Attempt],
    now: float,
    silent: Collection[str] = frozenset(),
) -> Step:
    """The step to take now. `attempts` are all moves that this relocation ever asked for, in any order; `silent`: hosts
    for which nobody has spoken for long."""
    had = by_guest(attempts)
    standings = {move.guest: _standing(asked, cluster, move, had.get(move.guest, [])) for move in asked.moves}
    waiting = [move for move in asked.moves if standings[move.guest].fate is Fate.WAITING]
    stopping = _stopping(asked, now)
    asks: tuple[Ask, ...] = ()
    if asked.gave_way:
        refusal = Refusal("evacuating", f"{asked.gave_way} needs the slots")
        standings |= {move.guest: refused(standings[move.guest], refusal, passing=False) for move in waiting}
    elif not stopping:
        asks, left = _next(asked, cluster, waiting, had, standings)
        standings |= left
    standings |= given_up(standings, silent)
    done = any(each.fate in (Fate.MOVED, Fate.GONE) for each in standings.values())
    state, reason = outcome(
        standings,
        stopping=stopping,
        cancelled=asked.cancelled or bool(asked.gave_way and not done),
        all_done="all {done} guests are where they were to be",
        none="there was no guest to move",
    )
    open_ones = [move.guest for move in asked.moves if under_way(had.get(move.guest, []))]
    cancels = [name for name in open_ones if asked.cancelled or taken_back(had[name][-1], cluster, stopping)]
    return Step(state, reason, standings, asks, tuple(sorted(cancels)))


def near(cluster: Cluster, moves: Iterable[Move]) -> Cluster:
    """The cluster without guests that no rule would look at for these moves: quicker to reckon with."""
    moves = list(moves)
    hosts, wanted = {move.destination for move in moves}, {move.guest for move in moves}
    return replace(
        cluster,
        guests={
            name: guest
            for name, guest in cluster.guests.items()
            if name in wanted or guest.host in hosts or guest.moving_to in hosts
        },
    )


def _stopping(asked: Relocation, now: float) -> str:
    if asked.cancelled:
        return "it was cancelled"
    if asked.gave_way:
        return f"it gave way to {asked.gave_way}, which needs the slots"
    return "its deadline has passed" if asked.deadline is not None and now >= asked.deadline else ""


def _standing(asked: Relocation, cluster: Cluster, move: Move, had: list[Attempt]) -> Standing:
    guest = cluster.guests.get(move.guest)
    arrived = ""
    if guest and guest.host == move.destination:
        arrived = f"it is on {guest.host}"
    elif guest and any(each.completed for each in had):
        # Whoever moved it on knew why: nobody is moved twice for one job.
        arrived = f"it was moved to {move.destination}, and is on {guest.host} since"
    return standing(cluster, move.guest, had, asked.attempts, arrived)


def _next(
    asked: Relocation,
    cluster: Cluster,
    waiting: Sequence[Move],
    had: Mapping[str, list[Attempt]],
    standings: Mapping[str, Standing],
) -> tuple[tuple[Ask, ...], dict[str, Standing]]:
    """The moves to ask for now, and how those stand that a rule refuses, or that wait for another one.

    What may be made and is not asked for yet, for want of slots, counts as begun: nobody behind it takes its room.
    """
    reckoned = near(cluster, asked.moves)
    moving = sum(each.fate is Fate.MOVING for each in standings.values())
    room = max(0, asked.most_at_once - moving) if asked.most_at_once else len(waiting)
    slots = _Slots(cluster, [each[-1] for each in had.values() if under_way(each)])
    asks: list[Ask] = []
    left: dict[str, Standing] = {}
    #: Host → the guest of this job that waits for room there, and the one that it is kept for.
    kept: dict[str, str] = {}
    for move in waiting:
        before = standings[move.guest]
        if first := kept.get(move.destination):
            left[move.guest] = replace(before, reason=f"{first} goes to {move.destination} first, once there is room")
            continue
        begun = begin(reckoned, move)
        if isinstance(begun, Refusal):
            makes_room = begun.rule in _ROOM and _is_left(reckoned, move.destination)
            if makes_room:
                kept[move.destination] = move.guest
            left[move.guest] = refused(before, begun, passing=makes_room or begun.rule in _PASSING)
            continue
        reckoned = begun
        if len(asks) < room and slots.take(move):
            number = len(had.get(move.guest, ())) + 1
            asks.append(Ask(migration_id(asked.job, move.guest, number), move, number))
    return tuple(asks), left


def _is_left(cluster: Cluster, host: str) -> bool:
    """Whether somebody who is on this host is on the way to another."""
    there = (cluster.guests[name] for name in cluster.residents.get(host, ()))
    return any(guest.moving_to not in ("", host) for guest in there)


class _Slots:
    """No host is given more, in either direction, than its slots take in so many waves; a later step asks for the
    others."""

    def __init__(self, cluster: Cluster, open_ones: Iterable[Attempt]) -> None:
        self._cluster = cluster
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        for each in open_ones:
            if guest := cluster.guests.get(each.guest):
                self._sent[guest.host] += 1
            self._received[each.destination] += 1

    def take(self, move: Move) -> bool:
        """Whether this move may be asked for now; it then counts."""
        source, destination = self._cluster.hosts[move.source], self._cluster.hosts[move.destination]
        if self._sent[move.source] >= WAVES_AHEAD * max(1, source.outbound):
            return False
        if self._received[move.destination] >= WAVES_AHEAD * max(1, destination.inbound):
            return False
        self._sent[move.source] += 1
        self._received[move.destination] += 1
        return True
