"""Both sides of a handover and everything between them as a finite world, and every way through it.

    python -m tests.machines.handover_world [FAULTS]     counts; without a number: any number of faults

A world is two hosts (journal, mover or none, the actions that are left of its step, the guest's copy, messages that
have arrived), their connection, and Redis. One transition is one action, one event, or one fault: so a crash comes
between any two actions. The tables, `step`, `resumed`, `heard`, `facts_of` and `may_run` are the real ones; the model
adds only what surrounds them: what `drive` promises, and what a crash takes away.

The search goes by the number of faults, then by steps, and expands a world once, with the fewest faults that lead to
it. So a counterexample is one with the fewest faults.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from config.errors import DrovewayError
from workers.handover import machine
from workers.handover.machine import Entry, Fact, Handed
from workers.handover.states import SETTLED, Action, Event, State
from workers.pairing.contract import Side


class Copy(StrEnum):
    """One host's copy of the guest."""

    RUNNING = "running"
    PAUSED = "paused"  # complete
    INCOMPLETE = "incomplete"  # being written by the source
    BEHIND = "behind"  # complete once; the other copy has run since
    DROPPED = "dropped"  # by its own mover
    LOST = "lost"  # with its host, or its process ended


#: No copy: a mover cannot tell why.
NONE = (Copy.DROPPED, Copy.LOST)


class Invariant(StrEnum):
    """What must hold in every world."""

    ONE_RUNS = "never two copies run"
    JOURNAL_ALLOWS = "a copy runs only where its host's journal allows it"
    GIVEN_IS_GIVEN = "a source that journalled GIVEN never runs under that epoch again"
    READY_IS_A_PROMISE = "a READY destination drops its copy only when the source's journal voids the attempt"
    NEVER_GONE = "unless its owner was lost, the guest exists complete somewhere"
    NEVER_BEHIND = "a copy that is incomplete or fell behind is not resumed"
    SETTLES = "once faults stop, the guest runs once and both sides settle"
    FENCING_SETTLES = "with the destination down for good, an operator's word settles it"
    LEGAL = "no step is refused by the table"


class Host(NamedTuple):
    up: bool
    mover: State | None  # None: no process drives the handover here
    left: tuple[Action, ...]  # of the step that the mover is taking
    to: State | None  # where that step leads
    epoch: int
    entry: Entry
    copy: Copy
    promised: bool  # GIVEN (source), READY (destination) was journalled, ever
    inbox: tuple[Event, ...]  # a bag: what came in-band and was not read


class World(NamedTuple):
    source: Host
    destination: Host
    link: bool
    redis: bool
    facts: frozenset[tuple[int, str]]
    owner_lost: bool  # the copy went with its owner, or was the last: nothing that we do brings it back
    fenced: bool


START = World(
    Host(True, State.OWNING, (), None, 1, Entry.BEGUN, Copy.RUNNING, False, ()),
    Host(True, State.LOADING, (), None, 1, Entry.BEGUN, Copy.INCOMPLETE, False, ()),
    link=True,
    redis=True,
    facts=frozenset(),
    owner_lost=False,
    fenced=False,
)

PEER = {Side.SOURCE: Side.DESTINATION, Side.DESTINATION: Side.SOURCE}
#: How each word is understood in-band, and which fact it is beside the connection.
TOLD: dict[Action, tuple[Event | None, Fact | None]] = {
    Action.TELL_READY: (Event.READY, None),
    Action.TELL_GIVEN: (Event.GIVEN, Fact.GIVEN),
    Action.TELL_TAKEN: (Event.TAKEN, Fact.TAKEN),
    Action.TELL_ABORTED: (Event.ABORT, Fact.ABORTED),
    Action.TELL_TAKEN_BACK: (None, Fact.TAKEN_BACK),
    Action.TELL_DISCARDED: (None, Fact.DISCARDED),
}
#: Of one message. A second one is a repetition; a third teaches nothing that the second does not.
MOST = 2


