"""The exploration can fail: defects planted one at a time in the tables and functions, each found, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from tests.machines import handover_world
from tests.machines.handover_world import Invariant, Violation, World, explore, take
from workers.handover import machine, states
from workers.handover.machine import Entry, Fact, Facts, Handed
from workers.handover.states import Action, Event, State, Step
from workers.pairing.contract import Side

Rows = dict[tuple[State, Event], Step]

#: Enough for each defect here, and a few seconds for those that only the whole graph shows.
FAULTS = 2

_TAKE_UNASKED = Step((Action.JOURNAL_READY, Action.JOURNAL_TAKEN, Action.CONT, Action.TELL_TAKEN), State.TAKEN)
_GIVE = (Action.JOURNAL_GIVEN, Action.TELL_GIVEN)

IN_TABLES: dict[str, tuple[Side, Rows, Invariant]] = {
    "resumes before TAKEN is journalled": (
        Side.DESTINATION,
        {(State.READY, Event.GIVEN): Step((Action.CONT, Action.JOURNAL_TAKEN, Action.TELL_TAKEN), State.TAKEN)},
        Invariant.JOURNAL_ALLOWS,
    ),
    "resumes the source on a failure after GIVEN": (
        Side.SOURCE,
        {(State.GIVEN, Event.FAIL): Step((Action.CONT,), State.GIVEN)},
        Invariant.GIVEN_IS_GIVEN,
    ),
    "aborts after GIVEN": (
        Side.SOURCE,
        {(State.GIVEN, Event.FAIL): Step((Action.JOURNAL_ABORTED, Action.CONT, Action.TELL_ABORTED), State.ABORTED)},
        Invariant.GIVEN_IS_GIVEN,
    ),
    "tells GIVEN before it is journalled": (
        Side.SOURCE,
        {(State.PAUSED, Event.READY): Step((Action.TELL_GIVEN, Action.JOURNAL_GIVEN), State.GIVEN)},
        Invariant.NEVER_BEHIND,
    ),
    "discards on a failure after READY": (
        Side.DESTINATION,
        {(State.READY, Event.FAIL): Step((Action.JOURNAL_DISCARDED, Action.DROP), State.DISCARDED)},
        Invariant.READY_IS_A_PROMISE,
    ),
    "forgets READY when it starts again": (
        Side.DESTINATION,
        {(State.READY, Event.RECOVER): Step((Action.JOURNAL_DISCARDED, Action.DROP), State.DISCARDED)},
        Invariant.READY_IS_A_PROMISE,
    ),
    "drops the source's copy before TAKEN is known": (
        Side.SOURCE,
        {(State.PAUSED, Event.READY): Step((*_GIVE, Action.DROP, Action.JOURNAL_RELEASED), State.RELEASED)},
        Invariant.NEVER_GONE,
    ),
    # TAKEN from nowhere: the source's table has no row for it.
    "takes without GIVEN": (Side.DESTINATION, {(State.LOADING, Event.LOADED): _TAKE_UNASKED}, Invariant.LEGAL),
    "takes although its copy is gone": (
        Side.DESTINATION,
        {(State.READY, Event.LOST): Step((Action.JOURNAL_TAKEN, Action.CONT, Action.TELL_TAKEN), State.TAKEN)},
        Invariant.LEGAL,  # found where it was not even given yet; after GIVEN: see the driver that does not look
    ),
    "waits on although its copy is gone": (
        Side.DESTINATION,
        {(State.READY, Event.LOST): Step((), State.READY)},
        Invariant.SETTLES,
    ),
    "does not resume when it starts again after TAKEN": (
        Side.DESTINATION,
        {(State.TAKEN, Event.RECOVER): Step((Action.TELL_TAKEN,), State.TAKEN)},
        Invariant.SETTLES,
    ),
    "does not resume when it starts again after ABORTED": (
        Side.SOURCE,
        {(State.ABORTED, Event.RECOVER): Step((Action.TELL_ABORTED,), State.ABORTED)},
        Invariant.SETTLES,
    ),
    "shrugs at an operator's word": (
        Side.SOURCE,
        {(State.GIVEN, Event.FENCED): Step((), State.GIVEN)},
        Invariant.FENCING_SETTLES,
    ),
    "aborts under the old epoch on an operator's word": (
        Side.SOURCE,
        {(State.GIVEN, Event.FENCED): Step((Action.JOURNAL_ABORTED, Action.CONT), State.ABORTED)},
        Invariant.GIVEN_IS_GIVEN,
    ),
}

#: Orders that look like rules and are none. Not caught, because nothing bad follows.
HARMLESS: dict[str, tuple[Side, Rows]] = {
    # BEGUN lets the guest run at the source as ABORTED does, and RECOVER of BEGUN journals ABORTED before anything
    # else can be given: the order matters for nothing but how soon the guest runs again.
    "the source resumes before ABORTED is journalled": (
        Side.SOURCE,
        {
            (state, event): Step((Action.CONT, Action.JOURNAL_ABORTED, Action.TELL_ABORTED), State.ABORTED)
            for state in (State.OWNING, State.PAUSED)
            for event in (Event.FAIL, Event.RECOVER, Event.DISCARDED)
        },
    ),
    # What is dropped first and crashes before it is journalled is found missing on RECOVER: LOST journals it then.
    "the destination drops before DISCARDED is journalled": (
        Side.DESTINATION,
        {(State.READY, Event.ABORT): Step((Action.DROP, Action.JOURNAL_DISCARDED), State.DISCARDED)},
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, side: Side, rows: Mapping[tuple[State, Event], Step]) -> None:
    for (state, event), row in rows.items():
        monkeypatch.setitem(cast("dict[Event, Step]", states.TABLES[side][state]), event, row)


def found_by() -> Invariant:
    with pytest.raises(Violation) as caught:
        explore(FAULTS)
    print(caught.value)
    return caught.value.invariant


@pytest.mark.parametrize("defect", IN_TABLES)
def test_a_defect_in_a_table_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side, rows, invariant = IN_TABLES[defect]
    plant(monkeypatch, side, rows)
    assert found_by() is invariant


@pytest.mark.parametrize("change", HARMLESS)
def test_an_order_that_matters_for_nothing_is_not_reported(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, *HARMLESS[change])
    explore(FAULTS)


def test_a_source_that_recovers_as_if_it_had_given_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.resumed

    def resumed(handed: Handed) -> State:
        return State.GIVEN if handed == Handed(1, Side.SOURCE, Entry.BEGUN) else real(handed)

    monkeypatch.setattr(machine, "resumed", resumed)
    assert found_by() is Invariant.LEGAL  # it says GIVEN to a destination that never said READY


def test_a_destination_that_does_not_look_for_its_copy_before_it_takes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its host restarted after READY; GIVEN comes; TAKEN would have the source drop the only copy left."""
    monkeypatch.setattr(handover_world, "NONE", ())
    assert found_by() is Invariant.NEVER_GONE


