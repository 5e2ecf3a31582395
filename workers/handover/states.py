"""The handover as tables: role → state → event → actions, in order, and the next state. Nothing else decides.

The source owns the guest until it has journalled GIVEN; the destination from when it has journalled TAKEN. In between
nobody may run it. Rules that head everything here: what must be durable is journalled before anything follows from it,
and this file does not know whether a step is taken by a live mover, a restarted one, or `reconcile`: they share it.

A crash may come between any two actions, so each is idempotent, and RECOVER repeats what the last journalled entry
implies. What a table does not list is illegal and leaves the state as it was.

`python -m workers.handover.states` draws the diagrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from workers.pairing.contract import Side


class State(StrEnum):
    """Where one side stands in one attempt."""

    # source
    OWNING = "owning"  # the guest runs here
    PAUSED = "paused"  # still the owner; last round and device state are on their way
    GIVEN = "given"  # no longer the owner; keeps its complete, paused copy until TAKEN
    RELEASED = "released"  # the copy is gone
    ABORTED = "aborted"  # the owner for good, under this epoch
    TAKEN_BACK = "taken-back"  # the owner again, under a higher epoch, by an operator's word
    # destination
    LOADING = "loading"  # an incoming twin, nothing promised
    READY = "ready"  # complete, verified, paused; waits for GIVEN or ABORT, whatever happens
    TAKEN = "taken"  # the owner
    DISCARDED = "discarded"  # the copy is gone


class Event(StrEnum):
    """What happens to a side."""

    PAUSE = "pause"  # the verdict: switch over
    LOADED = "loaded"  # memory compared, device state loaded
    READY = "ready"  # the destination said so
    GIVEN = "given"  # the source said so, in-band or as a fact
    TAKEN = "taken"  # the destination said so, in-band or as a fact
    ABORT = "abort"  # the source said so
    VOID = "void"  # the source owns the guest again under a higher epoch: what it gave under this one is void
    DISCARDED = "discarded"  # the destination said so: it has not taken, and never will
    LOST = "lost"  # the destination's copy is gone, and not by its doing: its host restarted, its process died
    FAIL = "fail"  # anything else that ends the attempt: an error, a lost peer, a cancel
    FENCED = "fenced"  # an operator vouches that the destination's host is dead
    RECOVER = "recover"  # this side starts again from its journal


class Action(StrEnum):
    """What a side does. JOURNAL_* is durable when it returns; TELL_* may fail, and is repeated by RECOVER."""

    STOP = "stop"
    CONT = "cont"
    RESUME = "resume"  # CONT, if it was this attempt that paused the guest: what somebody else paused is theirs
    DROP = "drop"  # end this side's copy of the guest and free its memory
    JOURNAL_READY = "journal-ready"
    JOURNAL_GIVEN = "journal-given"
    JOURNAL_TAKEN = "journal-taken"
    JOURNAL_ABORTED = "journal-aborted"
    JOURNAL_RELEASED = "journal-released"
    JOURNAL_DISCARDED = "journal-discarded"
    JOURNAL_TAKEN_BACK = "journal-taken-back"
    TELL_READY = "tell-ready"  # in-band only: READY outside of a live pair of movers helps nobody
    TELL_GIVEN = "tell-given"  # in-band and as a fact, like the rest
    TELL_TAKEN = "tell-taken"
    TELL_ABORTED = "tell-aborted"
    TELL_TAKEN_BACK = "tell-taken-back"
    TELL_DISCARDED = "tell-discarded"


class Step(NamedTuple):
    """One row: what to do, in this order, and where that leads."""

    actions: tuple[Action, ...]
    to: State


Table = Mapping[State, Mapping[Event, Step]]

_ABORT = Step((Action.JOURNAL_ABORTED, Action.CONT, Action.TELL_ABORTED), State.ABORTED)
_LEAVE = Step((Action.JOURNAL_ABORTED, Action.RESUME, Action.TELL_ABORTED), State.ABORTED)
_RELEASE = Step((Action.DROP, Action.JOURNAL_RELEASED), State.RELEASED)
_TAKE_BACK = Step((Action.JOURNAL_TAKEN_BACK, Action.CONT, Action.TELL_TAKEN_BACK), State.TAKEN_BACK)
_DISCARD = Step((Action.JOURNAL_DISCARDED, Action.DROP), State.DISCARDED)

SOURCE: Table = {
    State.OWNING: {
        Event.PAUSE: Step((Action.STOP,), State.PAUSED),
        Event.DISCARDED: _LEAVE,
        Event.FAIL: _LEAVE,
        Event.RECOVER: _ABORT,  # whether the one that died had begun to pause it is not known
    },
    State.PAUSED: {
        Event.READY: Step((Action.JOURNAL_GIVEN, Action.TELL_GIVEN), State.GIVEN),
        Event.DISCARDED: _ABORT,
        Event.FAIL: _ABORT,
        Event.RECOVER: _ABORT,
    },
    State.GIVEN: {
        Event.TAKEN: _RELEASE,
        Event.READY: Step((Action.TELL_GIVEN,), State.GIVEN),  # it did not hear us
        Event.FAIL: Step((), State.GIVEN),  # too late to fail: the destination decides now
        # Nobody guesses here: an operator vouches for the destination, or its own journal does. What it discards after
        # READY, while this side has neither aborted nor taken back, it has lost.
        Event.FENCED: _TAKE_BACK,
        Event.DISCARDED: _TAKE_BACK,
        Event.RECOVER: Step((Action.TELL_GIVEN,), State.GIVEN),
    },
    State.RELEASED: {
        Event.TAKEN: Step((), State.RELEASED),
        Event.READY: Step((), State.RELEASED),  # said before it took, heard after
        Event.FAIL: Step((), State.RELEASED),
        Event.RECOVER: Step((), State.RELEASED),
    },
    State.ABORTED: {
        Event.READY: Step((Action.TELL_ABORTED,), State.ABORTED),  # said before it heard
        Event.DISCARDED: Step((), State.ABORTED),
        Event.FAIL: Step((), State.ABORTED),
        Event.RECOVER: Step((Action.CONT, Action.TELL_ABORTED), State.ABORTED),
    },
    State.TAKEN_BACK: {
        Event.READY: Step((), State.TAKEN_BACK),  # said before it lost its copy, heard after
        Event.FAIL: Step((), State.TAKEN_BACK),
        Event.FENCED: Step((), State.TAKEN_BACK),
        Event.RECOVER: Step((Action.CONT, Action.TELL_TAKEN_BACK), State.TAKEN_BACK),
    },
}

DESTINATION: Table = {
    State.LOADING: {
        Event.LOADED: Step((Action.JOURNAL_READY, Action.TELL_READY), State.READY),
        Event.ABORT: _DISCARD,
        Event.LOST: _DISCARD,
        Event.FAIL: _DISCARD,
        Event.RECOVER: _DISCARD,
    },
    State.READY: {
        Event.GIVEN: Step((Action.JOURNAL_TAKEN, Action.CONT, Action.TELL_TAKEN), State.TAKEN),
        Event.ABORT: _DISCARD,
        Event.VOID: _DISCARD,
        # Instead of GIVEN or RECOVER when the copy is gone: at TAKEN the source would drop the last one.
        Event.LOST: Step((Action.JOURNAL_DISCARDED, Action.DROP, Action.TELL_DISCARDED), State.DISCARDED),
        Event.FAIL: Step((), State.READY),  # READY is a promise
        Event.RECOVER: Step((), State.READY),
    },
    State.TAKEN: {
        Event.GIVEN: Step((Action.TELL_TAKEN,), State.TAKEN),  # it did not hear us
        Event.VOID: _DISCARD,  # this host was fenced, and is back: the guest runs at the source
        Event.LOST: Step((), State.TAKEN),  # the guest ended with its owner's host
        Event.FAIL: Step((), State.TAKEN),
        Event.RECOVER: Step((Action.CONT, Action.TELL_TAKEN), State.TAKEN),
    },
    State.DISCARDED: {
        Event.ABORT: Step((), State.DISCARDED),
        Event.VOID: Step((), State.DISCARDED),
        Event.LOST: Step((Action.TELL_DISCARDED,), State.DISCARDED),  # GIVEN was said before it heard us
        Event.FAIL: Step((), State.DISCARDED),
        Event.RECOVER: Step((Action.DROP,), State.DISCARDED),
    },
}

TABLES: Mapping[Side, Table] = {Side.SOURCE: SOURCE, Side.DESTINATION: DESTINATION}

#: Events that the other side causes: an illegal one is the peer's mistake, any other is ours.
FROM_PEER = frozenset({Event.READY, Event.GIVEN, Event.TAKEN, Event.ABORT, Event.VOID, Event.DISCARDED})
#: States in which this side has nothing left to do.
SETTLED = frozenset({State.RELEASED, State.ABORTED, State.TAKEN_BACK, State.TAKEN, State.DISCARDED})


def diagram(side: Side) -> str:
    """The side's table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for state, row in TABLES[side].items():
        for event, step in row.items():
            actions = f": {event} / {', '.join(step.actions)}" if step.actions else f": {event}"
            lines.append(f"    {state.replace('-', '_')} --> {step.to.replace('-', '_')}{actions}")
    return "\n".join(lines)


if __name__ == "__main__":
    for _side in Side:
        print(f"%% {_side}\n{diagram(_side)}\n")  # noqa: T201  # printing is what this command is for