class Kind(StrEnum):
    """Whose doing a transition is."""

    FAIR = "fair"  # happens sooner or later once faults stop
    OPERATOR = "operator"
    HOST_UP = "host-up"  # may never happen
    FAULT = "fault"


class Move(NamedTuple):
    kind: Kind
    label: str
    world: World


class Violation(Exception):  # noqa: N818  # a finding, not an error of the search
    """An invariant does not hold; `trace` is how the world got there."""

    def __init__(self, invariant: Invariant, detail: str, trace: tuple[str, ...] = ()) -> None:
        super().__init__(f"{invariant}: {detail}\n  " + "\n  ".join(trace))
        self.invariant = invariant
        self.detail = detail
        self.trace = trace


@cache
def handed(side: Side, epoch: int, entry: Entry) -> Handed:
    return Handed(epoch, side, entry)


def at(world: World, side: Side) -> Host:
    return world.source if side is Side.SOURCE else world.destination


def put(world: World, side: Side, **changes: object) -> World:
    host = at(world, side)._replace(**changes)  # type: ignore[arg-type]
    return world._replace(source=host) if side is Side.SOURCE else world._replace(destination=host)


def journal(world: World, side: Side) -> Handed:
    host = at(world, side)
    return handed(side, host.epoch, host.entry)


# --- what a mover does ------------------------------------------------------------------------------------------------


def take(world: World, side: Side, state: State, event: Event) -> World:
    """The mover takes a step: its actions are still to be done. A destination looks for its copy first, as `drive`."""
    if side is Side.DESTINATION and event in (Event.GIVEN, Event.RECOVER) and world.destination.copy in NONE:
        event = Event.LOST
    try:
        row = machine.step(side, state, event)
    except DrovewayError as error:
        raise Violation(Invariant.LEGAL, str(error)) from None
    if not row.actions:
        return put(world, side, mover=row.to)
    return put(world, side, mover=state, left=row.actions, to=row.to)


def act(world: World, side: Side) -> World:
    """The mover does the next action of its step."""
    host = at(world, side)
    action, left = host.left[0], host.left[1:]
    after = done(world, side, action)
    return put(after, side, left=left) if left else put(after, side, left=(), mover=host.to, to=None)


def interrupted(world: World, side: Side) -> World:
    """An action raises, so the attempt fails. What the step has journalled by then is so; nothing else of it counts."""
    host = at(world, side)
    journalled = machine.resumed(journal(world, side))
    state = journalled if journalled is host.to else host.mover
    assert state is not None
    return take(put(world, side, left=(), to=None, mover=state), side, state, Event.FAIL)


def done(world: World, side: Side, action: Action) -> World:
    host = at(world, side)
    match action:
        case Action.STOP:
            return put(world, side, copy=Copy.PAUSED) if host.copy is Copy.RUNNING else world
        case Action.CONT | Action.RESUME:  # here nobody else pauses the guest
            return cont(world, side)
        case Action.DROP:
            return world if host.copy is Copy.LOST else put(world, side, copy=Copy.DROPPED)
    if action in TOLD:
        return tell(world, side, action)
    entry = Entry(action.removeprefix("journal-"))
    epoch = host.epoch + (entry is Entry.TAKEN_BACK)
    return put(world, side, entry=entry, epoch=epoch, promised=host.promised or entry in (Entry.GIVEN, Entry.READY))


def cont(world: World, side: Side) -> World:
    copy = at(world, side).copy
    if copy in (Copy.RUNNING, Copy.LOST):  # where it is lost, the driver's CONT fails and changes nothing
        return world
    if copy in (Copy.INCOMPLETE, Copy.DROPPED) or (copy is Copy.BEHIND and not world.fenced):
        raise Violation(Invariant.NEVER_BEHIND, f"{side} resumes a copy that is {copy}")
    world = put(world, side, copy=Copy.RUNNING)
    if at(world, PEER[side]).copy is Copy.PAUSED:
        world = put(world, PEER[side], copy=Copy.BEHIND)
    return world


