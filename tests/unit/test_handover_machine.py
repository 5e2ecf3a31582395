"""The handover's functions on their own; how they work together is explored in tests/machines."""

from __future__ import annotations

import pytest

from config.errors import PeerError
from workers.handover.machine import Entry, Fact, Handed, IllegalStepError, facts_of, heard, may_run, resumed, step
from workers.handover.states import FROM_PEER, SETTLED, TABLES, Action, Event, State, diagram
from workers.pairing.contract import Side

ENTRIES = {
    Side.SOURCE: [Entry.BEGUN, Entry.GIVEN, Entry.RELEASED, Entry.ABORTED, Entry.TAKEN_BACK],
    Side.DESTINATION: [Entry.BEGUN, Entry.READY, Entry.TAKEN, Entry.DISCARDED],
}
EVERY_HANDED = [Handed(3, side, entry) for side in Side for entry in ENTRIES[side]]


def test_a_word_that_cannot_be_is_the_peers_mistake_and_an_act_that_cannot_be_is_ours() -> None:
    with pytest.raises(PeerError, match="said taken while this side is owning"):
        step(Side.SOURCE, State.OWNING, Event.TAKEN)
    with pytest.raises(IllegalStepError, match="destination cannot pause in state ready"):
        step(Side.DESTINATION, State.READY, Event.PAUSE)


@pytest.mark.parametrize("side", Side)
def test_every_state_knows_failure_and_recovery(side: Side) -> None:
    for state, rows in TABLES[side].items():
        assert Event.RECOVER in rows, state
        assert Event.FAIL in rows, state


@pytest.mark.parametrize("side", Side)
def test_what_a_step_journals_is_where_it_leads(side: Side) -> None:
    """The driver relies on it: after the JOURNAL action the state is the step's, whatever the rest of it does."""
    for rows in TABLES[side].values():
        for row in rows.values():
            journalled = [action for action in row.actions if action.startswith("journal-")]
            assert [State(action.removeprefix("journal-")) for action in journalled] in ([], [row.to])


@pytest.mark.parametrize("side", Side)
def test_nothing_is_told_or_resumed_before_it_is_journalled(side: Side) -> None:
    for rows in TABLES[side].values():
        for row in rows.values():
            journals = [number for number, action in enumerate(row.actions) if action.startswith("journal-")]
            for action in row.actions[: journals[0]] if journals else ():
                assert action is Action.DROP, row


@pytest.mark.parametrize("handed", EVERY_HANDED, ids=str)
def test_every_entry_leads_back_into_the_table(handed: Handed) -> None:
    assert Event.RECOVER in TABLES[handed.side][resumed(handed)]


@pytest.mark.parametrize("handed", EVERY_HANDED, ids=str)
def test_who_may_run(handed: Handed) -> None:
    owners = {
        (Side.SOURCE, Entry.BEGUN),
        (Side.SOURCE, Entry.ABORTED),
        (Side.SOURCE, Entry.TAKEN_BACK),
        (Side.DESTINATION, Entry.TAKEN),
    }
    assert may_run(handed) is ((handed.side, handed.entry) in owners)
    resumes = Action.CONT in step(handed.side, resumed(handed), Event.RECOVER).actions
    assert resumes is may_run(handed), "and whoever may run is resumed"


@pytest.mark.parametrize("handed", EVERY_HANDED, ids=str)
def test_a_settled_side_resumes_into_a_settled_state(handed: Handed) -> None:
    settled = resumed(handed) in SETTLED
    assert settled is (handed.entry not in (Entry.BEGUN, Entry.READY, Entry.GIVEN))


@pytest.mark.parametrize(
    ("side", "facts", "event"),
    [
        (Side.SOURCE, [], None),
        (Side.SOURCE, [(3, Fact.TAKEN)], Event.TAKEN),
        (Side.SOURCE, [(2, Fact.TAKEN), (4, Fact.TAKEN)], None),
        (Side.SOURCE, [(3, Fact.DISCARDED)], Event.DISCARDED),
        (Side.SOURCE, [(3, Fact.GIVEN), (3, Fact.ABORTED)], None),
        (Side.DESTINATION, [(3, Fact.GIVEN)], Event.GIVEN),
        (Side.DESTINATION, [(2, Fact.GIVEN)], None),
        (Side.DESTINATION, [(3, Fact.ABORTED)], Event.ABORT),
        (Side.DESTINATION, [(3, Fact.GIVEN), (4, Fact.TAKEN_BACK)], Event.VOID),
        (Side.DESTINATION, [(3, Fact.GIVEN), (2, Fact.TAKEN_BACK)], Event.GIVEN),
        (Side.DESTINATION, [(3, "a word of a later release")], None),
    ],
)
def test_what_the_facts_amount_to(side: Side, facts: list[tuple[int, str]], event: Event | None) -> None:
    assert heard(side, 3, facts) is event


def test_what_a_journal_keeps_telling_is_heard_by_the_other_side() -> None:
    peer = {Side.SOURCE: Side.DESTINATION, Side.DESTINATION: Side.SOURCE}
    for handed in EVERY_HANDED:
        told = facts_of(handed)
        silent = handed.entry in (Entry.BEGUN, Entry.READY, Entry.RELEASED)
        assert bool(told) is not silent
        if told:
            epoch = 2 if handed.entry is Entry.TAKEN_BACK else 3
            assert heard(peer[handed.side], epoch, told) in FROM_PEER


@pytest.mark.parametrize("side", Side)
def test_the_diagram_draws_every_row(side: Side) -> None:
    rows = sum(len(row) for row in TABLES[side].values())
    assert diagram(side).count("-->") == rows