def test_a_destination_that_does_not_hear_that_the_guest_was_taken_back_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = machine.heard

    def heard(side: Side, epoch: int, facts: Facts) -> Event | None:
        return real(side, epoch, [fact for fact in facts if fact[1] != Fact.TAKEN_BACK])

    monkeypatch.setattr(machine, "heard", heard)
    assert found_by() is Invariant.SETTLES


def test_a_side_that_believes_facts_of_another_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.heard

    def heard(side: Side, epoch: int, facts: Facts) -> Event | None:
        return real(side, 1 if side is Side.SOURCE else epoch, facts)

    monkeypatch.setattr(machine, "heard", heard)
    assert found_by() is Invariant.LEGAL


def test_a_host_that_does_not_keep_telling_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN is told again by RECOVER too, so both have to be silent for it to show."""
    plant(monkeypatch, Side.SOURCE, {(State.GIVEN, Event.RECOVER): Step((), State.GIVEN)})
    monkeypatch.setattr(machine, "facts_of", lambda handed: ())
    assert found_by() is Invariant.SETTLES


def test_a_driver_that_forgets_what_it_journalled_when_telling_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """JOURNAL_GIVEN done, TELL_GIVEN raises, and the state is PAUSED as before: the FAIL that follows would abort."""

    real = handover_world.interrupted

    def interrupted(world: World, side: Side) -> World:
        host = handover_world.at(world, side)
        if side is Side.DESTINATION or host.mover is None:
            return real(world, side)
        return take(handover_world.put(world, side, left=(), to=None), side, host.mover, Event.FAIL)

    monkeypatch.setattr(handover_world, "interrupted", interrupted)
    assert found_by() is Invariant.GIVEN_IS_GIVEN


@pytest.mark.parametrize(
    ("side", "state", "event"),
    [
        (Side.SOURCE, State.TAKEN_BACK, Event.READY),
        (Side.SOURCE, State.RELEASED, Event.READY),
        (Side.DESTINATION, State.TAKEN, Event.VOID),
        (Side.DESTINATION, State.DISCARDED, Event.LOST),
    ],
)
def test_a_missing_row_for_a_late_word_is_found(
    side: Side, state: State, event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(cast("dict[Event, Step]", states.TABLES[side][state]), event)
    assert found_by() is Invariant.LEGAL
