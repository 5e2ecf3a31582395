"""QEMU moves the memory itself, and everything around it is as with our own rounds: real workers, real QEMUs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from config.capabilities import read_options
from config.errors import HostError
from config.settings import TlsSettings
from tasks.cli.following import ending
from tasks.cli.rendering.timeline import phases
from tasks.records import MigrationRecord
from tests.contract.tls_certificates import Authority
from tests.metrics_page import scraped_after
from tests.ops.ports import free_port
from tests.redis_server import RedisServer
from tests.until import until
from tests.vm.fleet import VmFleet
from tests.vm.machine import ANONYMOUS, FOR_QEMU, Console, await_ticks, vm_spec
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.own_migration import OwnMigration
from workers.guests.qemu.own_settings import own_settings
from workers.guests.qemu.spec import QemuGuestSpec
from workers.guests.qemu.tls_credentials import calling_name, listening_name
from workers.handover.journal import last_line
from workers.metrics import names
from workers.pairing.contract import Side
from workers.qemu_engine.destination import listen
from workers.qemu_engine.source import uri

MIB = 1 << 20


@pytest.fixture
def vms(own_redis_server: RedisServer) -> Iterator[VmFleet]:
    made = VmFleet(own_redis_server, {})
    with made.fleet as fleet:
        host = fleet.hosts["alpha"]
        page = host.settings.host.model_copy(update={"metrics_source_port": free_port()})
        host.settings = host.settings.model_copy(update={"host": page})
        fleet.start()
        yield made
        made.end()


def move_to_and_fro(
    vms: VmFleet, guest: QemuGuest, moves: Sequence[tuple[str, ...]] = ((), ())
) -> list[MigrationRecord]:
    """Once for each of `moves`. Each completes, one copy is left, no tick is missing, no page bad; the records."""
    records = []
    with closing(Console()) as console:
        console.follow(guest)
        for parameters in moves:
            record, host = vms.move(guest.name, parameters=("transport=tcp", *parameters))
            assert ending(record) is None, record
            records.append(record)
            moved = vms.guest(host, guest.name)
            console.follow(moved)
            assert moved.status() is RunState.RUNNING
            await_ticks(moved, 10)
            others = [other for name, other in vms.fleet.hosts.items() if name != host]
            assert not any(other.guests.holds(guest.name) for other in others)
        lines = console.said()
    ticks = [line.tick for line in lines]
    assert ticks == list(range(len(ticks)))
    assert not lines[-1].bad
    assert lines[-1].checked > lines[0].checked
    return records


def test_memory_that_nobody_else_can_reach_is_left_to_qemu_and_the_report_says_why(vms: VmFleet) -> None:
    guest = vms.start(**ANONYMOUS, rate=20)
    # Slow enough that the bulk round is seen: the rounds are known by asking, and a quick one may be over before.
    first, back = move_to_and_fro(vms, guest, [("max-bandwidth=48MiB/s",)] * 2)
    for record in (first, back):
        assert record.source.progress is not None
        sizes = record.source.progress["bytes"]
        assert chosen(record)["engine"] == "qemu"
        assert "memory-backend-ram" in chosen(record)["engine-reason"]
        assert any(note["about"] == "verify-ram" for note in chosen(record)["notes"])
        assert sizes["transferred"] > 32 << 20
        assert len(record.source.progress["rounds"]) > 1
        assert 0 < record.source.progress["seconds"]["downtime"] < record.source.progress["seconds"]["total"]
        assert_phases_follow_each_other(record)
    # Only the first of them left alpha.
    assert_counted(scraped_after(vms.fleet.hosts["alpha"].settings.host.metrics_source_port, 1), first)


def assert_phases_follow_each_other(record: MigrationRecord) -> None:
    """Each where it was, on one axis for both sides; passes end when they are seen to, the last with the downtime."""
    found = phases(record)
    assert all(each.began is not None for each in found)
    at = {(each.side, each.name, each.round): each for each in found}
    sent = [each for each in found if each.side is Side.SOURCE and each.round is not None]
    downtime = at[Side.SOURCE, "downtime", None]
    for before, after in pairwise(sent):
        assert before.ended == pytest.approx(after.began, abs=0.1)
    assert sent[-1].ended == pytest.approx(downtime.ended, abs=0.1)
    order = [at[Side.DESTINATION, "ready", None], at[Side.SOURCE, "given", None], at[Side.DESTINATION, "taken", None]]
    times = [downtime.began, *(each.began for each in order), downtime.ended]
    assert times == sorted(times, key=lambda each: each or 0)


def assert_counted(page: Mapping[str, float], record: MigrationRecord) -> None:
    """What QEMU said of its own move is on the worker's page, and what it did not say is not."""
    assert record.source.progress is not None
    progress = record.source.progress
    sent = {kind: page[f'droveway_sent_bytes_total{{kind="{kind}"}}'] for kind in names.SENT}
    assert sent["bulk"] > 32 * MIB, "all that its witness works on"
    assert sent["delta"] == 0
    assert sum(sent.values()) >= progress["bytes"]["total"], "every page was sent, or found zero"
    whole = sum(sent.values()) - sent["zero-skipped"]
    assert whole == page["droveway_transferred_bytes_total"] == progress["bytes"]["transferred"]
    assert page["droveway_rounds_sum"] == progress["rounds"][-1]["index"] + 1 >= 3
    assert page["droveway_throughput_bytes_per_second_count"] >= 1
    assert page['droveway_phase_seconds_count{phase="setup",side="source"}'] == 1
    reckoned = progress["rates"].get("expected_downtime")
    assert page["droveway_expected_downtime_seconds_count"] == (reckoned is not None)
    assert page["droveway_expected_downtime_seconds_sum"] == (reckoned or 0)
    rates = [each["dirty_rate"] for each in progress["rounds"] if "dirty_rate" in each]
    assert rates, "its bulk round takes more than the second that QEMU needs for a rate"
    assert all(0 < rate < 1024 * MIB for rate in rates)
    assert page["droveway_dirty_rate_bytes_per_second_count"] == len(rates)
    for name in ("droveway_work_request_seconds_count", "droveway_in_flight_bytes_count"):
        assert page[f'{name}{{transport="tcp"}}'] == 0, "our transport carried nothing"