def tell(world: World, side: Side, action: Action) -> World:
    event, fact = TOLD[action]
    peer = at(world, PEER[side])
    if event is not None and world.link and peer.mover is not None:
        world = sent(world, PEER[side], event)
    if fact is not None and world.redis:
        world = world._replace(facts=world.facts | {(at(world, side).epoch, fact)})
    return world


def sent(world: World, side: Side, event: Event) -> World:
    inbox = at(world, side).inbox
    return world if inbox.count(event) == MOST else put(world, side, inbox=tuple(sorted((*inbox, event))))


def without(inbox: tuple[Event, ...], event: Event) -> tuple[Event, ...]:
    where = inbox.index(event)
    return inbox[:where] + inbox[where + 1 :]


# --- what can happen next ---------------------------------------------------------------------------------------------


def moves(world: World) -> Iterator[Move]:
    for side in Side:
        yield from moves_of_mover(world, side)
        yield from moves_of_host(world, side)
    yield from moves_of_messages(world)
    yield from moves_of_redis(world)


def moves_of_mover(world: World, side: Side) -> Iterator[Move]:
    host = at(world, side)
    if host.mover is None:
        return
    if host.left:
        yield Move(Kind.FAIR, f"{side}: {host.left[0]}", act(world, side))
        yield Move(Kind.FAULT, f"{side}: {host.left[0]} fails", interrupted(world, side))
    else:
        for kind, cause, event, before in events(world, side, host):
            yield Move(kind, f"{side}: {event} ({cause})", take(before, side, host.mover, event))
        if host.mover in SETTLED or host.mover in (State.READY, State.GIVEN):  # these wait only for so long
            yield Move(Kind.FAIR, f"{side}: mover ends", without_mover(world, side))
    yield Move(Kind.FAULT, f"{side}: mover killed", without_mover(world, side))


def events(world: World, side: Side, host: Host) -> Iterator[tuple[Kind, str, Event, World]]:
    """What an idle mover may meet: (whose doing, by what way, the event, the world that it is taken in)."""
    for event in dict.fromkeys(host.inbox):
        yield Kind.FAIR, "in-band", event, put(world, side, inbox=without(host.inbox, event))
    fact = machine.heard(side, host.epoch, world.facts) if world.redis else None
    if fact is not None:
        yield Kind.FAIR, "fact", fact, world
    failing = not world.link or host.copy in NONE
    yield (Kind.FAIR, "lost", Event.FAIL, world) if failing else (Kind.FAULT, "cancel", Event.FAIL, world)
    if side is Side.DESTINATION:
        if host.mover is State.LOADING and host.copy is Copy.PAUSED:
            yield Kind.FAIR, "verified", Event.LOADED, world
        return
    if host.mover is State.OWNING and world.link:
        yield Kind.FAIR, "verdict", Event.PAUSE, world
    if may_be_fenced(world):
        yield Kind.OPERATOR, "operator", Event.FENCED, world._replace(fenced=True)


def may_be_fenced(world: World) -> bool:
    """`reconcile --fenced` holds the source's lock, so no mover with unread messages is left; it resumes a copy."""
    source = world.source
    heard_of = world.redis and (source.epoch, Fact.TAKEN) in world.facts
    waiting = source.mover is State.GIVEN and not source.inbox and source.copy in (Copy.PAUSED, Copy.BEHIND)
    return waiting and not world.destination.up and not heard_of


def moves_of_host(world: World, side: Side) -> Iterator[Move]:
    host = at(world, side)
    if not host.up:
        yield Move(Kind.HOST_UP, f"{side}: host up", put(world, side, up=True))
        return
    if host.mover is None:
        yield Move(Kind.FAIR, f"{side}: mover starts again", recovered(world, side))
    told = machine.facts_of(journal(world, side))
    if world.redis and not world.facts.issuperset(told):
        yield Move(Kind.FAIR, f"{side}: tells its journal", world._replace(facts=world.facts.union(told)))
    if side is Side.DESTINATION and host.copy not in NONE:
        yield Move(Kind.FAULT, f"{side}: guest's process ends", lost(world, side))
    yield Move(Kind.FAULT, f"{side}: host down", put(lost(without_mover(world, side), side), side, up=False))


