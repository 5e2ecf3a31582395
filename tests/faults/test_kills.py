"""Kill -9 of anything at any step of a real migration: the guest runs once, whole, and nothing is left.

A mover stops itself at a named step (workers/fault_injection.py); then somebody is killed, what a service manager would
restart is restarted, and `reconcile` finishes. Where the guest must be then follows from the protocol: before GIVEN is
journalled at the source, from it on at the destination.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.harmed_fleet import HarmedFleet, let_go_on
from workers.pairing.contract import Side

pytestmark = pytest.mark.faults

BEFORE_GIVEN = [
    "source.pairing",
    "source.survey",
    "source.sending",
    "source.rounds",
    "source.downtime",
    "source.stop",
    "source.paused",
    "source.saved",
    "source.journal-given",
    "destination.pairing",
    "destination.rounds",
    "destination.handover",
    "destination.journal-ready",
    "destination.tell-ready",
]
FROM_GIVEN = [
    "source.tell-given",
    "source.given",
    "destination.journal-taken",
    "destination.cont",
    "destination.tell-taken",
    "destination.taken",
    "source.drop",
    "source.journal-released",
]
#: Steps at which a worker or Redis dies: one in each phase, and each side of the decision.
TELLING = ["source.sending", "source.paused", "source.journal-given", "source.given", "destination.cont", "source.drop"]


def side_of(point: str) -> Side:
    return Side(point.partition(".")[0])


@pytest.mark.parametrize("point", BEFORE_GIVEN)
def test_the_mover_is_killed_before_the_guest_is_given(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    record = fleet.settled(migration)
    assert record.state == "failed"
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", FROM_GIVEN)
def test_the_mover_is_killed_once_the_guest_is_given(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    record = fleet.settled(migration)
    assert record.state == "completed"
    fleet.assert_runs_once(guest, "beta")


@pytest.mark.parametrize("point", ["source.sending", "source.paused", "source.journal-given"])
def test_the_other_mover_is_killed_before_the_guest_is_given(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(Side.SOURCE, migration)
    os.kill(fleet.mover(Side.DESTINATION, migration), signal.SIGKILL)
    let_go_on(pid)
    record = fleet.settled(migration)
    if point == "source.journal-given":  # READY was said and holds: a copy that is complete may be given
        assert record.state == "completed"
        fleet.assert_runs_once(guest, "beta")
    else:
        assert record.state == "failed"
        fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", ["destination.ready", "destination.journal-taken", "destination.cont"])
def test_both_movers_are_killed_in_the_middle_of_the_decision(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(Side.DESTINATION, migration)
    os.kill(fleet.mover(Side.SOURCE, migration), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    record = fleet.settled(migration)
    assert record.state in ("failed", "completed")
    fleet.assert_runs_once(guest, "beta" if record.state == "completed" else "alpha")


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("point", TELLING)
def test_a_worker_is_killed_and_started_again_while_the_guest_moves(fleet: HarmedFleet, point: str, side: Side) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    host = fleet.host_of(side)
    host.kill(side)
    let_go_on(pid)
    host.start(side)
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")


@pytest.mark.parametrize("point", TELLING)
def test_redis_is_killed_and_started_again_while_the_guest_moves(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    fleet.redis.kill()
    let_go_on(pid)
    fleet.redis.start()
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")


@pytest.mark.parametrize("point", ["source.paused", "source.given", "destination.cont"])
def test_redis_is_away_until_the_move_is_over(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    attempt, pid = fleet.held(side_of(point), migration)
    fleet.redis.kill()
    let_go_on(pid)
    assert attempt.wait(60), "a mover needs no Redis once it is paired"
    fleet.redis.start()
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")


@pytest.mark.parametrize("point", ["source.sending", "source.paused", "source.given", "destination.cont"])
def test_redis_forgets_everything_while_the_guest_moves(fleet: HarmedFleet, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    fleet.redis.forget()
    let_go_on(pid)
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")


def test_celery_and_redis_are_both_restarted_in_the_middle_and_the_move_completes(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, migration)
    for host in (fleet.alpha, fleet.beta):
        host.stop()
    fleet.redis.restart()
    let_go_on(pid)
    for host in (fleet.alpha, fleet.beta):
        host.start()
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")


def test_a_mover_and_redis_die_together_after_the_guest_was_given(fleet: HarmedFleet) -> None:
    guest, migration = fleet.begin(point="source.tell-given")
    _, pid = fleet.held(Side.SOURCE, migration)
    fleet.redis.kill()
    os.kill(pid, signal.SIGKILL)
    fleet.redis.start()
    record = fleet.settled(migration)
    assert record.state == "completed", record.message
    fleet.assert_runs_once(guest, "beta")