def test_what_qemu_sends_as_differences_is_counted_as_such(vms: VmFleet) -> None:
    """A working set that it goes through again and again, and a link on which that takes several passes."""
    guest = vms.start(**FOR_QEMU, mib=16, rate=5)
    parameters = ("engine=qemu", "transport=tcp", "max-bandwidth=32MiB/s", "downtime-limit=100ms", "on-stall=force")
    record, _ = vms.move(guest.name, ("xbzrle=on",), parameters)
    assert ending(record) is None, record
    page = scraped_after(vms.fleet.hosts["alpha"].settings.host.metrics_source_port, 1)
    assert 0 < page['droveway_sent_bytes_total{kind="delta"}'] < page["droveway_transferred_bytes_total"]


def test_one_that_could_be_moved_from_outside_is_moved_by_qemu_when_asked(vms: VmFleet) -> None:
    """And by us afterwards: what QEMU's own migration was set to is put back."""
    guest = vms.start(**FOR_QEMU, rate=20)
    by_qemu, by_us, again = move_to_and_fro(vms, guest, [("engine=qemu",), (), ("engine=qemu", "channels=1")])
    assert [chosen(record)["engine"] for record in (by_qemu, by_us, again)] == ["qemu", "droveway", "qemu"]
    assert (chosen(by_qemu)["channels"], chosen(again)["channels"]) == (4, 1)
    assert chosen(by_us)["engine-reason"] == "its RAM can be moved from outside"


