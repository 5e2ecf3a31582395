"""What is remembered of jobs and moves: `show JOB` attempt by attempt, `history --export` as lines to be kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config.errors import RefusedError
from config.settings import load_settings
from tasks.ledger import ledger as ledger_module
from tasks.ledger.ledger import Answer, Ledger
from tasks.records import LocalGuest, MigrationRecord, Submission
from tasks.steps import take_step
from tests.integration.console import GIB, OFFERED, Console
from tests.redis_server import RedisServer
from workers.attempt import Job, Status
from workers.pairing.contract import Side

ROUND = {
    "index": 0,
    "kind": "bulk",
    "bytes": GIB,
    "sent": GIB // 2,
    "seconds": 2.0,
    "verdict": "switch",
    "reason": "so",
}


class SilentBell:
    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


@pytest.fixture
def ledger(console: Console) -> Iterator[Ledger]:
    """Of the console's fleet, in which gamma takes guests as well."""
    with closing(Ledger(load_settings(Path(os.devnull)))) as made:
        for side in Side:
            made.heartbeat("gamma", side, OFFERED, [], [LocalGuest("mail", GIB, 0)])
        yield made


def stepped(ledger: Ledger, server: RedisServer, job: str) -> None:
    with server.client() as client:
        client.delete(f"droveway:job:{job}:turn")
    take_step(ledger, SilentBell(), job)


