"""A name that left this host may come again: the journal must say that it is another guest, or it may not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.errors import RefusedError
from workers.guests.local import LocalGuests
from workers.guests.memory_spec import MemoryGuestSpec
from workers.handover.journal import driving, last_line
from workers.handover.machine import Entry
from workers.pairing.contract import Side
from workers.settle import owned_here

SPEC = MemoryGuestSpec("web", 1 << 20)


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    found = LocalGuests(tmp_path)
    yield found
    for guest in found.list():
        found.stop(guest.name)


def journalled(state_dir: Path, *entries: Entry) -> None:
    with driving(state_dir, "web") as journal:
        journal.begin(7, Side.SOURCE, "m-1", "beta")
        for entry in entries:
            journal.append(entry)


def test_a_new_guest_may_run_where_one_of_its_name_left(tmp_path: Path, guests: LocalGuests) -> None:
    journalled(tmp_path, Entry.GIVEN, Entry.RELEASED)
    assert not owned_here(tmp_path, "web")
    guests.start(SPEC)
    assert owned_here(tmp_path, "web")
    line = last_line(tmp_path, "web")
    assert line is not None
    assert line.epoch == 7, "epochs go on, or a later migration would be taken for a stale one"


def test_a_guest_that_was_given_and_not_confirmed_is_not_born_again(tmp_path: Path, guests: LocalGuests) -> None:
    journalled(tmp_path, Entry.GIVEN)
    with pytest.raises(RefusedError, match="reconcile") as refusal:
        guests.start(SPEC)
    assert refusal.value.reason == "unresolved"
    assert not guests.list()


def test_a_copy_that_is_still_there_is_not_called_new(tmp_path: Path, guests: LocalGuests) -> None:
    guests.start(SPEC)
    journalled(tmp_path, Entry.GIVEN, Entry.RELEASED)
    with pytest.raises(RefusedError, match="already"):
        guests.start(SPEC)
    assert not owned_here(tmp_path, "web")


def test_a_first_guest_needs_no_journal(tmp_path: Path, guests: LocalGuests) -> None:
    guests.start(SPEC)
    assert last_line(tmp_path, "web") is None
    assert owned_here(tmp_path, "web")
