"""Who is admitted, who may send, and in which order, on a real Redis: fair among sources, never more than fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from pydantic import SecretStr

from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.bell import MessageBell
from tasks.ledger.ledger import Answer, Ledger
from tasks.reconcile import Action, examine, reconcile
from tasks.records import Kept, LocalGuest, Priority, Submission
from tasks.requests import snapshot
from tasks.steps import SILENCE
from tests.integration.console import GIB, OFFERED
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

SOURCES = ("alpha", "beta", "gamma")
GUESTS = 6
FREE = Action.FREE
ROOM = {"memory": str(64 * GIB)}


@pytest.fixture
def ledger(redis_server: RedisServer) -> Iterator[Ledger]:
    with redis_server.client() as client:
        client.delete(*client.keys("order:*") or ["order:none"])
    redis = RedisSettings(url=SecretStr(redis_server.url), prefix="order:")
    with closing(Ledger(Settings(redis=redis, worker=WorkerSettings(lease=3600)))) as made:
        for host in (*SOURCES, "target", "other"):
            beat(made, host)
        yield made


def beat(ledger: Ledger, host: str, **offered: str) -> None:
    guests = [LocalGuest(f"{host}-{number}", GIB, 0) for number in range(GUESTS) if host in SOURCES]
    for side in Side:
        ledger.heartbeat(host, side, OFFERED | ROOM | offered, [], guests)


def ask(
    ledger: Ledger, source: str, number: int, to: str = "target", priority: Priority = Priority.USER, memory: int = GIB
) -> str:
    migration = f"m-{source}-{number}"
    asked = Submission(migration, f"{source}-{number}", source, to, memory, {}, {}, priority=priority)
    assert ledger.submit(asked)[0] is Answer.OK
    return migration


def end(ledger: Ledger, migration: str, outcome: str = "completed") -> None:
    """Both sides end so, then whoever waits is looked at."""
    record = snapshot(ledger, migration)
    assert record.epoch is not None
    made = migration, record.guest, record.epoch
    ends = ((side, record.side(side).host, record.side(side.peer).host) for side in Side)
    jobs = [Job(*made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends]
    for job in jobs:
        ledger.claim(job.ticket)
    for job in jobs:
        ledger.finish(job.ticket, Status(outcome=outcome))
    ledger.admit()


def sending(ledger: Ledger) -> list[str]:
    return [each.migration for each in ledger.open() if each.granted is not None and not each.ended]


def prepared(ledger: Ledger) -> list[str]:
    return [each.migration for each in ledger.open() if each.admitted is not None and each.granted is None]


def test_sources_take_turns_at_a_destination_however_much_one_has_asked_for_before(ledger: Ledger) -> None:
    for source in SOURCES:
        for number in range(GUESTS):
            ask(ledger, source, number)
    ledger.admit()
    served: Counter[str] = Counter()
    for _ in range(len(SOURCES) * GUESTS):
        (now,) = sending(ledger)
        served[snapshot(ledger, now).source.host] += 1
        assert max(served.values()) - min(served[source] for source in SOURCES) <= 1
        end(ledger, now)
    assert sending(ledger) == []
    assert served == dict.fromkeys(SOURCES, GUESTS)


def test_turns_are_kept_when_the_next_one_has_prepared_already(ledger: Ledger) -> None:
    beat(ledger, "target", ahead="1")
    for source in SOURCES[:2]:
        beat(ledger, source, ahead="1")
        for number in range(3):
            ask(ledger, source, number)
    ledger.admit()
    order = []
    for _ in range(6):
        (now,) = sending(ledger)
        order.append(snapshot(ledger, now).source.host)
        assert len(prepared(ledger)) <= 1
        end(ledger, now)
    assert order == ["alpha", "beta"] * 3


def test_one_prepares_while_another_sends_and_may_send_the_moment_the_link_is_free(ledger: Ledger) -> None:
    for host in ("alpha", "target", "other"):
        beat(ledger, host, ahead="1")
    first, second, third = (ask(ledger, "alpha", number) for number in range(3))
    assert ledger.admit() == [first, second]
    assert (sending(ledger), prepared(ledger)) == ([first], [second])
    waits = snapshot(ledger, second)
    assert (waits.state, waits.waiting) == ("setup", "prepared; every source slot of alpha is taken")
    assert snapshot(ledger, third).waiting == "every source slot of alpha is taken"
    job = Job(second, "alpha-1", 1, Side.SOURCE, "n", "alpha", "target", GIB, {}, {})
    assert ledger.claim(job.ticket) is Answer.OK
    assert ledger.renew(job.ticket) == (Answer.OK, "")
    end(ledger, first)
    assert ledger.renew(job.ticket) == (Answer.OK, "go")
    assert snapshot(ledger, second).waiting is None
    host = ledger.fleet().hosts["alpha"]
    assert (host.busy[Side.SOURCE], host.admitted[Side.SOURCE]) == (1, 2)


def test_a_link_is_free_when_the_guest_is_there_though_its_source_still_lets_go_of_memory(ledger: Ledger) -> None:
    for host in ("alpha", "target"):
        beat(ledger, host, ahead="1")
    first, second = (ask(ledger, "alpha", number) for number in range(2))
    ledger.admit()
    jobs = [Job(first, "alpha-0", 1, side, "n", *ends, GIB, {}, {}) for side, ends in
            zip(Side, (("alpha", "target"), ("target", "alpha")), strict=True)]  # fmt: skip
    for job in jobs:
        ledger.claim(job.ticket)
    (destination,) = (job for job in jobs if job.side is Side.DESTINATION)
    ledger.finish(destination.ticket, Status(outcome="completed"))
    ledger.admit()
    assert sending(ledger) == [second]
    assert ledger.fleet().hosts["alpha"].admitted[Side.SOURCE] == 2


def test_who_has_the_higher_priority_goes_first_and_holds_up_nobody_whose_hosts_are_free(ledger: Ledger) -> None:
    slow = ask(ledger, "alpha", 0, priority=Priority.BACKGROUND)
    tick = ask(ledger, "alpha", 1, priority=Priority.SCHEDULED)
    beside = ask(ledger, "beta", 0, to="other", priority=Priority.BACKGROUND)
    user = ask(ledger, "alpha", 2)
    evacuation = ask(ledger, "alpha", 3, priority=Priority.EVACUATION)
    assert ledger.admit() == [evacuation, beside]
    for first, then in ((evacuation, user), (user, tick), (tick, slow)):
        end(ledger, first)
        assert then in sending(ledger)


def test_a_shared_link_is_never_given_out_beyond_what_it_carries_and_the_split_is_recorded(ledger: Ledger) -> None:
    rack = {"bandwidth": "1000", "uplink": "rack-1", "uplink_bandwidth": "2000"}
    for source in SOURCES:
        beat(ledger, source, **rack)
    for host in ("target", "other"):
        beat(ledger, host, bandwidth="4000", **{"slots:destination": "4"})
    first, second, third = (ask(ledger, source, 0) for source in SOURCES)
    inside = ask(ledger, "alpha", 1, to="beta")
    ledger.admit()
    assert sorted(sending(ledger)) == [first, second]
    assert [snapshot(ledger, each).rate for each in (first, second, third)] == [1000, 1000, None]
    assert snapshot(ledger, inside).waiting == "every source slot of alpha is taken"
    assert snapshot(ledger, third).waiting == "the shared link rack-1 is full"
    end(ledger, first)
    assert third in sending(ledger)
    assert inside in sending(ledger)


def test_a_stream_that_is_faster_than_a_shared_link_gets_what_that_carries(ledger: Ledger) -> None:
    beat(ledger, "alpha", bandwidth="9000", uplink="rack-1", uplink_bandwidth="500")
    alone = ask(ledger, "alpha", 0)
    ledger.admit()
    assert snapshot(ledger, alone).rate == 500


def test_a_shared_link_is_free_once_the_destination_has_given_up_though_its_source_says_nothing(ledger: Ledger) -> None:
    """Its host has lost its power, and may be back in a week: the others of its rack are to leave meanwhile."""
    for source in ("alpha", "beta"):
        beat(ledger, source, bandwidth="1000", uplink="rack-1", uplink_bandwidth="1000")
    lost, later = ask(ledger, "alpha", 0), ask(ledger, "beta", 0, to="other")
    ledger.admit()
    assert snapshot(ledger, later).waiting == "the shared link rack-1 is full"
    record = snapshot(ledger, lost)
    assert record.epoch is not None
    for side, nonce in ((Side.SOURCE, "s"), (Side.DESTINATION, "d")):
        ends = record.side(side).host, record.side(side.peer).host
        job = Job(lost, record.guest, record.epoch, side, nonce, *ends, GIB, {}, {})
        ledger.claim(job.ticket)
    ledger.finish(job.ticket, Status(outcome="failed", reason="peer-lost"))
    ledger.admit()
    assert not snapshot(ledger, lost).ended, "only its source knows where the guest is"
    assert snapshot(ledger, later).granted is not None


def test_a_shared_link_is_free_again_when_both_hosts_of_a_move_have_been_silent_for_long(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    """Nobody can say what became of the guest; the others of the rack are to leave all the same."""
    for source in ("alpha", "beta"):
        beat(ledger, source, bandwidth="1000", uplink="rack-1", uplink_bandwidth="1000")
    lost, later = ask(ledger, "alpha", 0), ask(ledger, "beta", 0, to="other")
    ledger.admit()
    record = snapshot(ledger, lost)
    assert (record.crosses, record.epoch) == ({"rack-1"}, 1)
    ends = (("alpha", "target"), ("target", "alpha"))
    jobs = [Job(lost, record.guest, 1, side, "n", *each, GIB, {}, {}, granted=True)
            for side, each in zip(Side, ends, strict=True)]  # fmt: skip
    for job in jobs:
        ledger.claim(job.ticket)
    long_ago = round((ledger.now() - SILENCE - 1) * 1000)
    with redis_server.client() as client:
        client.hset(f"order:migration:{lost}", "lease:source", long_ago)
        assert FREE not in [each.action for each in examine(ledger.open(), ledger.fleet(), ledger.now())]
        for moment in (1000, -1000 * (SILENCE - 60)):
            client.hset(f"order:migration:{lost}", "lease:destination", round(1000 * ledger.now() + moment))
            assert ledger.free_links(lost, SILENCE) is Answer.EARLY
        client.hset(f"order:migration:{lost}", "lease:destination", long_ago)
    found = [
        each for each in reconcile(ledger, MessageBell(lambda message, queue: None)).findings if each.action is FREE
    ]
    assert [each.migration for each in found] == [lost]
    assert "alpha and target" in found[0].reason
    assert "its share of rack-1" in found[0].reason
    assert snapshot(ledger, later).granted is not None
    before = snapshot(ledger, lost)
    assert (before.state, before.crosses, before.ended) == ("setup", frozenset(), False)
    assert ledger.fleet().guests["alpha-0"].active == lost, "only the journals say where it is"
    assert ledger.fleet().hosts["target"].reserved == GIB
    assert ledger.free_links(lost, SILENCE) is Answer.GONE
    assert FREE not in [each.action for each in examine(ledger.open(), ledger.fleet(), ledger.now())]

    end(ledger, later)
    ledger.heartbeat("alpha", Side.SOURCE, OFFERED | ROOM | {"bandwidth": "1000"}, [jobs[0]], [])
    assert snapshot(ledger, lost).crosses == {"rack-1"}, "its mover did go on: that is counted again"
    with redis_server.client() as client:
        assert client.hgetall("order:link:rack-1:up") == {lost.encode(): b"1000"}
    ledger.finish(jobs[0].ticket, Status(outcome="failed", reason="peer-lost"))
    with redis_server.client() as client:
        assert client.exists("order:link:rack-1:up") == 0


def test_what_has_prepared_on_a_host_that_is_silent_now_keeps_the_link_from_nobody(
    ledger: Ledger, redis_server: RedisServer
) -> None:
    for host in (*SOURCES, "target"):
        beat(ledger, host, ahead="2")
    first, silent, second = (ask(ledger, source, 0) for source in SOURCES)
    ledger.admit()
    assert (sending(ledger), sorted(prepared(ledger))) == ([first], [silent, second])
    with redis_server.client() as client:
        client.hset(f"order:migration:{silent}", "lease:source", 1)
    end(ledger, first)
    assert (sending(ledger), prepared(ledger)) == ([second], [silent])
    assert snapshot(ledger, silent).waiting == "prepared; the worker on beta no longer renews its lease"
    with redis_server.client() as client:
        client.hdel(f"order:migration:{silent}", "lease:source")
    end(ledger, second)
    assert sending(ledger) == [silent]


def test_a_stream_as_wide_as_its_link_is_not_kept_waiting_by_narrow_ones_that_keep_coming(ledger: Ledger) -> None:
    for source, bandwidth in zip(SOURCES, ("1000", "500", "500"), strict=True):
        beat(ledger, source, bandwidth=bandwidth, uplink="rack-1", uplink_bandwidth="1000", ahead="1")
    for host in ("target", "other"):
        beat(ledger, host, ahead="4", **{"slots:destination": "4"})
    narrow = [ask(ledger, "beta", 0, priority=Priority.BACKGROUND), ask(ledger, "gamma", 0, to="other")]
    ledger.admit()
    assert sorted(sending(ledger)) == narrow
    wide = ask(ledger, "alpha", 0, priority=Priority.EVACUATION)
    ledger.admit()
    later = [ask(ledger, source, 1, priority=Priority.BACKGROUND) for source in ("beta", "gamma")]
    end(ledger, narrow[0])
    assert sending(ledger) == narrow[1:], "half of the link is free, and kept"
    end(ledger, narrow[1])
    assert sending(ledger) == [wide]
    end(ledger, wide)
    assert sorted(sending(ledger)) == sorted(later)


def test_what_was_cancelled_while_it_prepared_is_never_let_on_and_leaves_nothing(ledger: Ledger) -> None:
    for host in ("alpha", "target"):
        beat(ledger, host, ahead="1")
    first, second = (ask(ledger, "alpha", number) for number in range(2))
    ledger.admit()
    job = Job(second, "alpha-1", 1, Side.SOURCE, "n", "alpha", "target", GIB, {}, {})
    ledger.claim(job.ticket)
    ledger.cancel(second, "not now")
    end(ledger, first)
    assert sending(ledger) == []
    ledger.finish(job.ticket, Status(outcome="cancelled", reason="cancelled"))
    assert prepared(ledger) == []
    assert ledger.fleet().hosts["alpha"].admitted[Side.SOURCE] == 0


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize(
    ("kept", "name", "said"),
    [
        (Kept.GUEST, "alpha-1", ("pinned", "guest alpha-1 is pinned: tests.")),
        (Kept.HOST, "target", ("pinned", "host target is pinned: tests.")),
        (Kept.CORDON, "target", ("cordoned", "target takes no guests: tests.")),
    ],
)
def test_what_prepares_ends_as_what_waits_does_when_an_operator_keeps_it_where_it_is(
    ledger: Ledger, kept: Kept, name: str, said: tuple[str, str], claimed: bool
) -> None:
    for host in ("alpha", "target"):
        beat(ledger, host, ahead="1")
    first, second, third = (ask(ledger, "alpha", number) for number in range(3))
    ledger.admit()
    jobs = [Job(second, "alpha-1", 1, side, "n", *ends, GIB, {}, {}) for side, ends in
            zip(Side, (("alpha", "target"), ("target", "alpha")), strict=True)]  # fmt: skip
    for job in jobs if claimed else ():
        ledger.claim(job.ticket)
    ledger.pin(kept, name, "tests", None)
    ledger.admit()
    if claimed:
        assert snapshot(ledger, second).state == "cancelling"
        assert [ledger.renew(job.ticket)[0] for job in jobs] == [Answer.CANCEL, Answer.OK], "the source's mover decides"
        ledger.admit()  # and once more
        ledger.finish(jobs[0].ticket, Status(outcome="cancelled", reason="cancelled", message="It was cancelled."))
        ledger.finish(jobs[1].ticket, Status(outcome="cancelled", reason="cancelled", message="It was cancelled."))
    ended = snapshot(ledger, second)
    assert (ended.state, ended.reason, ended.message, ended.settled) == ("failed", *said, True)
    assert sending(ledger) == [first], "what moves goes on to its end"
    assert (snapshot(ledger, third).state == "failed") == (name == "target")
    assert ledger.fleet().guests["alpha-1"].active is None
    assert ledger.unpin(kept, name) is Answer.OK
    again = Submission("m-again", "alpha-1", "alpha", "target", GIB, {}, {})
    assert ledger.submit(again)[0] is Answer.OK


def test_hosts_that_are_left_may_be_cordoned_and_what_has_prepared_there_is_let_on(ledger: Ledger) -> None:
    for host in ("alpha", "target"):
        beat(ledger, host, ahead="1")
    first, second = (ask(ledger, "alpha", number) for number in range(2))
    ledger.admit()
    ledger.pin(Kept.CORDON, "alpha", "it is emptied", None)
    end(ledger, first)
    assert sending(ledger) == [second]


def test_one_that_was_taken_back_too_late_is_completed(ledger: Ledger) -> None:
    """Its source's mover was let onto the links before Redis lost its last seconds."""
    for host in ("alpha", "target"):
        beat(ledger, host, ahead="1")
    _, second = (ask(ledger, "alpha", number) for number in range(2))
    ledger.admit()
    job = Job(second, "alpha-1", 1, Side.SOURCE, "n", "alpha", "target", GIB, {}, {})
    ledger.claim(job.ticket)
    ledger.pin(Kept.GUEST, "alpha-1", "tests", None)
    ledger.admit()
    ledger.finish(job.ticket, Status(outcome="completed"))
    assert (snapshot(ledger, second).state, ledger.fleet().guests["alpha-1"].host) == ("completed", "target")


def test_what_is_asked_for_within_one_millisecond_keeps_its_order(ledger: Ledger) -> None:
    beat(ledger, "target", **{"slots:destination": "1"})
    asked = [
        Submission(f"m-{9 - number}", f"alpha-{number}", "alpha", "target", GIB, {}, {}) for number in range(GUESTS)
    ]
    for each in asked:
        assert ledger.submit(each)[0] is Answer.OK
    for each in asked:
        ledger.admit()
        assert sending(ledger) == [each.migration]
        end(ledger, each.migration)


def test_a_look_that_somebody_has_just_taken_is_left_out(ledger: Ledger) -> None:
    ask(ledger, "alpha", 0)
    assert ledger.admit(unless_looked=60) == ["m-alpha-0"]
    ask(ledger, "beta", 0)
    assert ledger.admit(unless_looked=60) == []
    assert ledger.admit() == []  # target's one slot is taken: only a look of one's own says so
    assert snapshot(ledger, "m-beta-0").waiting == "every destination slot of target is taken"
