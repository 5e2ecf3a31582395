"""The ledger's scripts against a model of the world: calls repeated, leases lost, Redis emptied, in any order.

The world is what the hosts know: which of them owns a guest, which attempts are at work, which epochs their journals
have seen. Redis may be emptied at any time; heartbeats bring it back from the world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.ledger.ledger import Answer, Ledger
from tasks.records import ENDED, Kept, LocalGuest, Submission
from tasks.steps import SILENCE
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side
from workers.pairing.keys import Keys

GIB = 1 << 30
HOSTS = ("alpha", "beta", "gamma")
CAPACITY = 3 * GIB
SLOTS = 1
#: Admitted beside those that send: they prepare.
AHEAD = 1
#: alpha's rack: its uplink carries one stream of its hosts, and none of them shares it with beta or gamma.
UPLINK = 1_250_000_000
HOME = {"web": "alpha", "db": "alpha", "mail": "beta"}
#: An hour: leases lapse only where a rule says so.
LEASE = 3600.0

OFFERED = {
    "address": "127.0.0.1",
    "version": "0",
    "memory": str(CAPACITY),
    "memlock": "",
    "capabilities": "[]",
    "transports": "[]",
    "trackers": "[]",
    "slots:source": str(SLOTS),
    "slots:destination": str(SLOTS),
    "ahead": str(AHEAD),
    "uplink_bandwidth": str(UPLINK),
}
RACKS = {"alpha": "north", "beta": "south", "gamma": "south"}


@dataclass
class World:
    """What the hosts know."""

    where: dict[str, str] = field(default_factory=lambda: dict(HOME))
    journal: dict[tuple[str, str], int] = field(default_factory=dict)
    at_work: dict[tuple[str, Side], Job] = field(default_factory=dict)
    #: Decided fates: completed, failed or cancelled, by migration.
    fate: dict[str, str] = field(default_factory=dict)
    gave_up: set[str] = field(default_factory=set)

    def guests_of(self, host: str) -> list[LocalGuest]:
        return [
            LocalGuest(guest, GIB, self.journal.get((host, guest), 0))
            for guest, place in self.where.items()
            if place == host
        ]

    def jobs_of(self, host: str) -> list[Job]:
        return [job for job in self.at_work.values() if job.host == host]


class LedgerMachine(RuleBasedStateMachine):
    server: ClassVar[RedisServer]

    def __init__(self) -> None:
        super().__init__()
        self.client = self.server.client()
        self.keys = Keys("machine:")
        redis_settings = RedisSettings(url=SecretStr(self.server.url), prefix="machine:")
        self.ledger = Ledger(Settings(redis=redis_settings, worker=WorkerSettings(lease=LEASE)))
        self.world = World()
        self.count = 0
        self.ended: dict[str, str] = {}
        self.epochs: dict[str, int] = {}
        self.places: dict[str, str] = {}
        #: Whose share of shared links was given back.
        self.freed: set[bytes] = set()
        #: How often Redis was emptied.
        self.forgotten = 0
        self.client.flushdb()

    def teardown(self) -> None:
        self.ledger.close()
        self.client.close()

    def twice(self, call: Callable[[], Any], repeat: bool) -> Any:
        """The reply was lost and the caller asks again: what it hears then is what it acts on."""
        answer = call()
        return call() if repeat else answer

    def fields(self, migration: str) -> dict[str, str]:
        found: Any = self.client.hgetall(self.keys.migration(migration))
        return {name.decode(): value.decode() for name, value in found.items()}

    def records(self) -> dict[str, dict[str, str]]:
        names: Any = self.client.zrange(self.keys.migrations(), 0, -1)
        return {name.decode(): self.fields(name.decode()) for name in names}

    def beat(self, host: str) -> None:
        for side in Side:
            offered = OFFERED | {"uplink": RACKS[host]}
            self.ledger.heartbeat(host, side, offered, self.world.jobs_of(host), self.world.guests_of(host))

    # --- rules --------------------------------------------------------------------------------------------------------

    @initialize()
    def everyone_is_there(self) -> None:
        for host in HOSTS:
            self.beat(host)

    @rule(guest=st.sampled_from(sorted(HOME)), to=st.sampled_from(HOSTS), repeat=st.booleans())
    def submit(self, guest: str, to: str, repeat: bool) -> None:
        source = self.world.where[guest]
        if source == to:
            return
        self.count += 1
        submission = Submission(f"m-{self.count}", guest, source, to, GIB, {}, {})
        first, _ = self.ledger.submit(submission)
        if repeat:
            again, _ = self.ledger.submit(submission)
            assert (again is Answer.EXISTS) == (first is Answer.OK)
        assert first in (Answer.OK, Answer.BUSY, Answer.UNKNOWN, Answer.MOVED)

    @rule(repeat=st.booleans())
    def admit(self, repeat: bool) -> None:
        self.twice(self.ledger.admit, repeat)

    @rule()
    def a_busy_minute(self) -> None:
        """One of everything, so that what follows finds migrations at work."""
        for guest, to in (("web", "gamma"), ("db", "beta"), ("mail", "alpha")):
            self.submit(guest, to, repeat=False)
        for host in HOSTS:
            self.beat(host)
        self.admit(repeat=False)
        self.every_doorbell_is_answered()

    def admitted(self) -> list[str]:
        return [migration for migration, record in self.records().items() if "epoch" in record]

    @precondition(lambda self: self.admitted())
    @rule(data=st.data(), side=st.sampled_from(Side), repeat=st.booleans())
    def claim(self, data: st.DataObject, side: Side, repeat: bool) -> None:
        self.try_claim(data.draw(st.sampled_from(self.admitted())), side, repeat)

    @precondition(lambda self: self.admitted())
    @rule()
    def every_doorbell_is_answered(self) -> None:
        for migration in self.admitted():
            for side in Side:
                self.try_claim(migration, side, repeat=True)

    def try_claim(self, migration: str, side: Side, repeat: bool) -> None:
        record = self.fields(migration)
        if (migration, side) in self.world.at_work:
            return
        host, peer = record[side], record[side.peer]
        job = Job(migration, record["guest"], int(record["epoch"]), side, "nonce", host, peer, GIB, {}, {})
        answer = self.twice(lambda: self.ledger.claim(job.ticket), repeat)
        assert answer is not Answer.TAKEN, "nobody else ever claims in this model"
        if record["state"] in ENDED:
            assert answer is not Answer.OK
        if f"outcome:{side}" in record:
            assert answer in (Answer.ENDED, Answer.FENCED)
        if answer is not Answer.OK:
            return
        others = [at for (_, where), at in self.world.at_work.items() if where is side and at.guest == job.guest]
        # One whose guest was taken has only memory to let go of.
        owners = [at for at in others if self.world.fate.get(at.migration) != "completed"]
        assert side is Side.DESTINATION or not owners, "two sources at work on one guest"
        if self.world.journal.get((host, job.guest), 0) >= job.epoch:
            # An epoch that only a destination saw is gone with Redis and may come again; that host's journal refuses.
            assert side is Side.DESTINATION, "an epoch came twice"
            assert self.forgotten, "an epoch came twice"
            self.world.gave_up.add(migration)
            self.ledger.finish(job.ticket, Status(outcome="failed", reason="stale-epoch"))
            return
        self.world.at_work[migration, side] = job
        self.world.journal[host, job.guest] = job.epoch

    @precondition(lambda self: self.world.at_work)
    @rule(data=st.data())
    def a_second_holder_is_turned_away(self, data: st.DataObject) -> None:
        job = self.draw_attempt(data)
        record = self.fields(job.migration)
        if f"claim:{job.side}" in record:  # else Redis forgot, and the next heartbeat says it again
            answer = self.ledger.claim(dataclasses.replace(job, nonce="stranger").ticket)
            assert answer in (
                (Answer.ENDED, Answer.FENCED) if record["state"] in ENDED else (Answer.TAKEN, Answer.FENCED)
            )

    @precondition(lambda self: self.world.at_work)
    @rule(data=st.data(), epoch=st.integers(-2, 2).filter(bool))
    def another_epoch_is_turned_away(self, data: st.DataObject, epoch: int) -> None:
        job = self.draw_attempt(data)
        stale = dataclasses.replace(job, epoch=job.epoch + epoch).ticket
        assert self.ledger.claim(stale) in (Answer.FENCED, Answer.GONE)
        assert self.ledger.renew(stale)[0] in (Answer.FENCED, Answer.GONE)
        assert self.ledger.finish(stale, Status(outcome="completed")) in (Answer.FENCED, Answer.GONE)

    @precondition(lambda self: self.world.at_work)
    @rule(data=st.data(), state=st.sampled_from(["active", "pre-switchover", "device"]), repeat=st.booleans())
    def renew(self, data: st.DataObject, state: str, repeat: bool) -> None:
        job = self.draw_attempt(data)
        answer, said = self.twice(lambda: self.ledger.renew(job.ticket, Status(state=state)), repeat)
        assert answer in (Answer.OK, Answer.CANCEL, Answer.ENDED, Answer.GONE, Answer.FENCED)
        if said == "go":
            self.world.at_work[job.migration, job.side] = dataclasses.replace(job, granted=True)

    @precondition(lambda self: self.world.at_work)
    @rule(data=st.data(), wish=st.sampled_from(["completed", "failed", "cancelled"]), repeat=st.booleans())
    def finish(self, data: st.DataObject, wish: str, repeat: bool) -> None:
        job = self.draw_attempt(data)
        outcome = self.outcome_of(job, wish)
        answer = self.twice(lambda: self.ledger.finish(job.ticket, Status(outcome=outcome)), repeat)
        assert answer in (Answer.OK, Answer.GONE, Answer.FENCED), answer
        del self.world.at_work[job.migration, job.side]

    def draw_attempt(self, data: st.DataObject) -> Job:
        at_work = self.world.at_work
        return at_work[data.draw(st.sampled_from(sorted(at_work)))]

    def outcome_of(self, job: Job, wish: str) -> str:
        """What the handover lets this side say; the guest moves in the world when the destination takes it."""
        migration, world = job.migration, self.world
        if migration in world.fate:
            fate = world.fate[migration]
            return fate if fate == "completed" or job.side is Side.SOURCE else "failed"
        both = all((migration, side) in world.at_work for side in Side)
        if wish == "completed" and both:
            world.fate[migration] = "completed"
            world.where[job.guest] = job.destination
        elif job.side is Side.SOURCE:
            world.fate[migration] = wish = "failed" if wish == "completed" else wish
        else:
            world.gave_up.add(migration)
            wish = "failed"
        return wish

    @precondition(lambda self: self.count)
    @rule(number=st.integers(0, 2), repeat=st.booleans())
    def cancel(self, number: int, repeat: bool) -> None:
        migration = f"m-{self.count - number}"
        self.twice(lambda: self.ledger.cancel(migration, "cancelled"), repeat)

    @rule(kept=st.sampled_from(Kept), number=st.integers(0, 2), repeat=st.booleans())
    def an_operator_keeps_something_where_it_is(self, kept: Kept, number: int, repeat: bool) -> None:
        name = sorted(HOME)[number] if kept is Kept.GUEST else HOSTS[number]
        self.ledger.pin(kept, name, "for a while", None)
        self.twice(self.ledger.admit, repeat)
        self.ledger.unpin(kept, name)

    @precondition(lambda self: self.count)
    @rule(number=st.integers(0, 2), repeat=st.booleans())
    def abandon(self, number: int, repeat: bool) -> None:
        migration = f"m-{self.count - number}"
        epoch = int(self.fields(migration).get("epoch", 0))
        if (migration, Side.SOURCE) not in self.world.at_work:  # reconcile's grace is longer than any heartbeat
            self.twice(lambda: self.ledger.abandon(migration, epoch, 0, "abandoned"), repeat)

    @precondition(lambda self: self.count)
    @rule(number=st.integers(0, 2), side=st.sampled_from(Side))
    def lease_lapses_and_is_released(self, number: int, side: Side) -> None:
        migration = f"m-{self.count - number}"
        if self.client.exists(self.keys.migration(migration)):
            self.client.hset(self.keys.migration(migration), f"lease:{side}", 1)
            self.ledger.release(migration)

    @precondition(lambda self: self.count)
    @rule(number=st.integers(0, 2), repeat=st.booleans())
    def both_hosts_are_silent_for_long(self, number: int, repeat: bool) -> None:
        migration = f"m-{self.count - number}"
        if self.client.exists(self.keys.migration(migration)):
            self.client.hset(self.keys.migration(migration), mapping={f"lease:{side}": 1 for side in Side})
            self.twice(lambda: self.ledger.free_links(migration, SILENCE), repeat)
            if "off_links" in self.fields(migration):
                self.freed.add(migration.encode())

    @rule(host=st.sampled_from(HOSTS), side=st.sampled_from(Side), crash=st.booleans())
    def worker_stops(self, host: str, side: Side, crash: bool) -> None:
        if crash and self.client.exists(self.keys.host(host)):
            self.client.hset(self.keys.host(host), f"lease:{side}", 1)
        elif not crash:
            self.ledger.resign(host, side)

    @rule(host=st.sampled_from(HOSTS))
    def heartbeat(self, host: str) -> None:
        self.beat(host)

    @rule()
    def prune(self) -> None:
        self.ledger.prune()

    @precondition(lambda self: self.world.at_work)
    @rule(order=st.permutations(HOSTS))
    def redis_forgets(self, order: list[str]) -> None:
        self.client.flushdb()
        self.forgotten += 1
        self.ended.clear()
        self.epochs.clear()
        self.places.clear()
        for host in order[:2]:  # the third comes later, or never
            self.beat(host)

    # --- what must always hold ----------------------------------------------------------------------------------------

    @invariant()
    def one_live_migration_a_guest(self) -> None:
        live: dict[str, str] = {}
        for migration, record in self.records().items():
            if record["state"] not in ENDED:
                assert record["guest"] not in live, f"{migration} and {live[record['guest']]}"
                live[record["guest"]] = migration
                active: Any = self.client.hget(self.keys.guest(record["guest"]), "active")
                assert active.decode() == migration

    @invariant()
    def slots_and_memory_are_never_oversold(self) -> None:
        for host in HOSTS:
            for side in Side:
                held: Any = self.client.smembers(self.keys.slots(host, side))
                # Of an attempt whose record is gone, nobody knows that it still lets go of its memory: once the host
                # says so to a Redis that has forgotten again, it counts beside the one that was admitted meanwhile.
                at_work = {job.migration.encode() for job in self.world.jobs_of(host) if job.side is side}
                assert len(held) <= SLOTS + AHEAD or (self.forgotten > 1 and held <= at_work)
                assert all(self.client.sismember(self.keys.open(), migration) for migration in held)
            resident: Any = self.client.hvals(self.keys.residents(host))
            reserved: Any = self.client.hgetall(self.keys.reserved(host))
            assert sum(map(int, resident)) + sum(map(int, reserved.values())) <= CAPACITY
            incoming: Any = self.client.smembers(self.keys.slots(host, "destination"))
            assert set(reserved) <= incoming

    @invariant()
    def no_link_is_given_out_twice(self) -> None:
        for host in HOSTS:
            for side in Side:
                sending: Any = self.client.smembers(self.keys.streams(host, side))
                let_on = {
                    job.migration.encode() for job in self.world.jobs_of(host) if job.side is side and job.granted
                }
                # What was let on before Redis forgot goes on, beside what was let on before its host said so.
                assert len(sending) <= SLOTS or (self.forgotten and sending & let_on)
                # Of a record that was written back, the other side may have ended before Redis forgot.
                known = {each for each in sending if "restored" not in self.fields(each.decode())}
                assert known <= self.client.smembers(self.keys.slots(host, side))
        for rack in set(RACKS.values()):
            for way in ("up", "down"):
                given: Any = self.client.hgetall(f"machine:link:{rack}:{way}")
                # What was freed under movers that went on is counted beside what was let on meanwhile.
                assert sum(int(rate) for migration, rate in given.items() if migration not in self.freed) <= UPLINK

    @invariant()
    def who_is_admitted_sends_or_prepares(self) -> None:
        prepared: Any = {name.decode() for name in self.client.zrange(self.keys.prepared(), 0, -1)}
        for migration, record in self.records().items():
            admitted = "epoch" in record and record["state"] not in ENDED
            if admitted and "restored" not in record:
                assert ("granted" in record) != (migration in prepared)
            elif not admitted:
                assert migration not in prepared

    @invariant()
    def an_end_is_final(self) -> None:
        for migration, record in self.records().items():
            before = self.ended.get(migration)
            assert before in (None, record["state"])
            if record["state"] in ENDED:
                self.ended[migration] = record["state"]
                assert not self.client.zscore(self.keys.waiting(), migration)

    @invariant()
    def a_record_agrees_with_the_world(self) -> None:
        for migration, record in self.records().items():
            fate = self.world.fate.get(migration)
            if record["state"] in ("completed", "failed") and fate is not None:
                assert (record["state"] == "completed") == (fate == "completed")

    @invariant()
    def epochs_only_rise_and_hosts_change_only_on_completion(self) -> None:
        for guest in HOME:
            found: Any = self.client.hgetall(self.keys.guest(guest))
            if not found:
                continue
            epoch, host = int(found[b"epoch"]), found[b"host"].decode()
            assert epoch >= self.epochs.get(guest, 0)
            self.epochs[guest] = epoch
            if self.places.get(guest, host) != host:
                completed = [r for r in self.records().values() if r["guest"] == guest and r["state"] == "completed"]
                assert any(record["destination"] == host for record in completed)
            self.places[guest] = host

    @invariant()
    def what_is_open_is_there(self) -> None:
        opened: Any = self.client.smembers(self.keys.open())
        for migration in opened:
            record = self.fields(migration.decode())
            assert record, f"{migration!r} has no record"


def test_no_order_of_calls_breaks_the_ledger(own_redis_server: RedisServer) -> None:
    LedgerMachine.server = own_redis_server
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=checks),
    )


pytestmark = pytest.mark.redis
