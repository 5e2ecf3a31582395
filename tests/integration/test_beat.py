"""`droveway beat` and `droveway policies`: real processes on a real Redis; two beats at once mean one judgement."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from config.celery import CONTROL_QUEUE
from config.settings import RebalanceSettings, load_settings
from tasks.app import beat_service
from tasks.ledger.ledger import Ledger
from tasks.messages import Rebalance
from tasks.scheduled import tick
from tests.integration.console import Console
from tests.integration.scripted_fleet import BELL
from tests.redis_server import RedisServer
from tests.until import until

MINUTELY = """
[rebalance.minutely]
cron = "* * * * *"
hold = 10000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "droveway.toml"
    path.write_text(MINUTELY)
    return path


@contextmanager
def droveway(log: Path, server: RedisServer, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"DROVEWAY_REDIS__URL": server.url}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.cli.main", *words], env=environment, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        print(log.name, log.read_text(), sep="\n")


def said(log: Path, logger: str, word: str) -> list[str]:
    """Lines of the log with that word, by that logger."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line["event"] for line in lines if line["logger"] == logger and word in line["event"]]


# --- beat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_and_leaves_nothing(
    number: signal.Signals, file: Path, tmp_path: Path, own_redis_server: RedisServer
) -> None:
    log = tmp_path / "beat.log"
    with droveway(log, own_redis_server, "beat", "--config", str(file)) as beat:
        until("the beat's first line", lambda: said(log, "celery.beat", "Starting"), 30)
        began = time.monotonic()
        beat.send_signal(number)
        assert beat.wait(10) == 0
        assert time.monotonic() - began < 5
    assert {each.name for each in tmp_path.iterdir()} == {"beat.log", "droveway.toml"}
    assert "Traceback" not in log.read_text()


def test_without_policies_or_without_redis_it_says_so(console: Console, tmp_path: Path, file: Path) -> None:
    for command in ("beat", "policies"):
        code, _, err = console(command)
        assert (code, "write a table [rebalance.NAME]" in err) == (4, True)
    code, _, err = console("beat", "--config", str(file), "--redis", f"unix://{tmp_path}/none.sock")
    assert (code, "none.sock" in err) == (5, True)


def test_the_help_shows_a_policy_that_is_one_and_says_on_which_look_it_acts(console: Console, tmp_path: Path) -> None:
    said = console("beat", "--help")[1]
    shown = tmp_path / "shown.toml"
    shown.write_text(dedent(said.partition("in that file:\n")[2].partition("\n\n")[0]))
    (policy,) = load_settings(shown, {}).rebalance.values()
    default = RebalanceSettings.model_fields["hold"].default
    assert policy.hold == default == 3
    assert f"is {default} unless you say otherwise" in said
    assert "on the third night" in " ".join(said.split())
    assert f"({default} unless the file says otherwise)" in " ".join(console("policies", "--help")[1].split())


def test_each_due_moment_is_a_message_that_is_good_until_the_next(own_redis_server: RedisServer) -> None:
    """Every second, which no settings file may say: only the calendar differs from a real one."""
    settings = load_settings(Path(os.devnull), {}, {"redis.url": own_redis_server.url})
    terms = RebalanceSettings(cron="* * * * *", hold=7).model_copy(update={"cron": "* * * * * *"})
    service = beat_service(settings.model_copy(update={"rebalance": {"secondly": terms}}))
    began = time.time()
    while time.time() - began < 3.2:
        time.sleep(max(0.0, min(service.scheduler.tick(), 0.5)))
    service.sync()
    with own_redis_server.client() as client:
        messages = [json.loads(each) for each in client.lrange(f"droveway:{CONTROL_QUEUE}", 0, -1)]
    assert len(messages) in {3, 4}
    assert {each["headers"]["task"] for each in messages} == {Rebalance.task}
    bodies = [json.loads(base64.b64decode(each["body"]))[0][0] for each in reversed(messages)]
    expiries = [body["expires"] for body in bodies]
    assert expiries == [expiries[0] + number for number in range(len(bodies))]
    assert 1 <= expiries[0] - began <= 2.1
    exact = bodies[0] | {"terms": bodies[0]["terms"] | {"cron": "* * * * *"}}
    read = Rebalance.read(exact, began)
    assert (read.policy, read.terms.hold) == ("secondly", 7)


def test_what_was_due_hours_ago_is_not_made_up_for() -> None:
    """Neither by a worker that comes back at noon, nor by a beat that was suspended over the due moment."""
    text = {"cron": "0 2 * * *", "timezone": "UTC"}
    settings = load_settings(Path(os.devnull), {}).model_copy(
        update={"rebalance": {"nightly": RebalanceSettings.model_validate(text)}}
    )
    (body_of,) = beat_service(settings).scheduler.schedule["nightly"].args
    now = time.time()
    assert body_of()["expires"] == now // 86_400 * 86_400 + (3 if now % 86_400 >= 7200 else -21) * 3600


@pytest.mark.thorough
def test_two_beats_and_a_worker_judge_each_minute_once(
    file: Path, tmp_path: Path, own_redis_server: RedisServer
) -> None:
    state = tmp_path / "state"
    worker = ("worker", "--role", "source", "--host", "alpha", "--state-dir", str(state))
    os.environ["DROVEWAY_HOST__METRICS_SOURCE_PORT"] = "0"
    log = tmp_path / "worker.log"
    beats = [tmp_path / f"beat{number}.log" for number in (1, 2)]
    with (
        droveway(log, own_redis_server, *worker),
        droveway(beats[0], own_redis_server, "beat", "--config", str(file)),
        droveway(beats[1], own_redis_server, "beat", "--config", str(file)),
    ):
        for each in beats:
            until("a beat", lambda each=each: said(each, "celery.beat", "Starting"), 60)
        until("three minutes", lambda: min(len(said(each, "celery.beat", "Sending")) for each in beats) >= 3, 240, 0.5)
        until("all were received", lambda: len(said(log, "celery.app.trace", "succeeded")) >= 6, 30)
    del os.environ["DROVEWAY_HOST__METRICS_SOURCE_PORT"]
    assert len(said(log, "droveway.rebalance", "minutely: the imbalance")) == 3


# --- what one sees ----------------------------------------------------------------------------------------------------


def test_policies_are_shown_with_what_came_of_them(console: Console, file: Path, own_redis_server: RedisServer) -> None:
    file.write_text(MINUTELY + "[rebalance.never]\ncron = '0 0 1 1 *'\nwindows = ['00:00-00:01']\n")
    settings = load_settings(file, {"DROVEWAY_REDIS__URL": own_redis_server.url})
    with closing(Ledger(settings)) as ledger:
        tick(ledger, BELL, Rebalance(policy="minutely", terms=settings.rebalance["minutely"]))
        now = ledger.now()
    minutely, never = console.said("policies", "--config", str(file))["policies"]
    assert (minutely["policy"], minutely["cron"], minutely["hold"]) == ("minutely", "* * * * *", 10_000)
    assert minutely["window_open"] is True
    assert now - 60 < minutely["last"]["due"] < now + 60
    assert 0 < minutely["next_due"] - now <= 61
    assert minutely["last"]["imbalance"] > 0.1
    assert (minutely["last"]["over"], "for 1 of 10000 ticks" in minutely["last"]["reason"]) == (1, True)
    assert never["last"] == {
        "due": None, "judged": None, "over": 0, "imbalance": None, "reason": "", "job": None, "acted": None
    }  # fmt: skip
    code, out, _ = console("policies", "--config", str(file))
    assert (code, "minutely" in out, "1/10000" in out) == (0, True, True)


def test_a_policy_can_be_followed_by_hand(console: Console, file: Path) -> None:
    file.write_text(MINUTELY + "[rebalance.lax]\ncron = '0 0 1 1 *'\nthreshold = 9\ntarget = 8\n")
    assert console.said("rebalance", "--plan", "--policy", "minutely", "--config", str(file))["imbalance_before"] > 1e-3
    lax = console.said("rebalance", "--plan", "--policy", "lax", "--config", str(file))
    assert (lax["moves"], "not above the target of 8" in lax["reason"]) == ([], True)
    code, _, err = console("rebalance", "--policy", "minutly", "--config", str(file))
    assert (code, "did you mean minutely?" in err) == (2, True)
    code, _, err = console("rebalance", "--policy", "x")
    assert (code, "There is no policy 'x'." in err) == (2, True)
