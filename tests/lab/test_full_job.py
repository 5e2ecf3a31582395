"""The whole job over RDMA between two hosts: `droveway migrate`, Celery, pairing, rounds under write load, handover."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.fleet import LabFleet, LabHost, Move, until
from tests.lab.machine import Machine
from workers.pairing.contract import Side
from workers.transports.verbs import VerbsSettings

# Setting the fleet up takes 1.5 minutes of the first test on two quiet cores; others may have them as well.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

OVER_RDMA = ("--set=transport=verbs",)
MIB = 1 << 20
BUDGET = 64 * MIB  # the least there is
#: Bytes that a source may have posted and not confirmed.
IN_FLIGHT = VerbsSettings("source").in_flight_limit


@pytest.fixture(scope="module")
def whole_fleet(two_machines: tuple[Machine, Machine]) -> Iterator[LabFleet]:
    with LabFleet(two_machines) as fleet:
        yield fleet


@pytest.fixture
def fleet(whole_fleet: LabFleet, request: pytest.FixtureRequest) -> Iterator[LabFleet]:
    """The fleet with a guest somewhere; what it said is shown when the test fails."""
    if not whole_fleet.guest:
        whole_fleet.new_guest("host-a")
    failed = request.session.testsfailed
    yield whole_fleet
    if request.session.testsfailed > failed:
        print(whole_fleet.report())
        whole_fleet.remove_guest()


def completed(fleet: LabFleet, *options: str, fault: str = "") -> dict[str, Any]:
    """Move the guest to the other host, over RDMA in every case; what was reported."""
    move = fleet.move(*options, fault=fault)
    return arrived(fleet, move.end())


def arrived(fleet: LabFleet, report: dict[str, Any]) -> dict[str, Any]:
    assert report.get("state") == "completed", report
    assert (report["choices"]["transport"], report["choices"]["tracker"]) == ("verbs", "userfaultfd")
    assert 0 < report["seconds"]["downtime"] < report["seconds"]["total"]
    kinds = [each["kind"] for each in report["rounds"]]
    assert (kinds[0], kinds[-1]) == ("bulk", "final")
    assert report["transferred_bytes"] > 40 << 20
    fleet.place = fleet.there.name
    print({name: round(seconds or 0, 2) for name, seconds in report["seconds"].items()}, kinds)
    return report


def held_in_the_bulk_round(fleet: LabFleet, *options: str) -> tuple[Move, int]:
    """A move whose source's mover stopped itself after the first batch; the move, and that mover."""
    move = fleet.move(*OVER_RDMA, *options, fault="stop-at=source.sending")
    return move, stopped(fleet, move)


def stopped(fleet: LabFleet, move: Move) -> int:
    """The source's mover, once it has stopped itself."""

    def look() -> int | None:
        assert not move.ended(), move.end()
        return fleet.here.mover(Side.SOURCE, "T")

    return until("the source's stop", look)


def assert_pinned(fleet: LabFleet) -> None:
    """What each side's worker tells of a move that is held, beside what the kernel says of its mover."""
    for host, side in ((fleet.here, Side.SOURCE), (fleet.there, Side.DESTINATION)):
        name = f'droveway_pinned_bytes{{policy="pin-all",side="{side}"}}'
        told = until(f"pinned memory on the {side}'s page", lambda: host.metrics(side)[name])  # noqa: B023
        mover = next(name for name in host.ask("movers") if name.endswith(f".{side}"))
        said = host.ask("most_pinned")[mover]
        # A destination says at most five times a second what it has, and only when it hears something: of a source
        # that is held it hears nothing, so that the last regions are not told yet.
        untold = 8 * MIB if side is Side.SOURCE else said // 2
        assert 40 * MIB < told <= said < told + untold, (side, told, said)


def assert_measured(host: LabHost, policy: str) -> None:
    """What a source shows of its only move, which has ended."""
    page = until("the move's figures", lambda: found if ended(found := host.metrics(Side.SOURCE)) else None)
    locked = {name: value for name, value in page.items() if name.startswith("droveway_pinned_bytes")}
    assert len(locked) == 16
    assert not any(locked.values()), "nothing is locked any more"
    assert page['droveway_work_request_seconds_count{transport="verbs"}'] > 0
    assert page['droveway_work_request_seconds_sum{transport="verbs"}'] > 0
    assert 0 < page['droveway_in_flight_bytes_sum{transport="verbs"}'] <= IN_FLIGHT
    assert page[f'droveway_registration_wait_seconds_count{{policy="{policy}"}}'] == 1
    assert page[f'droveway_registration_wait_seconds_sum{{policy="{policy}"}}'] > 0
    assert page[f'droveway_pinned_peak_bytes_sum{{policy="{policy}",side="source"}}'] > 40 * MIB
    assert not any(value for name, value in page.items() if name.startswith("droveway_failed_completions"))