def test_what_cannot_be_moved_from_outside_is_refused_to_our_engine_and_goes_on_untouched(vms: VmFleet) -> None:
    guest = vms.start(**ANONYMOUS)
    record, _ = vms.move(guest.name, parameters=("transport=tcp", "engine=droveway"))
    assert (record.state, record.reason) == ("failed", "blocked"), record
    assert "ram-not-shared" in str(record.message)
    assert last_line(vms.fleet.hosts["alpha"].settings.host.state_dir, guest.name) is None  # nothing was begun
    assert not vms.fleet.hosts["beta"].guests.holds(guest.name)
    assert guest.status() is RunState.RUNNING
    await_ticks(guest, 5)


def test_an_emulated_guest_is_not_left_to_a_qemu_that_would_lose_its_writes(vms: VmFleet) -> None:
    guest = vms.start(memory_backend="anonymous")
    record, _ = vms.move(guest.name)
    assert (record.state, record.reason) == ("failed", "blocked"), record
    assert "loses writes" in str(record.message)
    await_ticks(guest, 5)


def chosen(record: MigrationRecord) -> dict[str, Any]:
    assert record.source.progress is not None
    return dict(record.source.progress["choices"])


def with_tls(vms: VmFleet, folder: Path, **authorities: Authority) -> None:
    for name, host in vms.fleet.hosts.items():
        files = authorities[name].host(name)
        tls = TlsSettings(certificate=files.certificate, key=files.key, ca=files.ca)
        host.settings = host.settings.model_copy(update={"tls": tls})


@pytest.fixture
def encrypted(own_redis_server: RedisServer, tmp_path: Path) -> Iterator[VmFleet]:
    made = VmFleet(own_redis_server, {})
    with made.fleet as fleet:
        authority = Authority(tmp_path)
        with_tls(made, tmp_path, alpha=authority, beta=authority)
        fleet.start()
        yield made
        made.end()


def test_it_is_encrypted_where_the_hosts_have_certificates_and_no_key_is_left_behind(encrypted: VmFleet) -> None:
    guest = encrypted.start(**ANONYMOUS, rate=5)
    move_to_and_fro(encrypted, guest)
    moved = encrypted.guest("alpha", guest.name)
    assert not (moved.places.directory / "tls").exists()
    with Monitor(moved.name, moved.places.monitor) as monitor:
        assert monitor.execute("query-migrate-parameters")["tls-creds"] == "droveway-tls"


def test_qemu_neither_calls_nor_lets_in_a_host_of_another_name(tmp_path: Path) -> None:
    vm_spec("vm1")  # skipped, or an error, where there is no QEMU
    authority = Authority(tmp_path)
    here, there = (TlsSettings(**asdict(authority.host(name))) for name in ("alpha", "beta"))
    assert (calling_name(here), listening_name(there)) == ("CN=alpha", "beta")
    for caller, listener, ends in (
        ("CN=alpha", "beta", "pre-switchover"),
        ("CN=gamma", "beta", "failed"),
        ("CN=alpha", "gamma", "failed"),
    ):
        with two_qemus(tmp_path) as (guest, twin):
            _, parameters = read_options()
            settings = own_settings({}, parameters, transport="tcp", channels=2)
            receiver, sender = twin.own_migration(), guest.own_migration()
            receiver.prepare(settings.capabilities, settings.parameters)
            receiver.let_in(there, caller)
            port = listen(receiver, "tcp", "127.0.0.1", (49152, 49215))
            sender.prepare(settings.at_source(), settings.parameters)
            sender.call(here, listener)
            sender.set_off(uri("tcp", "127.0.0.1", port))
            until("its end", lambda sender=sender: sender.figures().status in ("failed", "pre-switchover"), 90)
            assert sender.figures().status == ends, sender.figures()
            guest.cont()
            assert guest.status() is RunState.RUNNING


