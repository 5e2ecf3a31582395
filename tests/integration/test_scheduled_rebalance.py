"""Policies on a real Redis: a due moment is judged once, whoever asks how often; and a fleet that is even stays still.

Movers are scripted: a move ends when the test says so. The server's clock is put forward, not waited for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from config.settings import RebalanceSettings, RedisSettings, Settings, WorkerSettings
from tasks.bell import Bell
from tasks.evacuate import begin, take_step
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import Rebalance
from tasks.planning.evacuating import Evacuation
from tasks.planning.rebalancing import RebalancePlan, imbalance_of
from tasks.records import LocalGuest, MigrationRecord, PolicyRecord, Priority, Submission
from tasks.scheduled import tick
from tests.integration.console import GIB, OFFERED
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

DAYS = 86_400.0
HOSTS = tuple(f"h{number:02}" for number in range(1, 13))
OFFERS = OFFERED | {"memory": str(64 * GIB), "cpus": "32", "slots:source": "2", "slots:destination": "2"}


class SilentBell:
    """Nobody hears it: the test plays the movers."""

    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


BELL: Bell = SilentBell()


class Clocked(Ledger):
    """The server's clock, so many seconds ahead."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture
def ledger(own_redis_server: RedisServer) -> Iterator[Clocked]:
    """Twelve hosts of 64 GiB and 32 cores; two are nearly full, the others nearly empty."""
    redis = RedisSettings.model_validate({"url": own_redis_server.url})
    with closing(Clocked(Settings(redis=redis, worker=WorkerSettings(lease=30 * DAYS)))) as made:
        # From the middle of a minute on, so that no test sees one end that it did not put forward itself.
        made.ahead = 20 - made.now() % 60
        for number, host in enumerate(HOSTS):
            names = [f"g{number:02}-{each:02}" for each in range(24 if number < 2 else 8)]
            speak(made, host, [LocalGuest(name, 2 * GIB, 0, 1.0) for name in names])
        yield made


def speak(ledger: Ledger, host: str, guests: list[LocalGuest]) -> None:
    for side in Side:
        ledger.heartbeat(host, side, OFFERS, [], guests)


def jitter(ledger: Ledger, chance: random.Random) -> None:
    """Every host speaks; each guest's load is up to a twentieth off."""
    guests = ledger.fleet().guests
    for host in HOSTS:
        here = [name for name, guest in guests.items() if guest.host == host]
        speak(ledger, host, [LocalGuest(name, 2 * GIB, 0, chance.uniform(0.95, 1.05)) for name in here])


def message(**terms: object) -> Rebalance:
    return Rebalance(policy="nightly", terms=RebalanceSettings.model_validate({"cron": "* * * * *", **terms}))


def ticked(ledger: Clocked, said: Rebalance, minutes: int = 1) -> PolicyRecord:
    """The record after the policy was due so many times more."""
    for _ in range(minutes):
        ledger.ahead += 60
        tick(ledger, BELL, said)
    return ledger.policies(["nightly"])["nightly"]


def under_way(ledger: Ledger) -> list[MigrationRecord]:
    return [each for each in ledger.open() if not each.ended]


def end(ledger: Ledger) -> int:
    """Let every admitted move complete; how many."""
    admitted = [each for each in under_way(ledger) if each.epoch is not None]
    for record in admitted:
        assert record.epoch is not None
        made = record.migration, record.guest, record.epoch
        ends = ((side, record.side(side).host, record.side(side.peer).host) for side in Side)
        jobs = [Job(*made, side, "n", host, peer, 2 * GIB, {}, {}) for side, host, peer in ends]
        assert [ledger.claim(job.ticket) for job in jobs] == [Answer.OK, Answer.OK]
        for job in jobs:
            assert ledger.finish(job.ticket, Status(outcome="completed")) is Answer.OK
    ledger.admit()
    return len(admitted)


# --- once -------------------------------------------------------------------------------------------------------------


def test_of_three_at_the_same_moment_one_acts(ledger: Clocked) -> None:
    said = message(hold=1, most_moves=4)
    with ThreadPoolExecutor(3) as threads:
        for _ in threads.map(lambda _: tick(ledger, BELL, said), range(3)):
            pass
    record = ledger.policies(["nightly"])["nightly"]
    assert record.moves == len(ledger.history()) == 4
    assert {each.priority for each in ledger.history()} == {Priority.SCHEDULED}
    assert "4 moves were asked for" in record.reason


def test_of_many_at_many_moments_each_counts_once(ledger: Clocked) -> None:
    said = message(hold=1000)
    with ThreadPoolExecutor(4) as threads:
        for count in range(1, 6):
            for _ in threads.map(lambda _: tick(ledger, BELL, said), range(8)):
                pass
            assert ledger.policies(["nightly"])["nightly"].over == count
            ledger.ahead += 60


@pytest.mark.parametrize("seconds", [-25, -1, 0, 1, 25])
def test_a_beat_whose_clock_is_seconds_off_means_the_same_moment(ledger: Clocked, seconds: float) -> None:
    said = message(hold=10)
    exact = ledger.now() // 60 * 60 + 60
    ledger.ahead += exact - ledger.now()
    tick(ledger, BELL, said)
    ledger.ahead += seconds
    tick(ledger, BELL, said)
    record = ledger.policies(["nightly"])["nightly"]
    assert (record.due, record.over) == (exact, 1)


