"""Rebalancing and restoring as jobs on a real Redis: begun in one instant, giving way, ended with reasons.

Movers are scripted here: a move ends when the test says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from config.errors import NewerReleaseError, RefusedError
from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.evacuate import begin
from tasks.jobs import JobRecord, Kind, Order, read_job
from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import Fate, State, Step
from tasks.planning.moves import Move
from tasks.planning.rebalancing import Policy
from tasks.planning.relocating import Relocation
from tasks.rebalance import begin_moves, planned
from tasks.records import Kept, LocalGuest, Submission
from tasks.restore import begin_return, open_hosts
from tasks.restore import planned as planned_return
from tasks.steps import cancel, snapshot, take_step
from tests.integration.console import GIB, OFFERED
from tests.integration.scripted_fleet import BELL, beat, end, lived, stepped
from tests.redis_server import RedisServer
from workers.pairing.contract import Side
from workers.wire import WIRE

GUESTS = {"alpha": ("a1", "a2", "a3"), "beta": ("b1",), "gamma": (), "delta": ()}


@pytest.fixture
def ledger(own_redis_server: RedisServer) -> Iterator[Ledger]:
    redis = RedisSettings.model_validate({"url": own_redis_server.url})
    with closing(Ledger(Settings(redis=redis, worker=WorkerSettings(lease=3600)))) as made:
        beat(made, GUESTS)
        yield made


def rebalancing(ledger: Ledger, *moves: str, **more: float) -> str:
    """Each "guest source destination"."""
    wanted = [Move(*move.split()) for move in moves]
    job = begin_moves(ledger, BELL, wanted, (0.4, 0.1), "it is uneven", **more)  # type: ignore[arg-type]
    assert job is not None
    return job


def evacuated(ledger: Ledger, *hosts: str, job: str = "e-1") -> JobRecord:
    begin(ledger, Evacuation(job, frozenset(hosts)), "a new board")
    return lived(ledger, job)


def where(ledger: Ledger) -> dict[str, str]:
    return {name: guest.host for name, guest in ledger.fleet().guests.items()}


def under_way(ledger: Ledger) -> Sequence[str]:
    return [each.guest for each in ledger.open() if not each.ended]


# --- rebalancing ------------------------------------------------------------------------------------------------------


def test_a_plan_is_carried_to_its_end_and_the_record_says_what_it_was_for(ledger: Ledger) -> None:
    plan = planned(ledger, Policy())
    job = begin_moves(ledger, BELL, plan.moves, (plan.imbalance_before, plan.imbalance_after), "it is uneven")
    assert job is not None
    record = lived(ledger, job)
    assert (record.kind, record.state, record.message) == (Kind.REBALANCE, State.COMPLETED, "it is uneven")
    assert record.order.imbalance == (plan.imbalance_before, plan.imbalance_after)
    assert {name: each.host for name, each in record.guests.items()} == {
        move.guest: move.destination for move in plan.moves
    }
    assert planned(ledger, Policy()).imbalance_before == pytest.approx(plan.imbalance_after)
    assert (Kept.CORDON, "alpha") not in ledger.fleet().pins
    assert ledger.open_jobs() == []


def test_nothing_to_move_is_no_job(ledger: Ledger) -> None:
    assert begin_moves(ledger, BELL, [], (0.0, 0.0), "") is None
    assert ledger.jobs() == []


def test_steps_that_are_taken_again_ask_for_nothing_twice(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", "a2 alpha delta")
    first = snapshot(ledger, job)
    assert len(first.moves) == 2
    assert stepped(ledger, job).moves == first.moves
    take_step(ledger, BELL, job)  # not its turn
    assert snapshot(ledger, job).moves == first.moves


def test_two_that_begin_at_once_are_one(ledger: Ledger) -> None:
    orders = [
        Order(Kind.REBALANCE, Relocation(f"r-{number}", (Move("a1", "alpha", "gamma"),)), "") for number in range(4)
    ]
    with ThreadPoolExecutor(len(orders)) as pool:
        answers = [answer for answer, _ in pool.map(ledger.begin_job, orders)]
    assert sorted(answers) == [Answer.BUSY] * 3 + [Answer.OK]
    assert len(ledger.open_jobs()) == 1


def test_none_begins_beside_an_evacuation_though_it_was_begun_in_the_same_instant(ledger: Ledger) -> None:
    begin(ledger, Evacuation("e-1", frozenset({"alpha"})), "a new board")
    with pytest.raises(RefusedError, match="e-1 empties hosts and needs the slots"):
        rebalancing(ledger, "b1 beta gamma")
    order = Order(Kind.REBALANCE, Relocation("r-1", (Move("b1", "beta", "gamma"),)), "")
    assert ledger.begin_job(order) == (Answer.BUSY, "e-1")


def test_it_gives_way_to_an_evacuation_and_says_so_for_each_guest(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", "a2 alpha delta", "a3 alpha gamma")
    assert sorted(under_way(ledger)) == ["a1", "a2"]  # alpha has one slot: one of them is queued, a3 not asked for
    (moving,) = [each.guest for each in ledger.open() if each.epoch is not None]
    begin(ledger, Evacuation("e-1", frozenset({"beta"})), "a new board")
    late = Submission("m-late", "a3", "alpha", "gamma", GIB, {}, {}, job=job)
    assert ledger.submit(late)[0] is Answer.ENDED
    record = stepped(ledger, job)
    assert (record.state, under_way(ledger)) == (State.ENDING, [moving])
    assert end(ledger, "completed") == [moving]
    record = stepped(ledger, job)
    assert (record.state, record.reason) == (
        State.PARTIAL,
        "it gave way to e-1, which needs the slots; 2 of 3 guests stay",
    )
    assert record.guests["a3"].reason == "evacuating: e-1 needs the slots"
    assert lived(ledger, "e-1").state is State.COMPLETED
    assert sorted(where(ledger).values()).count("alpha") == 2


def test_a_move_that_fails_is_tried_on_the_same_host_until_it_is_given_up(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma")
    tried = []
    for _ in range(3):
        stepped(ledger, job)
        tried += [each.destination.host for each in ledger.open() if not each.ended]
        assert end(ledger, "failed", "peer-lost") == ["a1"]
    record = stepped(ledger, job)
    assert tried == ["gamma"] * 3
    assert (record.state, record.guests["a1"].reason) == (State.FAILED, "peer-lost")


def test_hosts_too_far_apart_are_refused_by_the_plan_and_cost_the_guest_no_attempt(ledger: Ledger) -> None:
    for side in Side:
        ledger.heartbeat("alpha", side, OFFERED | {"wire": str(WIRE)}, [], [LocalGuest("a1", GIB, 0)])
        ledger.heartbeat("gamma", side, OFFERED | {"wire": str(WIRE + 2)}, [], [])
    job = rebalancing(ledger, "a1 alpha gamma")
    record = stepped(ledger, job)
    assert (record.state, ledger.moves_of(record)) == (State.FAILED, [])
    assert (record.guests["a1"].fate, record.guests["a1"].attempts) == (Fate.REFUSED, 0)
    assert record.guests["a1"].reason.startswith(f"version: alpha speaks wire version {WIRE}, gamma {WIRE + 2}")


def test_what_admission_refuses_for_good_is_an_attempt_that_failed_and_not_asked_for_without_end(
    ledger: Ledger,
) -> None:
    for side in Side:
        ledger.heartbeat("alpha", side, OFFERED, [], [LocalGuest("a1", GIB, 0)])
        ledger.heartbeat("gamma", side, OFFERED | {"capabilities": "[]"}, [], [])
    job = rebalancing(ledger, "a1 alpha gamma")
    for _ in range(3):
        record = stepped(ledger, job)
    refused = [each.reason for each in ledger.moves_of(record)]
    assert (record.state, refused) == (State.FAILED, ["capability"] * 3)
    assert record.guests["a1"].reason == "capability"
    assert under_way(ledger) == []


def test_a_cordon_that_comes_meanwhile_is_obeyed_and_said(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", "a2 alpha delta", most_at_once=1)
    ledger.pin(Kept.CORDON, "delta", "a leak")
    record = lived(ledger, job)
    assert (record.state, record.guests["a1"].fate) == (State.PARTIAL, Fate.MOVED)
    assert record.guests["a2"].reason == "cordoned: delta is cordoned: a leak"


def test_its_deadline_ends_it(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", deadline=-1.0)
    record = snapshot(ledger, job)
    assert (record.state, record.reason) == (State.FAILED, "its deadline has passed; 1 of 1 guests stay")


def test_no_more_at_once_than_asked_for(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", "a2 alpha delta", "b1 beta gamma", most_at_once=1)
    for _ in range(3):
        stepped(ledger, job)
        assert len(under_way(ledger)) == 1
        end(ledger, "completed")
    assert stepped(ledger, job).state is State.COMPLETED


def test_a_cancelled_one_ends_what_waits(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma", "a2 alpha delta")
    assert cancel(ledger, BELL, job) in {"ending", "cancelled"}
    assert stepped(ledger, job).state is State.CANCELLED
    assert under_way(ledger) == []
    assert where(ledger)["a1"] == "alpha"


def test_no_end_is_believed_while_one_of_its_moves_is_under_way(ledger: Ledger) -> None:
    job = rebalancing(ledger, "a1 alpha gamma")
    assert ledger.note_job(job, Step(State.COMPLETED, "so it seemed"))[0] is Answer.OCCUPIED
    assert snapshot(ledger, job).state is State.RUNNING


# --- giving hosts back ------------------------------------------------------------------------------------------------


def test_those_who_left_come_back_to_the_host_that_each_had_left(ledger: Ledger) -> None:
    before = where(ledger)
    assert evacuated(ledger, "alpha", "beta").state is State.COMPLETED
    plan = planned_return(ledger, ["alpha", "beta"])
    assert {move.guest: move.destination for move in plan.moves} == before
    job = begin_return(ledger, BELL, plan, "the board is new")
    assert job is not None
    assert ledger.fleet().pins == {}
    record = lived(ledger, job)
    assert (record.kind, record.state, record.what) == (Kind.RESTORE, State.COMPLETED, "restore alpha, beta")
    assert where(ledger) == before
    assert planned_return(ledger, ["alpha"]).wanted == ()


def test_only_those_of_the_hosts_that_are_named_come_back(ledger: Ledger) -> None:
    evacuated(ledger, "alpha", "beta")
    assert [move.guest for move in planned_return(ledger, ["beta"]).moves] == ["b1"]


def test_one_maintenance_may_be_several_evacuations_and_an_older_one_is_none_of_it(ledger: Ledger) -> None:
    evacuated(ledger, "beta", job="e-old")
    open_hosts(ledger, ["beta"])
    home = where(ledger)["b1"]
    beat(ledger, {"beta": ("b2", "b3")})
    begin(ledger, Evacuation("e-1", frozenset({"beta"}), most_at_once=1), "a new board")
    stepped(ledger, "e-1")
    end(ledger, "completed")
    cancel(ledger, BELL, "e-1")
    assert stepped(ledger, "e-1").ended
    assert evacuated(ledger, "beta", job="e-2").state is State.COMPLETED
    assert {move.guest for move in planned_return(ledger, ["beta"]).moves} == {"b2", "b3"}
    open_hosts(ledger, ["beta"])  # from now on only the latest one is known to belong to it
    assert len(planned_return(ledger, ["beta"]).moves) == 1
    assert where(ledger)["b1"] == home


def test_who_cannot_come_back_belongs_to_the_job_with_the_reason(ledger: Ledger) -> None:
    evacuated(ledger, "alpha")
    ledger.pin(Kept.GUEST, "a2", "a licence")
    plan = planned_return(ledger, ["alpha"])
    assert [(move.guest, refusal.rule) for move, refusal in plan.refused] == [("a2", "pinned")]
    job = begin_return(ledger, BELL, plan, "")
    record = lived(ledger, str(job))
    assert (record.state, record.guests["a2"].fate) == (State.PARTIAL, Fate.REFUSED)
    assert "a licence" in record.guests["a2"].reason


def test_an_evacuation_that_is_under_way_has_to_be_ended_first(ledger: Ledger) -> None:
    begin(ledger, Evacuation("e-1", frozenset({"alpha"})), "a new board")
    for refused in (lambda: planned_return(ledger, ["alpha"]), lambda: open_hosts(ledger, ["alpha"])):
        with pytest.raises(RefusedError, match="droveway cancel e-1") as caught:
            refused()
        assert caught.value.reason == "evacuating"
    assert open_hosts(ledger, ["beta"]) == []
    order = Order(Kind.RESTORE, Relocation("b-1", (Move("a1", "beta", "alpha"),), frozenset({"alpha"})), "")
    assert ledger.begin_job(order) == (Answer.BUSY, "e-1")
    assert (Kept.CORDON, "alpha") in ledger.fleet().pins


def test_a_second_restore_of_a_host_is_refused_while_the_first_is_under_way(ledger: Ledger) -> None:
    evacuated(ledger, "alpha")
    plan = planned_return(ledger, ["alpha"])
    job = begin_return(ledger, BELL, plan, "")
    with pytest.raises(RefusedError, match=f"{job} brings guests back"):
        begin_return(ledger, BELL, plan, "")


def test_an_evacuation_may_begin_while_guests_are_still_brought_back_and_the_host_ends_empty(ledger: Ledger) -> None:
    evacuated(ledger, "alpha")
    job = str(begin_return(ledger, BELL, planned_return(ledger, ["alpha"]), ""))
    end(ledger, "completed")
    begin(ledger, Evacuation("e-2", frozenset({"alpha"})), "it is broken after all")
    for _ in range(6):
        stepped(ledger, job)
        stepped(ledger, "e-2")
        end(ledger, "completed")
    assert "cordoned" in " ".join(each.reason for each in stepped(ledger, job).guests.values())
    assert stepped(ledger, "e-2").state is State.COMPLETED
    assert "alpha" not in where(ledger).values()


def test_a_host_that_is_switched_off_can_be_opened_and_nobody_brought_back_to_it(ledger: Ledger) -> None:
    evacuated(ledger, "alpha")
    plan = planned_return(ledger, ["alpha"])
    with ledger._client.pipeline() as pipe:
        pipe.delete("droveway:host:alpha").execute()
    ledger.prune()
    with pytest.raises(RefusedError, match="start `droveway worker` there"):
        begin_return(ledger, BELL, plan, "")
    assert (Kept.CORDON, "alpha") in ledger.fleet().pins
    assert open_hosts(ledger, ["alpha"]) == ["alpha"]


# --- a plan of before -------------------------------------------------------------------------------------------------


def test_an_evacuation_follows_a_plan_of_before_and_says_where_it_could_not(ledger: Ledger) -> None:
    ledger.pin(Kept.CORDON, "delta", "a leak")
    planned_moves = {"a1": "beta", "a2": "delta", "a3": "gamma"}
    begin(ledger, Evacuation("e-1", frozenset({"alpha"}), planned=planned_moves), "a new board")
    record = lived(ledger, "e-1")
    assert record.state is State.COMPLETED
    assert (where(ledger)["a1"], where(ledger)["a3"]) == ("beta", "gamma")
    assert "the plan said delta, which was refused then" in record.guests["a2"].reason


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_of_before_there_were_other_kinds_is_an_evacuation(ledger: Ledger) -> None:
    request = {"max_parallel": 0, "attempts": 3, "reason": "a new board"}
    fields = {"hosts": '["alpha"]', "request": json.dumps(request), "deadline": "", "created": "1", "state": "running"}
    standing = {"fate": "moved", "reason": "it is on beta", "host": "beta", "attempts": 1}
    with ledger._client.pipeline() as pipe:
        pipe.hset("droveway:job:e-0", mapping=fields | {"reason": ""})
        pipe.hset("droveway:job:e-0:guests", "g9", json.dumps(standing))
        pipe.sadd("droveway:jobs:open", "e-0").zadd("droveway:jobs", {"e-0": 1}).execute()
    record = snapshot(ledger, "e-0")
    assert (record.kind, record.guests["g9"].home) == (Kind.EVACUATION, "")
    with pytest.raises(RefusedError, match="e-0 empties hosts"):
        rebalancing(ledger, "b1 beta gamma")
    assert ledger.note_job("e-0", Step(State.COMPLETED, "so it seemed")) == (Answer.OCCUPIED, "alpha")
    assert lived(ledger, "e-0").state is State.COMPLETED


def test_a_job_is_read_as_it_was_begun(ledger: Ledger) -> None:
    asked = Relocation("r-1", (Move("a1", "alpha", "beta"),), frozenset(), 2, 5, 1_700_000_000.5)
    order = Order(Kind.REBALANCE, asked, "it is uneven", (0.5, 0.25))
    assert ledger.begin_job(order) == (Answer.OK, "")
    assert ledger.begin_job(order) == (Answer.EXISTS, "")
    assert snapshot(ledger, "r-1").order == order
    assert snapshot(ledger, "r-1").to_json()["imbalance_before"] == 0.5
    assert [ledger.open_jobs(kind) for kind in Kind] == [[], ["r-1"], []]
    fields = {b"hosts": b"[]", b"request": b"{}", b"kind": b"bogus"}
    with pytest.raises(NewerReleaseError, match="bogus"):
        read_job("r-2", fields, {}, [])
