"""An evacuation's record and its steps on a real Redis: begun in one instant, taken up by anybody, ended with a reason.

Movers are scripted here: a move ends when the test says so. With real guests: test_fleet_evacuation.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from time import sleep

import pytest

from config.errors import NewerReleaseError, RefusedError
from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.evacuate import begin
from tasks.jobs import JobRecord
from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import Solver
from tasks.planning.job import Fate, State, Step
from tasks.records import Fleet, Kept, LocalGuest, Submission
from tasks.steps import _submit, cancel, snapshot, take_step, take_steps
from tests.integration.console import GIB, OFFERED
from tests.integration.scripted_fleet import BELL, beat, end, stepped
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

HOSTS = {"alpha": ("a1", "a2", "a3"), "beta": ("b1",), "gamma": (), "delta": ()}


@pytest.fixture
def ledger(own_redis_server: RedisServer) -> Iterator[Ledger]:
    redis = RedisSettings.model_validate({"url": own_redis_server.url})
    with closing(Ledger(Settings(redis=redis, worker=WorkerSettings(lease=3600)))) as made:
        beat(made, HOSTS)
        yield made


def started(ledger: Ledger, *hosts: str, job: str = "e-1", most_at_once: int = 0) -> str:
    begin(ledger, Evacuation(job, frozenset(hosts), most_at_once=most_at_once), "a new board")
    return job


def test_it_runs_to_its_end_and_the_hosts_are_empty_and_closed(ledger: Ledger) -> None:
    started(ledger, "alpha", "beta")
    assert {name for kept, name in ledger.fleet().pins if kept is Kept.CORDON} == {"alpha", "beta"}
    for _ in range(6):
        stepped(ledger, "e-1")
        end(ledger, "completed")
    record = stepped(ledger, "e-1")
    assert (record.state, record.reason) == (State.COMPLETED, "all 4 guests have left")
    assert {each.fate for each in record.guests.values()} == {Fate.MOVED}
    assert {guest.host for guest in ledger.fleet().guests.values()} == {"gamma", "delta"}
    assert ledger.open_jobs() == []
    assert len(record.moves) == 4


def test_a_second_evacuation_of_a_host_that_is_being_emptied_is_refused_and_closes_nothing(ledger: Ledger) -> None:
    started(ledger, "alpha")
    with pytest.raises(RefusedError, match="e-1 empties one of these hosts"):
        started(ledger, "beta", "alpha", job="e-2")
    assert (Kept.CORDON, "beta") not in ledger.fleet().pins
    assert ledger.find_job("e-2") is None
    with pytest.raises(RefusedError, match="No host omega"):
        started(ledger, "omega", job="e-3")


def test_steps_that_are_taken_again_ask_for_nothing_twice(ledger: Ledger) -> None:
    started(ledger, "alpha")
    first = stepped(ledger, "e-1")
    assert stepped(ledger, "e-1").moves == first.moves
    take_step(ledger, BELL, "e-1")  # not its turn
    assert snapshot(ledger, "e-1").moves == first.moves


def test_a_job_of_a_newer_release_is_left_to_its_workers_and_holds_up_no_other(
    own_redis_server: RedisServer, ledger: Ledger
) -> None:
    started(ledger, "alpha", job="e-new")
    started(ledger, "beta")
    with own_redis_server.client() as client:
        client.hset("droveway:job:e-new", "kind", "exchange")
        client.delete("droveway:job:e-1:turn", "droveway:job:e-new:turn")
    assert take_steps(ledger, BELL)
    assert snapshot(ledger, "e-1").moves
    with pytest.raises(NewerReleaseError, match=r"'exchange' is not a valid Kind.*Upgrade Droveway here"):
        snapshot(ledger, "e-new")
    assert [job.job for job in ledger.jobs()] == ["e-1"]
    with own_redis_server.client() as client:
        client.delete("droveway:job:e-1:turn", "droveway:job:e-new:turn")
        take_steps(ledger, BELL)
        assert client.exists("droveway:job:e-1:turn")
        assert not client.exists("droveway:job:e-new:turn"), "whoever cannot take the step takes no turn"


def test_a_move_that_redis_lost_and_a_host_wrote_back_is_an_attempt_again_once_it_has_failed(
    own_redis_server: RedisServer, ledger: Ledger
) -> None:
    started(ledger, "beta")
    with own_redis_server.client() as client:
        kept = {key: client.dump(key) for key in client.scan_iter()}
        stepped(ledger, "e-1")
        (lost,) = ledger.open()
        client.flushall()
        for key, value in kept.items():
            client.restore(key, 0, value)
    assert lost.epoch is not None
    made = lost.migration, lost.guest, lost.epoch
    ends = ((side, lost.side(side).host, lost.side(side.peer).host) for side in Side)
    jobs = [Job(*made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends]
    for job in jobs:
        guests = [LocalGuest("b1", GIB, lost.epoch)] if job.side is Side.SOURCE else []
        ledger.heartbeat(job.host, job.side, OFFERED, [job], guests)
    assert stepped(ledger, "e-1").guests["b1"].fate is Fate.MOVING
    for job in jobs:
        ledger.finish(job.ticket, Status(outcome="failed", reason="peer-lost"))
    stepped(ledger, "e-1")
    assert lost.migration in snapshot(ledger, "e-1").moves
    stepped(ledger, "e-1")
    (again,) = ledger.open()
    assert again.migration != lost.migration
    assert again.destination.host != lost.destination.host
    end(ledger, "completed")
    assert stepped(ledger, "e-1").state is State.COMPLETED


def test_a_guest_whose_moves_fail_goes_elsewhere_and_is_given_up_after_three(ledger: Ledger) -> None:
    started(ledger, "beta")
    tried = []
    for _ in range(3):
        stepped(ledger, "e-1")
        tried += [each.destination.host for each in ledger.open() if not each.ended]
        assert end(ledger, "failed", "peer-lost") == ["b1"]
    record = stepped(ledger, "e-1")
    assert len(set(tried)) == 3
    assert (record.state, record.reason) == (State.FAILED, "nothing more can be moved; 1 of 1 guests stay")
    assert (record.guests["b1"].fate, record.guests["b1"].reason) == (Fate.FAILED, "peer-lost")


def test_a_cancelled_one_asks_for_nothing_more_ends_what_waits_and_may_be_begun_again(ledger: Ledger) -> None:
    started(ledger, "alpha")
    stepped(ledger, "e-1")
    assert cancel(ledger, BELL, "e-1") in {"ending", "cancelled"}
    record = stepped(ledger, "e-1")
    assert record.state is State.CANCELLED
    assert [each for each in ledger.open() if not each.ended] == []
    late = Submission("m-late", "a1", "alpha", "gamma", GIB, {}, {}, job="e-1")
    assert ledger.submit(late)[0] is Answer.ENDED
    with pytest.raises(RefusedError, match="cancelled already"):
        cancel(ledger, BELL, "e-1")
    started(ledger, "alpha", job="e-2")
    for _ in range(6):
        stepped(ledger, "e-2")
        end(ledger, "completed")
    assert stepped(ledger, "e-2").state is State.COMPLETED


def test_no_more_move_at_once_than_asked_for(ledger: Ledger) -> None:
    started(ledger, "alpha", "beta", most_at_once=1)
    for _ in range(4):
        stepped(ledger, "e-1")
        assert len([each for each in ledger.open() if not each.ended]) == 1
        end(ledger, "completed")
    assert stepped(ledger, "e-1").state is State.COMPLETED


def test_completed_is_not_believed_while_somebody_is_there(ledger: Ledger) -> None:
    started(ledger, "alpha")
    assert ledger.note_job("e-1", Step(State.COMPLETED, "so it seemed")) == (Answer.OCCUPIED, "alpha")
    assert snapshot(ledger, "e-1").state is State.RUNNING


def test_completed_is_not_believed_while_somebody_waits_to_come(ledger: Ledger) -> None:
    started(ledger, "gamma")
    ask = Submission("m-1", "a1", "alpha", "gamma", GIB, {}, {})
    assert ledger.submit(ask)[0] is Answer.OK
    assert ledger.note_job("e-1", Step(State.COMPLETED, "")) == (Answer.OCCUPIED, "gamma")
    ledger.admit()
    assert ledger.note_job("e-1", Step(State.COMPLETED, ""))[0] is Answer.OK


def test_what_has_ended_stays_as_it_ended(ledger: Ledger) -> None:
    started(ledger, "gamma")
    assert stepped(ledger, "e-1").state is State.COMPLETED
    assert ledger.note_job("e-1", Step(State.FAILED, "late"))[0] is Answer.ENDED
    assert (snapshot(ledger, "e-1").state, snapshot(ledger, "e-1").reason) == (State.COMPLETED, "there was no guest")


def test_a_cordon_that_somebody_set_before_keeps_its_reason(ledger: Ledger) -> None:
    ledger.pin(Kept.CORDON, "alpha", "a leak")
    started(ledger, "alpha")
    assert ledger.fleet().pins[Kept.CORDON, "alpha"].reason == "a leak"


def test_two_steps_at_once_do_not_ask_for_more_than_may_move_at_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(ledger, "alpha", most_at_once=1)

    def overtaken() -> None:
        """Another step is taken since this one has looked, by somebody who sees the fleet otherwise."""
        monkeypatch.undo()
        ledger.pin(Kept.GUEST, "a1", "a while")
        stepped(ledger, "e-1")
        ledger.unpin(Kept.GUEST, "a1")

    def late(ledger: Ledger, found: Step, fleet: Fleet, record: JobRecord) -> None:
        assert [ask.move.guest for ask in found.asks] == ["a1"]
        overtaken()
        _submit(ledger, found, fleet, record)

    monkeypatch.setattr("tasks.steps._submit", late)
    stepped(ledger, "e-1")
    assert [each.guest for each in ledger.open()] == ["a2"]
    assert end(ledger, "completed") == ["a2"]
    stepped(ledger, "e-1")
    assert [each.guest for each in ledger.open()] == ["a1"]


def test_past_its_deadline_nothing_is_begun_though_it_was_asked_for_before(
    own_redis_server: RedisServer, ledger: Ledger
) -> None:
    started(ledger, "alpha")
    stepped(ledger, "e-1")
    states = {each.guest: each.state for each in ledger.open()}
    assert sorted(states.values()) == ["queued", "setup"]  # alpha has one slot
    with own_redis_server.client() as client:
        client.hset("droveway:job:e-1", "deadline", round(ledger.now() * 1000) - 1)
    record = stepped(ledger, "e-1")
    assert (record.state, [each.state for each in ledger.open()]) == (State.ENDING, ["setup"])
    assert end(ledger, "completed") == [guest for guest, state in states.items() if state == "setup"]
    assert stepped(ledger, "e-1").state is State.PARTIAL


def test_a_deadline_that_has_passed_ends_it_with_what_was_done(ledger: Ledger) -> None:
    begin(ledger, replace(Evacuation("e-1", frozenset({"alpha"})), deadline=ledger.now() - 1), "late")
    record = stepped(ledger, "e-1")
    assert (record.state, record.reason) == (State.FAILED, "its deadline has passed; 3 of 3 guests stay")
    assert not record.moves


def test_no_end_is_believed_while_one_of_its_moves_is_under_way(ledger: Ledger) -> None:
    started(ledger, "alpha")
    (moving, _) = stepped(ledger, "e-1").moves
    assert ledger.note_job("e-1", Step(State.PARTIAL, "so it seemed"))[0] is Answer.OCCUPIED
    assert snapshot(ledger, "e-1").state is State.RUNNING
    assert ledger.find(moving) is not None


def test_what_waits_for_a_host_that_fell_silent_is_sent_elsewhere(ledger: Ledger) -> None:
    started(ledger, "alpha")
    stepped(ledger, "e-1")
    (queued,) = [each for each in ledger.open() if each.state == "queued"]
    silent = queued.destination.host
    ledger.resign(silent, Side.DESTINATION)
    stepped(ledger, "e-1")
    assert [each.state for each in [ledger.find(queued.migration)] if each] == ["cancelled"]
    stepped(ledger, "e-1")
    again = [each for each in ledger.open() if each.guest == queued.guest and not each.ended]
    assert [each.destination.host != silent for each in again] == [True]
    for _ in range(6):
        stepped(ledger, "e-1")
        end(ledger, "completed")
    record = stepped(ledger, "e-1")
    assert (record.state, silent in {each.host for each in record.guests.values()}) == (State.COMPLETED, False)


def test_who_took_long_lets_the_others_wait_longer(ledger: Ledger) -> None:
    assert ledger.turn("e-1", 0.001)
    assert ledger.turn("e-1", 60, again=True)
    assert not ledger.turn("e-1", 1)


def test_a_guest_is_sent_elsewhere_though_the_host_that_failed_it_never_says_so(ledger: Ledger) -> None:
    started(ledger, "beta")
    stepped(ledger, "e-1")
    (first,) = [each for each in ledger.open() if not each.ended]
    assert first.epoch is not None
    made = first.migration, first.guest, first.epoch
    ends = ((side, first.side(side).host, first.side(side.peer).host) for side in Side)
    source, destination = (Job(*made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends)
    for job in (source, destination):
        ledger.claim(job.ticket)
    ledger.finish(source.ticket, Status(outcome="failed", reason="peer-lost", message="it is gone"))
    record = ledger.find(first.migration)
    assert record is not None
    assert (record.ended, record.settled) == (True, False)
    stepped(ledger, "e-1")
    (second,) = [each for each in ledger.open() if not each.ended]
    assert second.destination.host != first.destination.host


def test_a_worker_without_the_solver_that_a_job_asks_for_plans_without_it_and_says_so_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin(ledger, Evacuation("e-9", frozenset({"alpha"}), solver=Solver.CP_SAT), "a new board")
    assert snapshot(ledger, "e-9").asked.solver is Solver.CP_SAT
    monkeypatch.setattr("tasks.steps._ortools", lambda: False)
    for _ in range(2):
        record = stepped(ledger, "e-9")
    assert Fate.MOVING in {each.fate for each in record.guests.values()}
    assert [each.message for each in caplog.records if "OR-Tools" in each.message] == [
        "e-9 asks for the solver cp-sat; OR-Tools is not installed here, its steps are planned greedily"
    ]
    with ledger._client.pipeline() as pipe:
        (left,) = pipe.pttl("droveway:job:e-9:turn").execute()
    assert 0 < left < 10_000, "nobody waits longer for a step that was short"


def test_while_a_solver_looks_for_places_nobody_else_takes_a_step(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(ledger, Evacuation("e-9", frozenset({"alpha"}), solver=Solver.CP_SAT), "a new board")
    turns = []

    def solving(*_: object) -> Step:
        sleep(1.1)  # longer than the turn that every step has
        turns.append(ledger.turn("e-9", 1))
        return Step(State.RUNNING, "")

    monkeypatch.setattr("tasks.steps._step", solving)
    stepped(ledger, "e-9")
    assert turns == [False]


def test_of_a_host_that_died_for_good_it_ends_and_says_what_to_do_though_a_move_of_it_is_open(ledger: Ledger) -> None:
    started(ledger, "alpha")
    (first, *_) = stepped(ledger, "e-1").moves
    record = ledger.find(first)
    assert record is not None
    assert record.epoch is not None
    source = Job(first, record.guest, record.epoch, Side.SOURCE, "n", "alpha", record.destination.host, GIB, {}, {})
    assert ledger.claim(source.ticket) is Answer.OK
    for side in Side:
        ledger.resign("alpha", side)
    ledger._client.delete("droveway:host:alpha")
    assert stepped(ledger, "e-1").state is State.RUNNING, "it may only be starting again"
    for guest in ("a1", "a2", "a3"):
        ledger._client.hset(f"droveway:guest:{guest}", "seen", 1)
    ended = stepped(ledger, "e-1")
    assert (ended.state, ended.reason) == (State.FAILED, "nothing more can be moved; 3 of 3 guests stay")
    assert {each.reason.partition(":")[0] for each in ended.guests.values()} == {"silent"}
    assert "droveway reconcile --fenced alpha" in ended.guests["a1"].reason
    left = ledger.find(first)
    assert left is not None
    assert not left.ended, "only its source knows where the guest is"
    assert ledger.open_jobs() == []