def test_a_last_pass_that_does_not_come_to_its_end_is_cut_off_and_the_guest_goes_on(tmp_path: Path) -> None:
    """QEMU answers nothing meanwhile, for as long as the other side takes nothing."""
    guests = LocalGuests(tmp_path / "state", tmp_path)
    guest = guests.start_qemu(vm_spec("vm1", **ANONYMOUS, rate=1))
    try:
        await_ticks(guest, 5)
        with closing(guest), socket.create_server(("127.0.0.1", 0)) as deaf:
            connection = in_its_last_pass(guest.own_migration(), deaf)
            with connection:
                guest.cont()
                assert guest.status() is RunState.RUNNING
                await_ticks(guest, 5)
    finally:
        guests.stop("vm1")


def test_a_migration_of_somebody_elses_is_neither_ended_nor_taken_for_ours(tmp_path: Path) -> None:
    guests = LocalGuests(tmp_path / "state", tmp_path)
    guest = guests.start_qemu(vm_spec("vm1", **ANONYMOUS, rate=1))
    try:
        await_ticks(guest, 5)
        with closing(guest), Monitor("theirs", guest.places.status) as theirs:
            own = guest.own_migration()
            theirs.execute("migrate-set-parameters", max_bandwidth=1 << 20)
            theirs.execute("migrate", uri="exec:cat >/dev/null")
            until("it is under way", lambda: theirs.execute("query-migrate")["status"] == "active", 30)
            with pytest.raises(HostError, match="somebody migrates guest vm1"):
                own.prepare({}, {})
            assert theirs.execute("query-migrate")["status"] == "active"
            assert not guest.stopped_here
            theirs.execute("migrate-set-parameters", max_bandwidth=1 << 30)
            until("its end", lambda: theirs.execute("query-migrate")["status"] == "completed", 90)
            with pytest.raises(HostError, match="somebody else migrated it away"):
                guest.cont()
            assert theirs.execute("query-status")["status"] == "postmigrate"
            theirs.execute("cont")
            guest.cont()
            await_ticks(guest, 5)
    finally:
        guests.stop("vm1")


def in_its_last_pass(own: OwnMigration, deaf: socket.socket) -> socket.socket:
    """A migration of which almost everything is left for the pause, and nobody takes it: the other end of it."""
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    _, parameters = read_options(None, ["max-bandwidth=1MiB/s"])
    settings = own_settings({}, parameters, transport="tcp", channels=1)
    own.prepare(settings.at_source(), settings.parameters)
    own.press_on()
    own.set_off(uri("tcp", *deaf.getsockname()))
    connection, _ = deaf.accept()
    until("the pause", lambda: drained(connection) and own.figures().status == "pre-switchover", 90)
    own.switch_over()
    until("nothing to be said", lambda: silent_for(own, 1), 30)
    return connection


def silent_for(own: OwnMigration, seconds: float) -> bool:
    own.figures_unless_busy()  # it is asked from now on
    time.sleep(seconds)
    return own.figures_unless_busy() is None


def drained(connection: socket.socket) -> bool:
    """Take what there is, so that more can come."""
    connection.setblocking(False)
    with suppress(BlockingIOError):
        while connection.recv(1 << 20):
            pass
    return True


@contextmanager
def two_qemus(folder: Path) -> Iterator[tuple[QemuGuest, QemuGuest]]:
    """A guest that runs its firmware, and its incoming twin."""
    (folder / "ram").mkdir(exist_ok=True)
    hosts = [LocalGuests(folder / name, folder / "ram") for name in ("a", "b")]
    shape = {"name": "vm1", "memory": "65544K", "accel": "tcg", "memory_backend": "anonymous"}
    try:
        guest = hosts[0].start_qemu(QemuGuestSpec.from_json(shape))
        twin = hosts[1].incoming(guest.description())
        assert isinstance(twin, QemuGuest)
        with closing(guest), closing(twin):
            yield guest, twin
    finally:
        for host in hosts:
            for left in host.list():
                host.stop(left.name)
