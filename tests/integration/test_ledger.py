"""The ledger's promises one by one, on a real Redis: who may go, what is said to those who wait, and what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from config.errors import HostError, RefusedError, UnreachableError
from config.settings import HistorySettings, RedisSettings, Settings, WorkerSettings
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import MigrateRequest
from tasks.planning.rules import judge
from tasks.reconcile import Action, reconcile
from tasks.records import Kept, LocalGuest, MigrationRecord, Submission
from tasks.requests import admit, cancel, snapshot, submit, watch
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

GIB = 1 << 30


class RecordingBell:
    def __init__(self) -> None:
        self.rung: list[tuple[str, Side]] = []
        self.asked: list[str] = []

    def ring(self, record: MigrationRecord, side: Side) -> None:
        self.rung.append((record.migration, side))

    def reconcile(self, host: str) -> None:
        self.asked.append(host)


def offered(**changes: str) -> dict[str, str]:
    capabilities = '["zero-pages", "verify-ram", "rdma-pin-all"]'
    plain = {"address": "::1", "version": "1", "memory": str(4 * GIB), "memlock": "", "capabilities": capabilities}
    return {**plain, "transports": "[]", "trackers": "[]", "slots:source": "1", "slots:destination": "1", **changes}


def settings(server: RedisServer, **changes: Any) -> Settings:
    redis = RedisSettings(url=SecretStr(server.url), prefix="ledger:")
    return Settings(redis=redis, worker=WorkerSettings(lease=3600), **changes)


@pytest.fixture
def ledger(redis_server: RedisServer) -> Iterator[Ledger]:
    with redis_server.client() as client:
        client.delete(*client.keys("ledger:*") or ["ledger:none"])
    ledger = Ledger(settings(redis_server))
    guests = {"alpha": [LocalGuest("web", GIB, 0), LocalGuest("db", GIB, 7)], "beta": [LocalGuest("mail", GIB, 0)]}
    for host in ("alpha", "beta", "gamma"):
        beat(ledger, host, guests.get(host, []))
    yield ledger
    ledger.close()


def beat(ledger: Ledger, host: str, guests: list[LocalGuest], *jobs: Job, **changes: str) -> None:
    for side in Side:
        ledger.heartbeat(host, side, offered(**changes), jobs, guests)


def ask(ledger: Ledger, migration: str, guest: str, source: str, destination: str, **changes: Any) -> None:
    plain = Submission(migration, guest, source, destination, GIB, {}, {})
    assert ledger.submit(replace(plain, **changes))[0] is Answer.OK


def taken(ledger: Ledger, migration: str, side: Side, nonce: str = "n") -> Job:
    record = snapshot(ledger, migration)
    assert record.epoch is not None
    host, peer = record.side(side).host, record.side(side.peer).host
    job = Job(migration, record.guest, record.epoch, side, nonce, host, peer, GIB, {}, {})
    assert ledger.claim(job.ticket) is Answer.OK
    return job


# --- admission --------------------------------------------------------------------------------------------------------


def test_both_ways_at_once_with_one_slot_each_do_not_wait_for_each_other(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ask(ledger, "m-2", "mail", "beta", "alpha")
    assert ledger.admit() == ["m-1", "m-2"]


def test_whoever_cannot_go_holds_up_nobody_and_is_told_why(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ask(ledger, "m-2", "db", "alpha", "gamma")
    ask(ledger, "m-3", "mail", "beta", "gamma")
    assert ledger.admit() == ["m-1", "m-3"]
    assert snapshot(ledger, "m-2").waiting == "every source slot of alpha is taken"


def test_the_oldest_goes_first_when_a_slot_is_free_again(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    ask(ledger, "m-2", "db", "alpha", "beta")
    jobs = [taken(ledger, "m-1", side) for side in Side]
    for job in jobs:
        ledger.finish(job.ticket, Status(outcome="failed", reason="peer", message="no"))
    ask(ledger, "m-3", "web", "alpha", "beta")
    assert ledger.admit() == ["m-2"]


def test_memory_is_reserved_with_the_slot(ledger: Ledger) -> None:
    beat(ledger, "gamma", [], memory=str(2 * GIB - 1), **{"slots:destination": "2"})
    ask(ledger, "m-1", "web", "alpha", "gamma")
    ask(ledger, "m-2", "mail", "beta", "gamma")
    assert ledger.admit() == ["m-1"]
    assert snapshot(ledger, "m-2").waiting == f"gamma has {GIB - 1} bytes free, {GIB} are needed"
    assert ledger.fleet().hosts["gamma"].free == GIB - 1


def test_a_host_without_a_worker_admits_nobody(ledger: Ledger) -> None:
    ledger.resign("beta", Side.DESTINATION)
    ask(ledger, "m-1", "web", "alpha", "beta")
    assert ledger.admit() == []
    assert snapshot(ledger, "m-1").waiting == "no destination worker is alive on beta"


def test_epochs_go_on_from_what_the_journal_has_seen(ledger: Ledger) -> None:
    ask(ledger, "m-1", "db", "alpha", "beta")
    ledger.admit()
    assert snapshot(ledger, "m-1").epoch == 8


def test_what_expired_while_it_waited_ends_and_says_what_for(ledger: Ledger) -> None:
    ledger.resign("beta", Side.DESTINATION)
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    ask(ledger, "m-2", "db", "alpha", "gamma", expires=1.0)
    assert ledger.admit() == []
    assert (snapshot(ledger, "m-2").state, snapshot(ledger, "m-2").reason) == ("failed", "expired")
    assert ledger.fleet().guests["db"].active is None


def test_what_a_stream_reached_is_what_plans_reckon_with(ledger: Ledger) -> None:
    def moved(migration: str, sent: int, **parameters: int | str) -> list[int]:
        ask(ledger, migration, "web", *places, parameters=parameters)
        ledger.admit()
        for job in [taken(ledger, migration, side) for side in Side]:
            rounds = ({"sent": sent, "seconds": 2.0},)
            ledger.finish(job.ticket, Status(outcome="completed", rounds=rounds))
        places.reverse()
        hosts = ledger.cluster().hosts
        return [hosts[name].stream for name in ("alpha", "beta", "gamma")]

    places = ["alpha", "beta"]
    assert moved("m-1", 8 << 20) == [0, 0, 0], "too short to tell"
    assert moved("m-2", 400 << 20, **{"max-bandwidth": 1 << 20}) == [0, 0, 0], "throttled"
    assert moved("m-3", 400 << 20) == [200 << 20, 200 << 20, 0]
    assert moved("m-4", 200 << 20) == [150 << 20, 150 << 20, 0]


def test_what_moves_took_beside_what_they_sent_is_what_plans_reckon_with(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    def moved(migration: str, seconds: float, outcome: str = "completed", restored: str = "") -> list[float]:
        """One that was on the links for so long, 2.5 s of them with its bulk round and its downtime."""
        ask(ledger, migration, "web", *places)
        ledger.admit()
        jobs = [taken(ledger, migration, side) for side in Side]
        with redis_server.client() as client:
            client.hset(f"ledger:migration:{migration}", "granted", round((ledger.now() - seconds) * 1000))
            if restored:
                client.hset(f"ledger:migration:{migration}", "restored", restored)
        rounds = ({"kind": "bulk", "sent": 1, "seconds": 2.0}, {"kind": "final", "sent": 1, "seconds": 0.4})
        for job in jobs:
            ledger.finish(job.ticket, Status(outcome=outcome, rounds=rounds, seconds={"downtime": 0.5}))
        if outcome == "completed":
            places.reverse()
        hosts = ledger.cluster().hosts
        return [round(hosts[name].overhead, 1) for name in ("alpha", "beta", "gamma")]

    places = ["alpha", "beta"]
    assert moved("m-1", 3.5) == [1.0, 1.0, 0.0]
    assert moved("m-2", 60.0, outcome="failed") == [1.0, 1.0, 0.0], "no measure of one that goes well"
    assert moved("m-3", 60.0, restored="1") == [1.0, 1.0, 0.0], "when it was let on is not known any more"
    assert moved("m-4", 2.7) == [0.6, 0.6, 0.0]
    assert moved("m-5", 600.0) == [1.0, 1.0, 0.0], "one that waited for Redis: an extreme, which does not count"
    for number in range(9):
        last = moved(f"m-{10 + number}", 4.5)
    assert last == [2.0, 2.0, 0.0], "of the last nine"
    with redis_server.client() as client:
        assert len(json.loads(client.hget("ledger:overheads", "alpha"))) == 9


# --- what operators keep where it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "name", "reason"),
    [
        (Kept.GUEST, "web", "pinned"),
        (Kept.HOST, "alpha", "pinned"),
        (Kept.HOST, "beta", "pinned"),
        (Kept.CORDON, "beta", "cordoned"),
    ],
)
def test_what_waits_ends_when_an_operator_keeps_it_where_it_is(
    ledger: Ledger, kept: Kept, name: str, reason: str
) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ask(ledger, "m-2", "mail", "beta", "gamma")
    assert ledger.pin(kept, name, "under test") is None
    assert ledger.admit() == ([] if (kept, name) == (Kept.HOST, "beta") else ["m-2"])
    record = snapshot(ledger, "m-1")
    assert (record.state, record.reason) == ("failed", reason)
    assert "under test" in str(record.message)
    assert ledger.fleet().guests["web"].active is None


def test_a_cordon_lets_guests_leave(ledger: Ledger) -> None:
    ledger.pin(Kept.CORDON, "alpha", "under test")
    ask(ledger, "m-1", "web", "alpha", "beta")
    assert ledger.admit() == ["m-1"]


def test_a_pin_that_has_expired_keeps_nothing_and_is_swept_away(ledger: Ledger, redis_server: RedisServer) -> None:
    ledger.pin(Kept.GUEST, "web", "over", ledger.now() - 1)
    ledger.pin(Kept.GUEST, "db", "goes on", ledger.now() + 3600)
    assert [pin.name for pin in ledger.fleet().pins.values()] == ["db"]
    ask(ledger, "m-1", "web", "alpha", "beta")
    assert ledger.admit() == ["m-1"]
    ledger.prune()
    with redis_server.client() as client:
        assert client.hkeys("ledger:blockers") == [b"guest:db"]


def test_what_somebody_else_said_stands_until_it_is_replaced(ledger: Ledger) -> None:
    assert ledger.pin(Kept.GUEST, "web", "a licence") is None
    assert ledger.pin(Kept.GUEST, "web", "a licence", ledger.now() + 3600) is None  # said again, with an end
    standing = ledger.pin(Kept.GUEST, "web", "a whim")
    assert standing is not None
    assert standing.reason == "a licence"
    assert standing.expires is not None
    assert ledger.pin(Kept.GUEST, "web", "a whim", replace=True) is None
    assert ledger.unpin(Kept.GUEST, "web", "a licence") is Answer.OTHER
    assert ledger.unpin(Kept.GUEST, "web") is Answer.OK
    assert ledger.unpin(Kept.GUEST, "web") is Answer.GONE


# --- what plans are made from -----------------------------------------------------------------------------------------


def test_what_a_host_says_of_itself_and_its_guests_is_read_back(ledger: Ledger) -> None:
    said = LocalGuest("web", GIB, 0, 1.5, ("db",), ("zone=1",))
    labels = {"labels": '["zone=1"]', "cpus": "16.0", "bandwidth": "5", "uplink": "rack1", "uplink_bandwidth": "7"}
    beat(ledger, "alpha", [said], **labels)
    fleet = ledger.fleet()
    host, guest = fleet.hosts["alpha"], fleet.guests["web"]
    assert (host.cpus, host.bandwidth, host.uplink, host.uplink_bandwidth, host.labels) == (
        16.0, 5, "rack1", 7, frozenset({"zone=1"}),
    )  # fmt: skip
    assert (guest.load, guest.anti_affinity, guest.needs) == (1.5, frozenset({"db"}), frozenset({"zone=1"}))
    beat(ledger, "alpha", [replace(said, load=None)])
    assert ledger.fleet().guests["web"].load == 1.5  # not looked at is not idle


def test_a_named_cpu_model_is_kept_from_hosts_whose_qemu_does_not_know_it(ledger: Ledger) -> None:
    beat(ledger, "alpha", [LocalGuest("web", GIB, 0, cpu_model="new")], cpu_models='["new", "old"]')
    beat(ledger, "beta", [], cpu_models='["old"]')
    found = ledger.cluster()
    assert (found.guests["web"].cpu_model, found.hosts["alpha"].cpu_models) == ("new", {"new"})
    refusal = judge(found, "web", "beta")
    assert refusal is not None
    assert refusal.rule == "cpu-model"
    assert judge(found, "web", "gamma") is None  # whose QEMU nobody has asked


def test_a_move_leaves_behind_when_it_was_and_how_much_its_guest_wrote(ledger: Ledger) -> None:
    assert (ledger.fleet().guests["web"].moved, ledger.fleet().guests["web"].dirty_rate) == (None, None)
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    for job in [taken(ledger, "m-1", side) for side in Side]:
        ledger.finish(job.ticket, Status(outcome="completed", rates={"dirty": 2.5e8}))
    guest = ledger.fleet().guests["web"]
    assert (guest.host, guest.dirty_rate) == ("beta", 2.5e8)
    assert guest.moved == pytest.approx(ledger.now(), abs=60)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_completed_migration_moves_the_guest_and_gives_everything_back(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-1", side) for side in Side}
    assert ledger.finish(jobs[Side.DESTINATION].ticket, Status(outcome="completed")) is Answer.OK
    record = snapshot(ledger, "m-1")
    assert (record.state, record.settled) == ("completed", False)
    assert ledger.fleet().guests["web"].host == "beta"
    assert ledger.finish(jobs[Side.SOURCE].ticket, Status(outcome="completed")) is Answer.OK
    assert snapshot(ledger, "m-1").settled
    assert ledger.open() == []
    hosts = ledger.fleet().hosts
    assert (hosts["alpha"].resident, hosts["beta"].resident, hosts["beta"].reserved) == (GIB, 2 * GIB, 0)
    assert all(taken_ == 0 for host in hosts.values() for taken_ in host.admitted.values())


def test_a_contradiction_is_told_and_changes_nothing(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-1", side) for side in Side}
    ledger.finish(jobs[Side.SOURCE].ticket, Status(outcome="failed", reason="peer-lost", message="lost"))
    assert ledger.finish(jobs[Side.DESTINATION].ticket, Status(outcome="completed")) is Answer.CONFLICT
    record = snapshot(ledger, "m-1")
    assert (record.state, record.reason, record.message) == ("failed", "peer-lost", "lost")
    assert ledger.fleet().guests["web"].host == "alpha"


def test_a_destination_that_gives_up_before_any_source_began_ends_it(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    job = taken(ledger, "m-1", Side.DESTINATION)
    ledger.finish(job.ticket, Status(outcome="failed", reason="unreachable", message="nobody came"))
    assert snapshot(ledger, "m-1").state == "failed"
    late = Job("m-1", "web", 1, Side.SOURCE, "n", "alpha", "beta", GIB, {}, {})
    assert ledger.claim(late.ticket) is Answer.ENDED


def test_progress_leads_forward_only_and_only_the_source_knows(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-1", side) for side in Side}
    ledger.renew(jobs[Side.DESTINATION].ticket, Status(state="device"))
    assert snapshot(ledger, "m-1").state == "setup"
    ledger.renew(jobs[Side.SOURCE].ticket, Status(state="device", bytes={"transferred": 5}))
    ledger.renew(jobs[Side.SOURCE].ticket, Status(state="active"))
    record = snapshot(ledger, "m-1")
    assert record.state == "device"
    assert record.source.progress is not None


def test_cancelling_ends_what_waits_and_asks_what_runs(ledger: Ledger) -> None:
    bell = RecordingBell()
    ask(ledger, "m-1", "web", "alpha", "beta")
    assert cancel(ledger, bell, "m-1") == "cancelled"
    ask(ledger, "m-2", "web", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-2", side) for side in Side}
    assert cancel(ledger, bell, "m-2") == "cancelling"
    assert ledger.renew(jobs[Side.SOURCE].ticket)[0] is Answer.CANCEL
    assert ledger.renew(jobs[Side.DESTINATION].ticket)[0] is Answer.OK  # the source decides, and tells it
    ledger.finish(jobs[Side.SOURCE].ticket, Status(outcome="cancelled", reason="cancelled"))
    assert ledger.renew(jobs[Side.DESTINATION].ticket) == (Answer.ENDED, "cancelled")
    with pytest.raises(RefusedError, match="is cancelled already"):
        cancel(ledger, bell, "m-2")
    with pytest.raises(RefusedError) as caught:
        cancel(ledger, bell, "m-9")
    assert caught.value.reason == "unknown-migration"


# --- a Redis that forgot ----------------------------------------------------------------------------------------------


def test_hosts_write_back_what_redis_forgot_before_anybody_else_is_admitted(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    ask(ledger, "m-1", "db", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-1", side) for side in Side}
    with redis_server.client() as client:
        client.delete(*client.keys("ledger:*"))
    beat(ledger, "beta", [LocalGuest("mail", GIB, 0)], jobs[Side.DESTINATION])
    beat(ledger, "alpha", [LocalGuest("web", GIB, 0), LocalGuest("db", GIB, 8)], jobs[Side.SOURCE])
    record = snapshot(ledger, "m-1")
    assert (record.epoch, record.state, record.restored) == (8, "setup", True)
    assert ledger.submit(Submission("m-2", "db", "alpha", "gamma", GIB, {}, {})) == (Answer.BUSY, "m-1")
    ask(ledger, "m-3", "web", "alpha", "beta")
    assert ledger.admit() == []
    assert all(ledger.renew(job.ticket)[0] is Answer.OK for job in jobs.values())
    for job in jobs.values():
        assert ledger.finish(job.ticket, Status(outcome="completed")) is Answer.OK
    assert ledger.fleet().guests["db"].host == "beta"


def test_a_guest_is_forgotten_only_when_its_host_has_not_named_it_for_long(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    beat(ledger, "alpha", [LocalGuest("db", GIB, 7)])
    assert "web" in ledger.fleet().guests
    with redis_server.client() as client:
        client.hset("ledger:guest:web", "seen", 1)
    ledger.retell("alpha", [("web", 1, "given", "m-1"), ("nobody", 1, "given", "m-1")])
    beat(ledger, "alpha", [LocalGuest("db", GIB, 7)])
    assert "web" not in ledger.fleet().guests
    assert ledger.fleet().hosts["alpha"].resident == GIB
    with redis_server.client() as client:
        assert client.keys("ledger:guest:*:handover") == []


def test_a_guest_that_was_stopped_is_gone_at_once_and_no_older_listing_brings_it_back(ledger: Ledger) -> None:
    before = [LocalGuest("web", GIB, 0), LocalGuest("db", GIB, 7)]
    assert ledger.gone("alpha", "web") is Answer.OK
    assert ledger.gone("alpha", "web") is Answer.UNKNOWN
    beat(ledger, "alpha", before)
    assert ledger.fleet().guests.keys() == {"db", "mail"}
    assert ledger.fleet().hosts["alpha"].resident == GIB
    ledger.announce("alpha", LocalGuest("web", 2 * GIB, 0))
    beat(ledger, "alpha", before)
    assert ledger.fleet().guests["web"].host == "alpha"
    assert ledger.gone("alpha", "web") is Answer.OK
    beat(ledger, "gamma", [LocalGuest("web", GIB, 0)])  # another one of this name
    assert ledger.fleet().guests["web"].host == "gamma"


def test_a_guest_that_moves_or_is_elsewhere_is_not_gone(ledger: Ledger) -> None:
    assert ledger.gone("beta", "web") is Answer.MOVED
    ask(ledger, "m-1", "web", "alpha", "beta")
    assert ledger.gone("alpha", "web") is Answer.BUSY
    assert ledger.fleet().guests["web"].active == "m-1"


def test_after_a_lease_its_hosts_word_is_believed_again(own_redis_server: RedisServer) -> None:
    redis = RedisSettings(url=SecretStr(own_redis_server.url))
    ledger = Ledger(Settings(redis=redis, worker=WorkerSettings(lease=3)))
    beat(ledger, "alpha", [LocalGuest("web", GIB, 0)])
    assert ledger.gone("alpha", "web") is Answer.OK
    with own_redis_server.client() as client:
        assert 2000 < client.pttl("droveway:guest:web:gone") <= 3000
        client.delete("droveway:guest:web:gone")
    beat(ledger, "alpha", [LocalGuest("web", GIB, 0)])
    assert ledger.fleet().guests["web"].host == "alpha"
    ledger.close()


def test_only_a_higher_epoch_overrules_another_hosts_word(ledger: Ledger) -> None:
    assert ledger.heartbeat("beta", Side.SOURCE, offered(), [], [LocalGuest("db", GIB, 7)]) == ["db"]
    assert ledger.fleet().guests["db"].host == "alpha"
    assert ledger.heartbeat("beta", Side.SOURCE, offered(), [], [LocalGuest("db", GIB, 8)]) == []
    assert (ledger.fleet().guests["db"].host, ledger.fleet().guests["db"].epoch) == ("beta", 8)


def forgotten(server: RedisServer) -> None:
    with server.client() as client:
        client.delete(*client.keys("ledger:*"))


def test_a_restored_destination_alone_neither_decides_nor_is_decided_for(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    ask(ledger, "m-1", "db", "alpha", "beta")
    ledger.admit()
    job = taken(ledger, "m-1", Side.DESTINATION)
    forgotten(redis_server)
    beat(ledger, "beta", [], job)
    assert ledger.abandon("m-1", 8, 0, "") is Answer.CLAIMED
    late = replace(job, side=Side.SOURCE, host="alpha", peer_host="beta")
    assert ledger.claim(late.ticket) is Answer.FENCED
    assert ledger.cancel("m-1", "")[0] is Answer.ASKED
    assert ledger.finish(job.ticket, Status(outcome="failed", reason="peer-lost")) is Answer.OK
    assert not snapshot(ledger, "m-1").ended  # the source may be at work, its heartbeat only late
    assert ledger.abandon("m-1", 8, 0, "") is Answer.OK


def test_an_attempt_whose_guest_was_promised_to_another_meanwhile_is_not_restored(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    ask(ledger, "m-1", "db", "alpha", "beta")
    ledger.admit()
    job = taken(ledger, "m-1", Side.DESTINATION)
    forgotten(redis_server)
    beat(ledger, "alpha", [LocalGuest("db", GIB, 8)])
    ask(ledger, "m-2", "db", "alpha", "gamma")
    beat(ledger, "beta", [], job)
    assert ledger.find("m-1") is None
    assert ledger.fleet().guests["db"].active == "m-2"


def test_a_claim_under_another_epoch_is_turned_away(ledger: Ledger) -> None:
    ask(ledger, "m-1", "db", "alpha", "beta")
    ledger.admit()
    for epoch in (7, 9):
        stale = Job("m-1", "db", epoch, Side.SOURCE, "n", "alpha", "beta", GIB, {}, {})
        assert ledger.claim(stale.ticket) is Answer.FENCED
    assert ledger.heartbeat("beta", Side.SOURCE, offered(), [], [LocalGuest("db", GIB, 9)]) == ["db"]  # while it moves
    taken(ledger, "m-1", Side.SOURCE)


def test_only_what_nobody_took_up_is_given_up(ledger: Ledger) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    assert ledger.abandon("m-1", 1, 3600, "") is Answer.EARLY
    assert ledger.abandon("m-1", 2, 0, "") is Answer.FENCED
    taken(ledger, "m-1", Side.SOURCE)
    assert ledger.abandon("m-1", 1, 0, "") is Answer.CLAIMED


def test_an_ended_migration_keeps_the_slot_of_a_side_that_still_renews(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    ask(ledger, "m-1", "web", "alpha", "beta")
    ledger.admit()
    jobs = {side: taken(ledger, "m-1", side) for side in Side}
    ledger.finish(jobs[Side.SOURCE].ticket, Status(outcome="failed"))
    assert ledger.release("m-1") == []
    with redis_server.client() as client:
        client.hset("ledger:migration:m-1", "lease:destination", 1)
    assert ledger.release("m-1") == [Side.DESTINATION]
    assert ledger.open() == []


def test_a_guest_that_has_just_moved_or_gone_is_not_taken(ledger: Ledger) -> None:
    assert ledger.submit(Submission("m-1", "web", "gamma", "beta", GIB, {}, {})) == (Answer.MOVED, "alpha")
    assert ledger.submit(Submission("m-1", "nobody", "gamma", "beta", GIB, {}, {})) == (Answer.UNKNOWN, "")
    assert ledger.find("m-1") is None


# --- what producers call ----------------------------------------------------------------------------------------------


def request(migration: str = "m-1", **changes: Any) -> MigrateRequest:
    return MigrateRequest(**{"migration": migration, "guest": "web", "destination": "beta", **changes})


def test_the_same_request_twice_is_one_migration(ledger: Ledger) -> None:
    bell = RecordingBell()
    assert submit(ledger, request()) == submit(ledger, request()) == "m-1"
    assert admit(ledger, bell) == ["m-1"]
    assert bell.rung == [("m-1", side) for side in Side]
    assert submit(ledger, request()) == "m-1"
    with pytest.raises(RefusedError, match="already migrating") as caught:
        submit(ledger, request("m-2"))
    assert caught.value.reason == "busy"


def test_watching_shows_every_change_up_to_the_end(ledger: Ledger) -> None:
    submit(ledger, request())
    seen = []
    for record in watch(ledger, "m-1"):
        seen.append(record.state)
        if record.state == "queued":
            ledger.admit()
        elif record.state == "setup" and record.source.claimed is None:
            jobs = [taken(ledger, "m-1", side) for side in Side]
        elif record.state == "setup":
            ledger.renew(jobs[0].ticket, Status(state="active"))
        elif record.state == "active":
            for job in jobs:
                ledger.finish(job.ticket, Status(outcome="completed"))
    assert list(dict.fromkeys(seen)) == ["queued", "setup", "active", "completed"]


def test_reconcile_rings_gives_up_and_gives_back(ledger: Ledger, redis_server: RedisServer) -> None:
    bell = RecordingBell()
    submit(ledger, request())
    ledger.admit()
    with redis_server.client() as client:
        client.hset("ledger:migration:m-1", mapping={"rung": 1, "admitted": round(ledger.now() - 30) * 1000})
        report = reconcile(ledger, bell)
        assert {finding.action for finding in report.findings} == {Action.RING}
        assert bell.rung == [("m-1", side) for side in Side]
        assert reconcile(ledger, bell).findings == ()  # just rung
        client.hset("ledger:migration:m-1", mapping={"admitted": 1})
        reconcile(ledger, bell)
    record = snapshot(ledger, "m-1")
    assert (record.state, record.reason) == ("failed", "no-worker")
    assert ledger.open() == []
    assert not any(ledger.fleet().hosts["alpha"].admitted.values())


def test_what_ended_is_forgotten_after_its_retention(redis_server: RedisServer, ledger: Ledger) -> None:
    brief = Ledger(settings(redis_server, history=HistorySettings(retention=0.001)))
    ask(brief, "m-1", "web", "alpha", "beta")
    brief.cancel("m-1", "cancelled")
    with redis_server.client() as client:
        while client.exists("ledger:migration:m-1"):
            pass
        brief.prune()
        assert client.keys("ledger:*m-1*") == []
        assert client.zcard("ledger:migrations") == 0
    brief.close()


def test_a_redis_that_is_away_is_unreachable(own_redis_server: RedisServer) -> None:
    ledger = Ledger(settings(own_redis_server))
    own_redis_server.kill()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        ledger.admit()
    with pytest.raises((UnreachableError, HostError)):
        ledger.fleet()
    ledger.close()