def end(ledger: Ledger, outcome: str, reason: str = "") -> None:
    """Let every admitted move end so."""
    for record in ledger.open():
        assert record.epoch is not None
        made = record.guest, record.epoch
        ends = [(side, record.side(side).host, record.side(side.peer).host) for side in Side]
        jobs = [Job(record.migration, *made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends]
        said = f"the move ended: {reason}"
        spans = {"bulk": 2.0, "downtime": 0.04, "total": 2.5}
        assert [ledger.claim(job.ticket) for job in jobs] == [Answer.OK, Answer.OK]
        for job in jobs:
            ledger.finish(
                job.ticket, Status(outcome=outcome, reason=reason, message=said, seconds=spans, rounds=(ROUND,))
            )


@pytest.fixture
def emptied(console: Console, ledger: Ledger, own_redis_server: RedisServer) -> str:
    """An evacuation of alpha: its guest was lost on the way to one host, and went to the other."""
    job = str(console.said("evacuate", "alpha", "--detach")["job"])
    for outcome, reason in (("failed", "peer-lost"), ("completed", "")):
        end(ledger, outcome, reason)
        stepped(ledger, own_redis_server, job)
    assert console.said("show", job)["state"] == "completed"
    return job


def test_each_attempt_of_a_guest_is_shown_with_its_times_and_its_reason(console: Console, emptied: str) -> None:
    (web,) = console.said("show", emptied)["attempts_by_guest"].values()
    assert [(each["source"], each["state"], each["reason"]) for each in web] == [
        ("alpha", "failed", "peer-lost"),
        ("alpha", "completed", None),
    ]
    assert {each["destination"] for each in web} == {"beta", "gamma"}
    assert web[0]["message"] == "the move ended: peer-lost"
    for each in web:
        assert each["created"] <= each["admitted"] <= each["finished"]
        assert each["waited_seconds"] == pytest.approx(each["admitted"] - each["created"])
        assert each["took_seconds"] == pytest.approx(each["finished"] - each["admitted"])
        assert each["downtime_seconds"] == 0.04
    code, out, _ = console("show", emptied)
    assert code == 0
    assert [out.count(each["migration"]) for each in web] == [1, 1]
    assert "failed: the move ended: peer-lost" in out
    assert console.said("show", web[0]["migration"])["job"] == emptied
    assert emptied in console("show", web[0]["migration"])[1]


def test_an_attempt_that_still_waits_says_what_for(console: Console, ledger: Ledger) -> None:
    ledger.resign("alpha", Side.SOURCE)
    job = console.said("evacuate", "alpha", "--detach")["job"]
    assert console.said("show", job)["attempts_by_guest"] == {}  # nothing is asked of a host that does not speak
    assert ledger.submit(Submission("m-1", "web", "alpha", "beta", GIB, {}, {}, job=job))[0] is Answer.OK
    ledger.admit()
    (each,) = console.said("show", job)["attempts_by_guest"]["web"]
    assert (each["state"], each["waited_seconds"], each["took_seconds"]) == ("queued", None, None)
    assert "no source worker is alive on alpha" in console("show", job)[1]


def test_one_that_is_past_its_retention_is_still_counted_and_says_so(
    console: Console, emptied: str, own_redis_server: RedisServer
) -> None:
    first, second = console.said("show", emptied)["attempts_by_guest"]["web"]
    with own_redis_server.client() as client:
        client.delete(f"droveway:migration:{first['migration']}")
    forgotten, kept = console.said("show", emptied)["attempts_by_guest"]["web"]
    assert kept == second
    assert forgotten == dict.fromkeys(first) | {
        "migration": first["migration"],
        "message": "it is past its retention",
    }
    assert "it is past its retention" in console("show", emptied)[1]


# --- lines to be kept -------------------------------------------------------------------------------------------------


def exported(console: Console, *words: str) -> list[dict[str, Any]]:
    code, out, err = console("history", "--export", *words)
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_every_job_and_move_that_has_ended_is_one_complete_line_oldest_first(
    console: Console, ledger: Ledger, emptied: str
) -> None:
    assert ledger.submit(Submission("m-open", "mail", "gamma", "alpha", GIB, {}, {}))[0] is Answer.OK
    job, failed, moved = exported(console)
    assert [each["type"] for each in (job, failed, moved)] == ["job", "move", "move"]
    assert (job["job"], job["guests"]["web"]["fate"]) == (emptied, "moved")
    assert {failed["migration"], moved["migration"]} == set(job["migrations"])
    assert (failed["state"], failed["reason"], failed["job"]) == ("failed", "peer-lost", emptied)
    assert (moved["rounds"], moved["seconds"]["downtime"]) == ([ROUND], 0.04)
    assert moved["destination"]["progress"]["seconds"]["total"] == 2.5
    assert job["created"] <= failed["created"] <= moved["created"]


def test_only_what_is_asked_for_is_exported(console: Console, emptied: str, own_redis_server: RedisServer) -> None:
    assert {each["type"] for each in exported(console, "--type", "job")} == {"job"}
    assert len(exported(console, "--type", "move")) == 2
    assert len(exported(console, "--type", "all", "--since", "1h")) == 3
    first = exported(console, "--type", "move")[0]["migration"]
    with own_redis_server.client() as client:
        client.hincrby(f"droveway:migration:{first}", "finished", -2 * 86_400_000)
    assert first not in [each.get("migration") for each in exported(console, "--since", "1d")]
    assert first in [each.get("migration") for each in exported(console, "--since", "3d")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "7d"), "add --export"),
        (("--type", "job"), "add --export"),
        (("--export", "--since", "lately"), "lately"),
        (("--export", "--type", "guest"), "guest"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(console: Console, words: tuple[str, ...], said: str) -> None:
    code, out, err = console("history", *words)
    assert (code, out, said in err) == (2, "", True)


@pytest.fixture
def remembered(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """More moves than fit into two pages."""
    monkeypatch.setattr(ledger_module, "_PAGE", 7)
    names = [f"m-{number:03}" for number in range(40)]
    for name in names:
        ledger.submit(Submission(name, "web", "alpha", "beta", GIB, {}, {}), RefusedError("no", "no-room"))
    return names


@pytest.mark.parametrize("moments", [1, 3, 40], ids=["all at once", "a few moments", "one after the other"])
def test_pages_leave_nothing_out_and_say_nothing_twice_however_close_the_moves_were(
    ledger: Ledger, remembered: list[str], own_redis_server: RedisServer, moments: int
) -> None:
    with own_redis_server.client() as client:
        at = {name: 1 + number * moments // len(remembered) for number, name in enumerate(remembered)}
        client.zadd("droveway:migrations", at)
    assert [record.migration for record in ledger.moves_by_age()] == remembered


def test_what_goes_and_what_comes_while_pages_are_read_moves_none_of_the_others(
    ledger: Ledger, remembered: list[str], own_redis_server: RedisServer
) -> None:
    reading = ledger.moves_by_age()
    found = [next(reading).migration for _ in range(3)]
    with own_redis_server.client() as client:  # as reconcile drops what is past its retention, before and after
        client.zremrangebyrank("droveway:migrations", 0, 4)
        client.delete("droveway:migration:m-020")
        client.zadd("droveway:migrations", {"m-later": 9e15})
        client.hset("droveway:migration:m-later", mapping=client.hgetall("droveway:migration:m-030"))
    found += [record.migration for record in reading]
    assert found == [name for name in remembered if name != "m-020"]
