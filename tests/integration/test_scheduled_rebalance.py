"""Policies on a real Redis: a due moment is judged once, whoever asks how often; and a fleet that is even stays still.

Movers are scripted: a move ends when the test says so. The server's clock is put forward, not waited for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier

import pytest

from config.settings import RebalanceSettings, RedisSettings, Settings, WorkerSettings
from tasks.evacuate import begin
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import Rebalance
from tasks.planning.cluster import Cluster
from tasks.planning.evacuating import Evacuation
from tasks.planning.rebalancing import imbalance_of
from tasks.records import LocalGuest, MigrationRecord, PolicyRecord, Priority
from tasks.scheduled import tick
from tasks.steps import snapshot
from tests.integration.console import GIB, OFFERED
from tests.integration.scripted_fleet import BELL, end, stepped
from tests.redis_server import RedisServer
from workers.pairing.contract import Side

DAYS = 86_400.0
HOSTS = tuple(f"h{number:02}" for number in range(1, 13))
OFFERS = OFFERED | {"memory": str(64 * GIB), "cpus": "32", "slots:source": "2", "slots:destination": "2"}


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


def advanced(ledger: Ledger) -> None:
    """Every job takes a step, and what is admitted ends well."""
    for job in ledger.open_jobs():
        stepped(ledger, job)
    end(ledger, "completed")


def at_rest(ledger: Ledger) -> None:
    """No job is under way any more."""
    while ledger.open_jobs():
        advanced(ledger)


# --- once -------------------------------------------------------------------------------------------------------------


def test_of_three_at_the_same_moment_one_judges_and_acts(
    ledger: Clocked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said, all_have_looked = message(hold=1, most_moves=4), Barrier(3)

    def look(cluster: Cluster) -> float:
        all_have_looked.wait(30)
        return imbalance_of(cluster)

    monkeypatch.setattr("tasks.scheduled.imbalance_of", look)
    caplog.set_level("INFO", "droveway.rebalance")
    with ThreadPoolExecutor(3) as threads:
        for _ in threads.map(lambda _: tick(ledger, BELL, said), range(3)):
            pass
    assert len([line for line in caplog.messages if "for 1 ticks" in line]) == 1
    record = ledger.policies(["nightly"])["nightly"]
    (job,) = ledger.jobs()
    assert (job.job, job.order.policy, len(job.guests)) == (record.job, "nightly", 4)
    assert {each.priority for each in ledger.history()} == {Priority.SCHEDULED}
    assert f"{job.job} moves 4 guests" in record.reason


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
    for number in (0, 1, 2):
        ledger.ahead += exact + 60 * number + seconds - ledger.now()
        tick(ledger, BELL, said)
        ledger.ahead -= seconds
        tick(ledger, BELL, said)
        record = ledger.policies(["nightly"])["nightly"]
        assert (record.due, record.over) == (exact + 60 * number, number + 1)


def test_a_judgement_that_was_overtaken_is_made_anew_on_what_is_there(ledger: Clocked) -> None:
    stale = ledger.policies(["nightly"])["nightly"]
    first = ticked(ledger, message(hold=10))
    assert ledger.judged("nightly", stale, first.due + 60, 1, 0.5, "stale") is Answer.TAKEN
    assert ledger.policies(["nightly"])["nightly"] == first


def test_it_acts_only_once_the_threshold_was_held(ledger: Clocked) -> None:
    said = message(hold=3, most_moves=4)
    assert [ticked(ledger, said).over for _ in range(2)] == [1, 2]
    assert ledger.jobs() == []
    record = ticked(ledger, said)
    assert (record.over, [each.job for each in ledger.jobs()]) == (0, [record.job])
    assert record.acted is not None


def test_a_worker_that_dies_before_it_asks_has_asked_for_nothing_and_the_next_tick_acts(
    ledger: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = message(hold=3, most_moves=4)
    ticked(ledger, said, 2)

    def dies(*_: object, **__: object) -> str:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("tasks.scheduled.begin_moves", dies)
        with pytest.raises(MemoryError):
            ticked(ledger, said)
    tick(ledger, BELL, said)  # the message again: that moment was judged
    assert ledger.jobs() == []
    assert ticked(ledger, said).job in {each.job for each in ledger.jobs()}


def test_one_that_is_refused_because_a_job_was_begun_meanwhile_keeps_its_hold(
    ledger: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(cluster: Cluster) -> float:
        begin(ledger, Evacuation("e-1", frozenset({"h12"})), "a new board")
        return imbalance_of(cluster)

    with monkeypatch.context() as patched:
        patched.setattr("tasks.scheduled.imbalance_of", look)
        record = ticked(ledger, message(hold=1))
    assert (record.over, record.job, "e-1 empties hosts" in record.reason) == (1, None, True)


# --- not now ----------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_out_of_the_window_and_the_hold_is_kept_until_it_opens(ledger: Clocked) -> None:
    ledger.ahead += 12 * 3600 - ledger.now() % DAYS + DAYS + 20  # noon
    said = message(hold=3, most_moves=4, windows=["12:10-12:20"])
    record = ticked(ledger, said, 8)
    assert ledger.jobs() == []
    assert (record.over, "no maintenance window is open" in record.reason) == (8, True)
    assert ticked(ledger, said, 2).job is not None


def test_a_beat_that_is_ahead_finds_the_window_open_that_opens_with_the_due_moment(ledger: Clocked) -> None:
    ledger.ahead += 22 * 3600 - ledger.now() % DAYS + DAYS - 0.5
    tick(ledger, BELL, message(cron="0 22 * * *", windows=["22:00-05:00"], hold=1, most_moves=4))
    (job,) = ledger.jobs()
    assert (job.asked.deadline or 0) > ledger.now() + 60


def test_what_a_policy_asks_for_does_not_outlast_its_window(ledger: Clocked) -> None:
    ledger.ahead += 12 * 3600 - ledger.now() % DAYS + DAYS + 20  # noon
    ticked(ledger, message(hold=1, windows=["12:00-12:05"]))
    closes = ledger.now() // DAYS * DAYS + 12 * 3600 + 300
    (job,) = ledger.jobs()
    assert job.asked.deadline == pytest.approx(closes, abs=1)
    with ledger._client.pipeline() as pipe:
        for each in under_way(ledger):
            pipe.hget(f"droveway:migration:{each.migration}", "expires")
        assert {int(each) for each in pipe.execute()} == {round((job.asked.deadline or 0) * 1000)}
    ledger.ahead += 300
    assert stepped(ledger, job.job).reason.startswith("its deadline has passed")


def test_nothing_is_asked_for_while_an_evacuation_is_open_and_the_hold_is_kept(ledger: Clocked) -> None:
    begin(ledger, Evacuation("e-1", frozenset({"h12"})), "a new board")
    said = message(hold=2, most_moves=4)
    record = ticked(ledger, said, 3)
    assert (record.over, "an evacuation or a restore needs the slots" in record.reason) == (3, True)
    at_rest(ledger)
    assert [each.job for each in ledger.jobs()] == ["e-1"]
    assert ticked(ledger, said).job in {each.job for each in ledger.jobs()}


def test_nothing_is_asked_for_while_moves_of_an_earlier_tick_are_under_way(ledger: Clocked) -> None:
    said = message(hold=1, most_moves=4)
    first = ticked(ledger, said)
    record = ticked(ledger, said)
    assert "4 moves of an earlier rebalancing are under way" in record.reason
    assert (record.over, record.job, len(ledger.jobs())) == (1, first.job, 1)
    at_rest(ledger)
    assert ticked(ledger, said).job != first.job
    assert len(ledger.jobs()) == 2


def test_it_gives_way_to_an_evacuation_that_begins_later(ledger: Clocked) -> None:
    job = ticked(ledger, message(hold=1)).job
    assert job is not None
    queued = {each.migration for each in under_way(ledger) if each.state == "queued"}
    admitted = {each.migration for each in under_way(ledger)} - queued
    assert queued
    assert admitted
    begin(ledger, Evacuation("e-1", frozenset({"h12"})), "a new board")
    stepped(ledger, job)
    states = {each.migration: each.state for each in ledger.history(500)}
    assert {states[migration] for migration in queued} == {"cancelled"}
    assert "cancelled" not in {states[migration] for migration in admitted}
    at_rest(ledger)
    assert "gave way to e-1" in snapshot(ledger, job).reason


# --- no thrash --------------------------------------------------------------------------------------------------------


def test_a_skewed_fleet_is_evened_out_and_then_nothing_is_moved_though_loads_change(ledger: Clocked) -> None:
    said, chance = message(cool_down=600), random.Random(7)
    policy = said.terms
    assert imbalance_of(ledger.cluster()) > 2 * policy.threshold
    ticks = 0
    while imbalance_of(ledger.cluster()) > policy.threshold or ledger.open_jobs():
        ticks += 1
        assert ticks < 60
        ticked(ledger, said)
        advanced(ledger)
    jobs = ledger.jobs()
    asked = ledger.history(10_000)
    moved = [each.guest for each in asked]
    assert len(moved) == len(set(moved))
    for count in range(100):
        if count >= 50:
            jitter(ledger, chance)
        record = ticked(ledger, said)
        assert "not above the threshold" in record.reason
    assert (len(ledger.history(10_000)), ledger.jobs()) == (len(asked), jobs)
    print(f"{len(asked)} moves in {ticks} ticks, imbalance {imbalance_of(ledger.cluster()):.3f}")
