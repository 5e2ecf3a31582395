"""The handover machine: a step by the table, and where a side stands by its journal and what it is told. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from config.errors import DrovewayError, PeerError
from workers.handover.states import FROM_PEER, SETTLED, TABLES, Event, State, Step
from workers.pairing.contract import TAKEN_BACK, Side


class Entry(StrEnum):
    """What a journal can say of one attempt."""

    BORN = "born"  # no attempt: a new guest of this name was started here, the one before it is gone
    BEGUN = "begun"
    READY = "ready"
    GIVEN = "given"
    TAKEN = "taken"
    ABORTED = "aborted"
    RELEASED = "released"
    DISCARDED = "discarded"
    TAKEN_BACK = "taken-back"


class Fact(StrEnum):
    """What is told about (guest, epoch) beside the connection; each is true for ever once it is true."""

    GIVEN = "given"
    ABORTED = "aborted"
    TAKEN = "taken"
    TAKEN_BACK = TAKEN_BACK
    DISCARDED = "discarded"


Facts = Collection[tuple[int, str]]
"""(epoch, fact) pairs about one guest. Words that this program does not know are ignored."""


@dataclass(frozen=True, slots=True)
class Handed:
    """What this host's journal last said about a guest."""

    epoch: int
    side: Side
    entry: Entry


class IllegalStepError(DrovewayError):
    """A defect of ours: the driver tried a step that the table does not have. The state is unchanged."""

    reason = "illegal-step"


def step(side: Side, state: State, event: Event) -> Step:
    """The table's row. Raises PeerError when the peer caused an event that cannot be, IllegalStepError when we did."""
    row = TABLES[side].get(state, {}).get(event)
    if row is not None:
        return row
    if event in FROM_PEER:
        raise PeerError(f"the other side said {event} while this side is {state}: see `droveway reconcile`")
    raise IllegalStepError(f"{side} cannot {event} in state {state}")


def settled(handed: Handed) -> bool:
    """Whether nothing is left to do here for what the journal ends with."""
    return handed.entry is Entry.BORN or resumed(handed) in SETTLED


def resumed(handed: Handed) -> State:
    """Where a side starts again that finds this at the end of its journal; BORN, which is no attempt, is never asked.

    BEGUN stands for everything before the first promise. Whether the guest was paused by then is not known, and need
    not be: RECOVER does the same in OWNING and PAUSED.
    """
    if handed.entry is Entry.BEGUN:
        return State.PAUSED if handed.side is Side.SOURCE else State.LOADING
    return State(handed.entry.value)


def heard(side: Side, epoch: int, facts: Facts) -> Event | None:
    """The event that the facts amount to for this side under this epoch; None when they say nothing new to it."""
    if side is Side.SOURCE:
        if (epoch, Fact.TAKEN) in facts:
            return Event.TAKEN
        return Event.DISCARDED if (epoch, Fact.DISCARDED) in facts else None
    if any(other > epoch and fact == Fact.TAKEN_BACK for other, fact in facts):
        return Event.VOID
    if (epoch, Fact.ABORTED) in facts:
        return Event.ABORT
    return Event.GIVEN if (epoch, Fact.GIVEN) in facts else None


def facts_of(handed: Handed) -> tuple[tuple[int, Fact], ...]:
    """What a host keeps telling from its journal, so that a Redis that forgot is refilled.

    RELEASED tells nothing: TAKEN was known by then, and that is the destination's to tell.
    """
    told = {
        Entry.GIVEN: Fact.GIVEN,
        Entry.ABORTED: Fact.ABORTED,
        Entry.TAKEN: Fact.TAKEN,
        Entry.TAKEN_BACK: Fact.TAKEN_BACK,
        Entry.DISCARDED: Fact.DISCARDED,
    }
    return ((handed.epoch, told[handed.entry]),) if handed.entry in told else ()


def may_run(handed: Handed) -> bool:
    """Whether this host's journal allows the guest to run here: the one rule that prevents two copies."""
    if handed.entry is Entry.BEGUN:
        return handed.side is Side.SOURCE
    return handed.entry in (Entry.BORN, Entry.ABORTED, Entry.TAKEN, Entry.TAKEN_BACK)
