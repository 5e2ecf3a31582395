"""`droveway check`: both hosts are asked, nothing is changed, and what cannot be asked is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from config.settings import RedisSettings
from tasks.app import sender
from tasks.checks import Checks
from tasks.messages import CheckRequest
from tasks.one_machine.fleet import LocalFleet
from tests.integration.test_cli_migration import MIB, Command
from tests.redis_server import RedisServer
from tests.until import until
from workers.pairing.contract import Side


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    server = RedisServer()
    server.start()
    try:
        with LocalFleet(
            RedisSettings.model_validate({"url": server.url}),
            ram_bytes=256 * MIB,
            overrides={"worker.lease": "5s", "host.memory": "64M"},
        ) as made:
            made.start()
            yield made
    finally:
        server.close()


@pytest.fixture
def alpha(fleet: LocalFleet) -> Command:
    return Command(fleet.hosts["alpha"])


@pytest.fixture(autouse=True)
def guest(alpha: Command, fleet: LocalFleet) -> Iterator[None]:
    alpha.said("guest", "start", "web", "--memory", "32M")
    yield
    fleet.hosts["alpha"].guests.stop("web")


def refused(alpha: Command, *words: str, code: int = 3) -> dict[str, Any]:
    ended, out, _ = alpha("check", *words, "--json")
    assert ended == code, out
    document: dict[str, Any] = json.loads(out)
    assert document["error"]["exit_code"] == code
    return document


def test_a_guest_that_can_move_and_nothing_is_changed_by_asking(alpha: Command, fleet: LocalFleet) -> None:
    said = alpha.said("check", "web", "--to", "beta")
    assert said == {"guest": "web", "source": "alpha", "destination": "beta", "possible": True, "blockers": []}
    code, out, _ = alpha("check", "web", "--to", "beta")
    assert (code, out) == (0, "web can move from alpha to beta\n")
    assert alpha.said("list") == {"migrations": []}
    assert not fleet.hosts["alpha"].attempts()
    assert not fleet.hosts["beta"].guests.list()


def test_what_admission_would_refuse_stands_in_the_same_table(alpha: Command) -> None:
    alpha.said("guest", "start", "big", "--memory", "96M", "--used", "0.1")
    try:
        said = refused(alpha, "big", "--to", "beta")
        assert [(each["host"], each["reason"]) for each in said["blockers"]] == [(None, "host-memory")]
        assert said["error"]["reason"] == "blocked"
        code, out, err = alpha("check", "big", "--to", "beta")
        assert code == 3
        assert "the fleet's record" in out
        assert "1 blocker" in err
    finally:
        alpha.said("guest", "stop", "big")


def test_a_guest_of_that_name_is_there_already(alpha: Command, fleet: LocalFleet) -> None:
    beta = Command(fleet.hosts["beta"])
    (fleet.hosts["beta"].state_dir / "guests" / "web").mkdir(parents=True)
    try:
        said = refused(alpha, "web", "--to", "beta")
        assert [(each["side"], each["reason"]) for each in said["blockers"]] == [("destination", "guest-exists")]
    finally:
        beta("guest", "stop", "web", "--force")
        fleet.hosts["beta"].guests.stop("web") if fleet.hosts["beta"].guests.holds("web") else None


def test_an_engine_that_would_be_refused_to_the_migration_too(alpha: Command) -> None:
    said = refused(alpha, "web", "--to", "beta", "--set", "engine=qemu")
    assert [(each["host"], each["reason"], each["remedy"]) for each in said["blockers"]] == [
        ("alpha", "engine", "use engine=auto or droveway")
    ]
    ended, out, _ = alpha("migrate", "web", "--to", "beta", "--set", "engine=qemu", "--json")
    assert ended != 0
    assert "it is not a QEMU guest (engine)" in out


def test_a_guest_that_stands_still(alpha: Command, fleet: LocalFleet) -> None:
    fleet.hosts["alpha"].guests.open("web").stop()
    said = refused(alpha, "web", "--to", "beta")
    assert [(each["host"], each["reason"]) for each in said["blockers"]] == [("alpha", "not-running")]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("nobody", "--to", "beta"), 3, "unknown-guest"),
        (("web", "--to", "beta", "--set", "downtime-limit=never"), 2, "invalid-request"),
        (("../web", "--to", "beta"), 2, "invalid-request"),
        (("web", "--to", "beta", "--timeout", "-1"), 2, "invalid-request"),
    ],
)
def test_bad_input(alpha: Command, words: tuple[str, ...], code: int, reason: str) -> None:
    assert refused(alpha, *words, code=code)["error"]["reason"] == reason


def test_a_host_that_nobody_speaks_for(alpha: Command) -> None:
    for host, reason in (("gamma", "unknown-host"), ("alpha", "same-host")):
        said = refused(alpha, "web", "--to", host)
        assert [each["reason"] for each in said["blockers"]] == [reason]


def test_a_worker_that_does_not_answer(alpha: Command, fleet: LocalFleet) -> None:
    import os
    import signal

    pid = fleet.hosts["beta"].pid(Side.DESTINATION)
    os.kill(pid, signal.SIGSTOP)
    try:
        said = refused(alpha, "web", "--to", "beta", "--timeout", "1", code=5)
        assert "destination worker of beta did not answer" in said["error"]["message"]
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_guest_whose_process_died(alpha: Command, fleet: LocalFleet) -> None:
    fleet.hosts["alpha"].guests.open("web").quit()
    (fleet.hosts["alpha"].state_dir / "guests").mkdir(exist_ok=True)
    said = refused(alpha, "web", "--to", "beta")
    assert said["error"]["reason"] == "unknown-guest"
    alpha.said("guest", "start", "web", "--memory", "32M")


def test_requests_that_are_none_are_dropped_and_later_ones_answered(alpha: Command, fleet: LocalFleet) -> None:
    send = sender(fleet.settings)
    with closing(Checks(fleet.settings)) as checks:
        for side, host in ((Side.DESTINATION, "alpha"), (Side.SOURCE, "beta")):
            asked = CheckRequest(check="c-1", guest="web", host=host, side=side)
            send(asked, f"droveway.{side.peer}.{host}")
        send(CheckRequest(check="c-2", guest="web", host="beta", side=Side.DESTINATION), "droveway.destination.beta")
        answer = until("an answer", lambda: checks.find("c-2", Side.DESTINATION), 30)
        assert "not described" in answer["error"]["message"]
        alpha.said("check", "web", "--to", "beta")
        assert checks.find("c-1", Side.SOURCE) is None
        assert checks.find("c-1", Side.DESTINATION) is None