def recovered(world: World, side: Side) -> World:
    return take(world, side, machine.resumed(journal(world, side)), Event.RECOVER)


def without_mover(world: World, side: Side) -> World:
    return put(world, side, mover=None, left=(), to=None, inbox=())._replace(link=False)


def lost(world: World, side: Side) -> World:
    """The copy went, and not by our doing."""
    owner = machine.may_run(journal(world, side)) or at(world, side).to is State.TAKEN
    last = at(world, PEER[side]).copy in (Copy.LOST, Copy.BEHIND)
    return put(world, side, copy=Copy.LOST)._replace(owner_lost=world.owner_lost or owner or last)


def moves_of_messages(world: World) -> Iterator[Move]:
    source, destination = world.source, world.destination
    loads = source.mover is State.PAUSED and destination.mover is State.LOADING and not destination.left
    if world.link and loads and not source.left and destination.copy is Copy.INCOMPLETE:
        yield Move(Kind.FAIR, "last round and device state", put(world, Side.DESTINATION, copy=Copy.PAUSED))
    if world.link:
        yield Move(Kind.FAULT, "connection lost", world._replace(link=False))
    for side in Side:
        inbox = at(world, side).inbox
        for event in dict.fromkeys(inbox):
            if not world.link:
                rest = without(inbox, event)
                yield Move(Kind.FAULT, f"{event} to {side} lost with the connection", put(world, side, inbox=rest))
            elif inbox.count(event) < MOST:
                yield Move(Kind.FAULT, f"{event} to {side} repeated", sent(world, side, event))


def moves_of_redis(world: World) -> Iterator[Move]:
    if not world.redis:
        yield Move(Kind.FAIR, "Redis is back", world._replace(redis=True))
    else:
        yield Move(Kind.FAULT, "Redis is away", world._replace(redis=False))
    if len(world.facts) > 1:
        yield Move(Kind.FAULT, "Redis forgets everything", world._replace(facts=frozenset()))
    for fact in world.facts:  # its last seconds, say
        yield Move(Kind.FAULT, f"Redis forgets {fact[1]}", world._replace(facts=world.facts - {fact}))


# --- what must hold ---------------------------------------------------------------------------------------------------


def exists(world: World) -> bool:
    whole = (Copy.RUNNING, Copy.PAUSED)
    return world.source.copy in whole or world.destination.copy in whole


def broken(world: World) -> Invariant | None:
    """The first invariant that does not hold in this world."""
    source, destination = world.source, world.destination
    if source.copy is Copy.RUNNING and destination.copy is Copy.RUNNING:
        return Invariant.ONE_RUNS
    if source.copy is Copy.RUNNING and source.promised and source.epoch == START.source.epoch:
        return Invariant.GIVEN_IS_GIVEN
    for side in Side:
        if at(world, side).copy is Copy.RUNNING and not machine.may_run(journal(world, side)):
            return Invariant.JOURNAL_ALLOWS
    voided = source.entry in (Entry.ABORTED, Entry.TAKEN_BACK)
    if destination.promised and destination.copy is Copy.DROPPED and not voided:
        return Invariant.READY_IS_A_PROMISE
    if not world.owner_lost and not exists(world):
        return Invariant.NEVER_GONE
    return None


def settled(world: World) -> bool:
    """Both sides have nothing left to do, one journal owns the guest, and there it runs (or went with its host)."""
    ends = [journal(world, side) for side in Side]
    if any(machine.resumed(end) not in SETTLED for end in ends):
        return False
    owners = [end.side for end in ends if machine.may_run(end)]
    running = [side for side in Side if at(world, side).copy is Copy.RUNNING]
    return len(owners) == 1 and (running == owners or (world.owner_lost and not running))


