"""More than one thing at once, with real movers: both ways, one slot each, messages that come again, cancels."""

from __future__ import annotations

import os
import signal

import pytest

from tasks.app import bell_for
from tasks.records import Kept, MigrationRecord
from tests.faults.harmed_fleet import HarmedFleet, asked_to_end, let_go_on, until
from workers.guests.contract import RunState
from workers.pairing.contract import Side

pytestmark = pytest.mark.faults

CORDONED = "beta takes no guests: a new board."


def test_both_ways_at_once_with_one_slot_each_do_not_wait_for_each_other(fleet: HarmedFleet) -> None:
    fleet.stop_at("source.sending")  # so that both are really under way at the same time
    there, onward = fleet.begin(point="source.sending")
    back, homeward = fleet.begin(point="source.sending", source="beta", destination="alpha")
    _, first = fleet.held(Side.SOURCE, onward)
    _, second = fleet.held(Side.SOURCE, homeward)
    for pid in (first, second):
        let_go_on(pid)
    assert fleet.settled(onward).state == "completed"
    assert fleet.settled(homeward).state == "completed"
    fleet.assert_runs_once(there, "beta")
    fleet.assert_runs_once(back, "alpha")


def test_a_second_guest_prepares_a_third_waits_and_both_go_when_the_link_is_free(fleet: HarmedFleet) -> None:
    first, leading = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, leading)
    second, following = fleet.begin()
    third, last = fleet.begin()
    prepared = waits_for_the_links(fleet, following)
    assert (prepared.state, prepared.granted) == ("setup", None)
    assert prepared.waiting == "prepared; every source slot of alpha is taken"
    queued = fleet.record(last)
    assert queued is not None
    assert (queued.state, queued.epoch) == ("queued", None)
    assert queued.waiting, "and says for what"
    let_go_on(pid)
    assert [fleet.settled(each).state for each in (leading, following, last)] == ["completed"] * 3
    after = fleet.record(following)
    assert after is not None
    assert after.source.progress is not None
    assert after.source.progress["seconds"]["links"] > 0
    assert after.rate
    for guest in (first, second, third):
        fleet.assert_runs_once(guest, "beta")


def waits_for_the_links(fleet: HarmedFleet, migration: str) -> MigrationRecord:
    """The record once its movers are connected, and the source sends nothing yet."""

    def look() -> MigrationRecord | None:
        found = fleet.record(migration)
        progress = found.source.progress if found else None
        return found if progress and progress["phase"] == "links" else None

    return until("a source that is prepared", look)


@pytest.mark.parametrize("harm", ["cancel", "pin", "cordon", "workers", "source mover", "destination mover"])
def test_what_befalls_one_that_only_prepares_leaves_its_guest_and_the_link_alone(fleet: HarmedFleet, harm: str) -> None:
    first, leading = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, leading)
    second, following = fleet.begin()
    waits_for_the_links(fleet, following)
    if harm == "cancel":
        fleet.cancel(following)
    elif harm == "pin":
        fleet.keep(Kept.GUEST, second, "a licence")
    elif harm == "cordon":
        fleet.keep(Kept.CORDON, "beta", "a new board")
    elif harm == "workers":
        for host in (fleet.alpha, fleet.beta):
            host.kill()
            host.start()
    else:
        os.kill(fleet.mover(Side(harm.split(maxsplit=1)[0]), following), signal.SIGKILL)
    if harm != "workers":
        ended = fleet.settled(following)
        assert ended.state == ("cancelled" if harm == "cancel" else "failed")
        assert ended.granted is None
        said = {"pin": ("pinned", f"guest {second} is pinned: a licence."), "cordon": ("cordoned", CORDONED)}
        assert harm not in said or (ended.reason, ended.message) == said[harm]
        fleet.let_all_move()
        fleet.assert_runs_once(second, "alpha")
    let_go_on(pid)
    assert fleet.settled(leading).state == "completed"
    fleet.assert_runs_once(first, "beta")
    if harm == "workers":
        assert fleet.settled(following).state == "completed"
        fleet.assert_runs_once(second, "beta")


