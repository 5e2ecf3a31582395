"""What the exploration takes for granted about the driver: see `take`, `interrupted` and `may_be_fenced` there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from config.errors import CancelledError, HostError, UnresolvedError
from workers.guests.contract import Guest, RunState
from workers.handover.drive import Handover, recover, recovering
from workers.handover.journal import Journal, driving
from workers.handover.machine import Entry, Fact
from workers.handover.states import Event, State
from workers.pairing.contract import Pairing, Side


class Record:
    """The facts in Redis; `ill` is raised by whoever tells."""

    def __init__(self, *facts: tuple[int, str]) -> None:
        self.known = set(facts)
        self.ill: BaseException | None = None

    def facts(self) -> set[tuple[int, str]]:
        return self.known

    def tell(self, fact: str, epoch: int) -> None:
        if self.ill is not None:
            raise self.ill
        self.known.add((epoch, fact))


class Copy:
    """A guest that is paused, runs, or is gone."""

    def __init__(self, state: RunState | None = RunState.PAUSED) -> None:
        self.state = state
        self.announced = False
        self.deaf = False

    @property
    def pid(self) -> int:
        if self.state is None:
            raise HostError("the guest's process is gone")
        return 1

    def status(self) -> RunState:
        if self.state is None or self.deaf:
            raise HostError("the guest's process is gone, or does not answer")
        return self.state

    def cont(self) -> None:
        self.status()
        self.state = RunState.RUNNING

    def announce(self) -> None:
        self.announced = True

    def quit(self) -> None:
        self.state = None


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with driving(tmp_path, "vm") as opened:
        yield opened


def standing(journal: Journal, record: Record, copy: Copy, side: Side, *entries: Entry) -> Handover:
    journal.begin(1, side, "migration-1", "peer")
    for entry in entries:
        journal.append(entry)
    return recovering(journal, cast(Pairing, record), cast(Guest, copy))


def entry(journal: Journal) -> Entry:
    assert journal.last is not None
    return journal.last.entry


def test_a_defect_while_given_is_told_does_not_bring_the_guest_back(journal: Journal) -> None:
    record, copy = Record(), Copy()
    handover = standing(journal, record, copy, Side.SOURCE)
    record.ill = MemoryError()
    with pytest.raises(Exception, match="cut off after GIVEN"), handover.guarded():
        handover.happen(Event.READY)
    assert (entry(journal), copy.state) == (Entry.GIVEN, RunState.PAUSED)


def test_what_the_journal_reached_is_noted_before_anybody_else_hears_of_it(journal: Journal) -> None:
    """Else the other side's answer could come before it, on one axis."""
    record, noted = Record(), []
    record.ill = MemoryError()
    journal.begin(1, Side.SOURCE, "migration-1", "peer")
    handover = Handover(journal, cast(Pairing, record), State.PAUSED, cast(Guest, Copy()), noted.append)
    with pytest.raises(MemoryError):
        handover.happen(Event.READY)
    assert (noted, entry(journal)) == (["given"], Entry.GIVEN)


@pytest.mark.parametrize("event", [Event.GIVEN, Event.RECOVER])
def test_a_destination_whose_copy_is_gone_says_so_instead_of_taking(event: Event, journal: Journal) -> None:
    record = Record((1, Fact.GIVEN))
    handover = standing(journal, record, Copy(None), Side.DESTINATION, Entry.READY)
    handover.happen(event)
    assert (entry(journal), handover.state) == (Entry.DISCARDED, State.DISCARDED)
    assert (1, Fact.DISCARDED) in record.known


def test_a_copy_that_does_not_answer_is_not_lost(journal: Journal) -> None:
    copy = Copy()
    handover = standing(journal, Record((1, Fact.GIVEN)), copy, Side.DESTINATION, Entry.READY)
    copy.deaf = True
    with pytest.raises(HostError):
        recover(handover)
    assert entry(journal) is Entry.TAKEN
    copy.deaf = False
    assert recover(recovering(journal, cast(Pairing, Record()), cast(Guest, copy))) is State.TAKEN
    assert copy.state is RunState.RUNNING


def test_the_network_is_told_where_the_guest_runs(journal: Journal) -> None:
    copy = Copy()
    standing(journal, Record(), copy, Side.DESTINATION, Entry.READY).happen(Event.GIVEN)
    assert copy.announced


def test_the_source_goes_on_with_what_the_destination_lost(journal: Journal) -> None:
    record, copy = Record((1, Fact.GIVEN), (1, Fact.DISCARDED)), Copy()
    handover = standing(journal, record, copy, Side.SOURCE, Entry.GIVEN)
    assert recover(handover) is State.TAKEN_BACK
    assert copy.state is RunState.RUNNING
    assert journal.last is not None
    assert journal.last.epoch == handover.epoch == 2
    assert (2, Fact.TAKEN_BACK) in record.known


def test_a_host_back_from_being_fenced_gives_up_what_it_took(journal: Journal) -> None:
    copy = Copy()
    handover = standing(journal, Record((2, Fact.TAKEN_BACK)), copy, Side.DESTINATION, Entry.READY, Entry.TAKEN)
    assert recover(handover) is State.DISCARDED
    assert copy.state is None


def test_an_operators_word_needs_a_copy_to_resume(journal: Journal) -> None:
    handover = standing(journal, Record(), Copy(None), Side.SOURCE, Entry.GIVEN)
    with pytest.raises(HostError):
        recover(handover, fenced=True)
    assert entry(journal) is Entry.GIVEN


def test_an_operators_word_counts_for_nothing_once_taken_is_known(journal: Journal) -> None:
    copy = Copy()
    handover = standing(journal, Record((1, Fact.TAKEN)), copy, Side.SOURCE, Entry.GIVEN)
    assert recover(handover, fenced=True) is State.RELEASED
    assert copy.state is None


def test_a_record_that_refuses_to_be_written_does_not_cut_off_a_handover_that_needs_no_record(journal: Journal) -> None:
    record, copy = Record(), Copy()
    handover = standing(journal, record, copy, Side.DESTINATION, Entry.READY)
    record.ill = HostError("Redis is out of memory")
    with handover.guarded():
        handover.happen(Event.GIVEN)
    assert (entry(journal), copy.state) == (Entry.TAKEN, RunState.RUNNING)


def test_a_guest_that_was_taken_and_does_not_run_yet_is_no_failed_migration(journal: Journal) -> None:
    record, copy = Record(), Copy()
    handover = standing(journal, record, copy, Side.DESTINATION, Entry.READY)
    handover.happen(Event.GIVEN)
    with pytest.raises(UnresolvedError, match="cut off after TAKEN"), handover.guarded():
        raise OSError("the status cannot be written")
    copy.state = RunState.PAUSED
    assert recover(recovering(journal, cast(Pairing, record), cast(Guest, copy))) is State.TAKEN
    assert copy.state is RunState.RUNNING


def test_a_guest_left_paused_by_an_abort_that_failed_is_left_to_settling(journal: Journal) -> None:
    copy = Copy()
    handover = standing(journal, Record(), copy, Side.SOURCE)
    copy.deaf = True
    with pytest.raises(UnresolvedError), handover.guarded():
        raise CancelledError("cancelled")
    copy.deaf = False
    assert recover(recovering(journal, cast(Pairing, Record()), cast(Guest, copy))) is State.ABORTED
    assert copy.state is RunState.RUNNING


def test_a_source_whose_guest_has_ended_can_still_be_settled(journal: Journal) -> None:
    record = Record()
    assert recover(standing(journal, record, Copy(None), Side.SOURCE)) is State.ABORTED
    assert (1, Fact.ABORTED) in record.known