def ended(page: dict[str, float]) -> bool:
    return page['droveway_migrations_total{reason="none",state="completed"}'] > 0


def test_a_guest_moves_to_and_fro_over_rdma_with_pin_all_off_and_on(fleet: LabFleet) -> None:
    here = fleet.here
    off = completed(fleet, *OVER_RDMA, "--capability=rdma-pin-all=off")
    assert off["choices"]["policy"] == "dynamic"
    fleet.assert_whole()
    fleet.assert_nothing_left()
    assert_measured(here, "dynamic")
    here = fleet.here
    # Over RDMA, though nobody asked: the best that both have.
    move = fleet.move("--capability=rdma-pin-all=on", fault="stop-at=source.sending")
    source = stopped(fleet, move)
    assert_pinned(fleet)
    here.signal(signal.SIGCONT, source)
    on = arrived(fleet, move.end())
    assert on["choices"]["policy"] == "pin-all"
    fleet.assert_whole()
    fleet.assert_nothing_left()
    assert_measured(here, "pin-all")


@pytest.mark.thorough
def test_a_guest_moves_through_a_window_of_locked_memory(fleet: LabFleet) -> None:
    report = completed(fleet, *OVER_RDMA, f"--set=pin-budget={BUDGET}")
    assert report["choices"]["policy"] == "windowed"
    for host in fleet.hosts.values():
        pinned = [most for name, most in host.ask("most_pinned").items() if name.startswith(report["migration"])]
        assert pinned
        assert 0 < max(pinned) <= BUDGET, pinned
    fleet.assert_whole()
    fleet.assert_nothing_left()


@pytest.mark.parametrize("side", [Side.DESTINATION, pytest.param(Side.SOURCE, marks=pytest.mark.thorough)])
def test_a_killed_mover_leaves_the_guest_where_it_was_and_nothing_else(fleet: LabFleet, side: Side) -> None:
    move, source = held_in_the_bulk_round(fleet)
    if side is Side.SOURCE:
        fleet.here.signal(signal.SIGKILL, source)
    else:
        destination = fleet.there.mover(Side.DESTINATION)
        assert destination
        fleet.there.signal(signal.SIGKILL, destination)
        fleet.here.signal(signal.SIGCONT, source)
    report = move.end()
    assert (report["state"], report["reason"] in ("mover-died", "peer-lost")) == ("failed", True), report
    fleet.assert_whole()
    fleet.assert_nothing_left()


@pytest.mark.thorough
def test_a_lost_link_fails_the_move_and_one_that_is_lost_for_a_second_does_not(fleet: LabFleet) -> None:
    move, source = held_in_the_bulk_round(fleet)
    fleet.here.lose_everything()
    try:
        fleet.here.signal(signal.SIGCONT, source)
        lost = time.monotonic()
        report = move.end()
        assert report["state"] == "failed", report
        assert report["reason"] in ("link-lost", "peer-lost"), report
        # Over the wire nobody can tell the other side; each clears up by itself, while the link is still away.
        fleet.assert_whole()
        until(
            "both sides to have ended", lambda: not any(host.ask("left")["attempts"] for host in fleet.hosts.values())
        )
        time.sleep(max(0.0, lost + 60 - time.monotonic()))
    finally:
        fleet.here.lose_nothing()
    fleet.assert_nothing_left()

    move, source = held_in_the_bulk_round(fleet)
    fleet.here.lose_everything()
    try:
        fleet.here.signal(signal.SIGCONT, source)
        time.sleep(1.0)
    finally:
        fleet.here.lose_nothing()
    arrived(fleet, move.end())
    fleet.assert_whole()
    fleet.assert_nothing_left()


@pytest.mark.thorough  # each run of tests has this control over tcp: tests/integration/test_demo.py
def test_the_guests_check_sees_writes_that_did_not_arrive(fleet: LabFleet) -> None:
    completed(fleet, *OVER_RDMA, fault="drop-final-dirty")
    report = fleet.here.ask("oracle", name=fleet.guest, full=True)
    fleet.remove_guest()
    assert report["corrupt"] > 0, report