def test_a_judgement_that_was_overtaken_is_made_anew_on_what_is_there(ledger: Clocked) -> None:
    stale = ledger.policies(["nightly"])["nightly"]
    first = ticked(ledger, message(hold=10))
    assert ledger.judged("nightly", stale, first.due + 60, 1, 0.5, "stale") is Answer.TAKEN
    assert ledger.policies(["nightly"])["nightly"] == first


def test_it_acts_only_once_the_threshold_was_held(ledger: Clocked) -> None:
    said = message(hold=3, most_moves=4)
    assert [ticked(ledger, said).over for _ in range(2)] == [1, 2]
    assert ledger.history() == []
    record = ticked(ledger, said)
    assert (record.over, record.moves, len(ledger.history())) == (0, 4, 4)
    assert record.acted is not None


def test_a_worker_that_dies_before_it_asks_has_asked_for_nothing_and_the_next_tick_acts(
    ledger: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = message(hold=3, most_moves=4)
    ticked(ledger, said, 2)

    def dies(*_: object, **__: object) -> RebalancePlan:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("tasks.scheduled.plan_rebalance", dies)
        with pytest.raises(MemoryError):
            ticked(ledger, said)
    tick(ledger, BELL, said)  # the message again: that moment was judged
    assert ledger.history() == []
    assert ticked(ledger, said).moves == len(ledger.history()) == 4


# --- not now ----------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_out_of_the_window_and_the_hold_is_kept_until_it_opens(ledger: Clocked) -> None:
    ledger.ahead += 12 * 3600 - ledger.now() % DAYS + DAYS + 20  # noon
    said = message(hold=3, most_moves=4, windows=["12:10-12:20"])
    record = ticked(ledger, said, 8)
    assert ledger.history() == []
    assert (record.over, "no maintenance window is open" in record.reason) == (8, True)
    assert ticked(ledger, said, 2).moves == len(ledger.history()) == 4


def test_nothing_is_asked_for_while_an_evacuation_is_open_and_the_hold_is_kept(ledger: Clocked) -> None:
    begin(ledger, Evacuation("e-1", frozenset({"h12"})), "a new board")
    said = message(hold=2, most_moves=4)
    record = ticked(ledger, said, 3)
    assert ledger.history() == []
    assert (record.over, "an evacuation needs the slots" in record.reason) == (3, True)
    while ledger.open_jobs():
        ledger.turn("e-1", 0.001, again=True)
        take_step(ledger, BELL, "e-1")
        end(ledger)
    before = len(ledger.history())
    assert ticked(ledger, said).moves == len(ledger.history()) - before == 4


def test_nothing_is_asked_for_while_moves_of_an_earlier_tick_are_under_way(ledger: Clocked) -> None:
    said = message(hold=1, most_moves=4)
    ticked(ledger, said)
    record = ticked(ledger, said)
    assert "moves of an earlier tick are under way" in record.reason
    assert len(ledger.history()) == 4
    while end(ledger):
        pass
    ticked(ledger, said)
    assert len(ledger.history()) == 8


def test_what_is_still_queued_gives_way_to_an_evacuation_and_nothing_else_does(ledger: Clocked) -> None:
    ticked(ledger, message(hold=1, most_moves=40))
    queued = {each.migration for each in under_way(ledger) if each.state == "queued"}
    admitted = {each.migration for each in under_way(ledger)} - queued
    assert queued
    assert admitted
    user = Submission("m-user", "g05-00", "h06", "h07", 2 * GIB, {}, {})
    assert ledger.submit(user)[0] is Answer.OK
    begin(ledger, Evacuation("e-1", frozenset({"h12"})), "a new board")
    take_step(ledger, BELL, "e-1")
    states = {each.migration: each.state for each in ledger.history(500)}
    assert {states[migration] for migration in queued} == {"cancelled"}
    assert "cancelled" not in {states[migration] for migration in admitted | {"m-user"}}


# --- no thrash --------------------------------------------------------------------------------------------------------


def test_a_skewed_fleet_is_evened_out_and_then_nothing_is_moved_though_loads_change(ledger: Clocked) -> None:
    said, chance = message(cool_down=600), random.Random(7)
    policy = said.terms
    assert imbalance_of(ledger.cluster()) > 2 * policy.threshold
    ticks = 0
    while imbalance_of(ledger.cluster()) > policy.threshold or under_way(ledger):
        ticks += 1
        assert ticks < 60
        ticked(ledger, said)
        end(ledger)
    asked = ledger.history(10_000)
    moved = [each.guest for each in asked]
    assert len(moved) == len(set(moved))
    for count in range(100):
        if count >= 50:
            jitter(ledger, chance)
        record = ticked(ledger, said)
        assert "not above the threshold" in record.reason
    assert len(ledger.history(10_000)) == len(asked)
    print(f"{len(asked)} moves in {ticks} ticks, imbalance {imbalance_of(ledger.cluster()):.3f}")