def test_the_same_message_delivered_three_times_is_one_run(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.sending")
    attempt, pid = fleet.held(Side.SOURCE, migration)
    bell = bell_for(fleet.fleet.settings)
    record = fleet.record(migration)
    assert record is not None
    for _ in range(2):
        for side in Side:
            bell.ring(record, side)
    let_go_on(pid)
    assert fleet.settled(migration).state == "completed"
    for side in Side:
        bell.ring(record, side)  # and once more, when all is over
    fleet.assert_runs_once(guest, "beta")
    assert not attempt.directory.exists()


@pytest.mark.parametrize("point", ["source.pairing", "source.sending", "source.rounds", "source.paused"])
def test_a_cancel_before_the_guest_is_given_leaves_it_where_it_is(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(Side.SOURCE, migration)
    fleet.cancel(migration)
    until("the supervisor's SIGTERM", lambda: asked_to_end(pid))
    let_go_on(pid)
    assert fleet.settled(migration).state == "cancelled"
    fleet.assert_runs_once(guest, "alpha")


def test_what_somebody_else_paused_meanwhile_is_not_resumed_by_a_cancel(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, migration)
    paused = fleet.alpha.guests.open(guest)
    paused.stop()
    fleet.cancel(migration)
    until("the supervisor's SIGTERM", lambda: asked_to_end(pid))
    let_go_on(pid)
    assert fleet.settled(migration).state == "cancelled"
    assert paused.status() is RunState.PAUSED
    paused.cont()
    fleet.assert_runs_once(guest, "alpha")


def test_what_somebody_paused_meanwhile_is_not_moved_for_it_would_run_at_the_destination(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, migration)
    paused = fleet.alpha.guests.open(guest)
    paused.stop()
    let_go_on(pid)
    settled = fleet.settled(migration)
    assert settled.state == "failed"
    assert "is paused, not running" in str(settled.message)
    assert paused.status() is RunState.PAUSED
    paused.cont()
    fleet.assert_runs_once(guest, "alpha")


def test_a_cancel_does_not_wait_for_a_destination_that_hangs(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="destination.rounds")
    _, pid = fleet.held(Side.DESTINATION, migration)
    fleet.cancel(migration)
    until("the record's word", lambda: (found := fleet.record(migration)) and found.state == "cancelled")
    let_go_on(pid)
    assert fleet.settled(migration).state == "cancelled"
    fleet.assert_runs_once(guest, "alpha")


def test_a_cancel_that_comes_after_the_guest_was_given_is_too_late(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.given")
    _, pid = fleet.held(Side.SOURCE, migration)
    fleet.cancel(migration)
    let_go_on(pid)
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


def test_a_guest_whose_process_dies_at_the_source_fails_its_move_and_nothing_else(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, migration)
    fleet.alpha.guests.stop(guest)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    assert fleet.copies(guest) == {}


def test_a_destination_whose_copy_dies_before_ready_leaves_the_guest_at_the_source(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="destination.handover")
    _, pid = fleet.held(Side.DESTINATION, migration)
    fleet.beta.guests.stop(guest)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("tracker", ["pagemap-scan", "userfaultfd", "content"])
def test_every_tracker_moves_a_guest_whole(fleet: HarmedFleet, tracker: str) -> None:
    guest, migration = fleet.begin(parameters={"dirty-tracker": tracker})
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


def test_a_tracker_that_forgets_the_last_writes_is_seen_by_the_guest(fleet: HarmedFleet) -> None:
    """The control: were this to pass, no other test here would mean anything."""
    fleet.fault.write_text("drop-final-dirty")
    guest, migration = fleet.begin(keep_fault=True, dirty_rate=100 << 20)
    assert fleet.settled(migration).state == "completed"
    copy = fleet.copies(guest)["beta"]
    assert copy.status() is RunState.RUNNING
    report = until("the guest's notice", lambda: found if (found := copy.query_oracle(full=True))["corrupt"] else None)
    assert set(report["corrupt_kinds"]) <= {"stale", "lost"}
    fleet.beta.guests.stop(guest)


def test_a_destination_that_falls_silent_does_not_keep_the_guest_paused(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.paused")
    attempt, pid = fleet.held(Side.SOURCE, migration)
    silent = fleet.mover(Side.DESTINATION, migration)
    os.kill(silent, signal.SIGSTOP)
    let_go_on(pid)
    assert attempt.wait(30), "the patience of a paused guest is 5 s, that of a running one 120"
    assert fleet.copies(guest)["alpha"].status() is RunState.RUNNING
    let_go_on(silent)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")