# --- the search -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Exploration:
    """The worlds found so far, numbered, and how they hang together."""

    worlds: list[World] = field(default_factory=list)
    came_by: list[tuple[int, str]] = field(default_factory=list)  # (the world before, what happened there)
    faults: list[int] = field(default_factory=list)  # on the way there
    steps: list[int] = field(default_factory=list)
    before: dict[Kind, list[list[int]]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    transitions: int = 0
    seconds: float = 0.0
    _numbers: dict[World, int] = field(default_factory=dict)
    _hosts: dict[Host, Host] = field(default_factory=dict)

    def number(self, world: World) -> int | None:
        return self._numbers.get(world)

    def add(self, world: World, before: int, label: str, *, fault: bool) -> int:
        number = len(self.worlds)
        # Few different hosts make many worlds: keeping each host once keeps them all in memory.
        source = self._hosts.setdefault(world.source, world.source)
        destination = self._hosts.setdefault(world.destination, world.destination)
        world = world._replace(source=source, destination=destination)
        self._numbers[world] = number
        self.worlds.append(world)
        self.came_by.append((before, label))
        self.faults.append(self.faults[before] + fault if number else 0)
        self.steps.append(self.steps[before] + 1 if number else 0)
        for lists in self.before.values():
            lists.append([])
        return number

    def trace(self, number: int) -> tuple[str, ...]:
        labels = []
        while number:
            number, label = self.came_by[number]
            labels.append(label)
        return tuple(reversed(labels))

    def __str__(self) -> str:
        return (
            f"{len(self.worlds)} worlds, {self.transitions} transitions, {sum(map(settled, self.worlds))} settled; "
            f"farthest world: {max(self.faults)} faults, deepest path: {max(self.steps)} steps; {self.seconds:.1f} s"
        )


def explore(faults: float = math.inf) -> Exploration:
    """Every world within this many faults, all invariants checked. Raises Violation, with the way there."""
    began = time.monotonic()
    found = Exploration()
    found.add(START, 0, "", fault=False)
    level = [0]
    while level:
        level = _explore_level(found, level, faults)
    _check_settling(found)
    found.seconds = time.monotonic() - began
    return found


def _explore_level(found: Exploration, level: list[int], faults: float) -> list[int]:
    """Expand all worlds that need no further fault; the worlds that one more leads to."""
    nearer = deque(level)
    farther: list[int] = []
    while nearer:
        number = nearer.popleft()
        try:
            for kind, label, world in moves(found.worlds[number]):
                fault = kind is Kind.FAULT
                if fault and found.faults[number] >= faults:
                    continue
                found.transitions += 1
                after = found.number(world)
                if after is None:
                    after = found.add(world, number, label, fault=fault)
                    (farther if fault else nearer).append(after)
                    if (invariant := broken(world)) is not None:
                        raise Violation(invariant, str(world), found.trace(after))
                if not fault:
                    found.before[kind][after].append(number)
        except Violation as violation:
            if violation.trace:
                raise
            raise Violation(violation.invariant, violation.detail, found.trace(number)) from None
    return farther


def _check_settling(found: Exploration) -> None:
    ends = [number for number, world in enumerate(found.worlds) if settled(world)]
    _check_reach(found, ends, (Kind.FAIR, Kind.HOST_UP), Invariant.SETTLES, lambda world: True)
    ends = [n for n, world in enumerate(found.worlds) if world.owner_lost or world.source.copy is Copy.RUNNING]
    _check_reach(found, ends, (Kind.FAIR, Kind.OPERATOR), Invariant.FENCING_SETTLES, down_for_good)


def down_for_good(world: World) -> bool:
    return world.source.up and not world.destination.up


def _check_reach(
    found: Exploration, ends: list[int], kinds: tuple[Kind, ...], invariant: Invariant, which: Callable[[World], bool]
) -> None:
    """From each of `which` worlds, one of `ends` can be reached by transitions of these kinds alone."""
    reaching, todo = set(ends), list(ends)
    while todo:
        after = todo.pop()
        for kind in kinds:
            fresh = [number for number in found.before[kind][after] if number not in reaching]
            reaching.update(fresh)
            todo.extend(fresh)
    for number, world in enumerate(found.worlds):
        if number not in reaching and which(world):
            raise Violation(invariant, str(world), found.trace(number))


if __name__ == "__main__":
    print(explore(int(sys.argv[1]) if len(sys.argv) > 1 else math.inf))
