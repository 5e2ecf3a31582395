"""What workers and movers log of a real move: every line says what it is about, and each round is one line."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest
from tasks.one_machine.fleet import LocalFleet
from tasks.records import MigrationRecord
from tasks.requests import admit, submit
from tests.redis_server import RedisServer
from tests.until import until
from workers.guests.memory_spec import MemoryGuestSpec
from workers.pairing.contract import Side

MIB = 1 << 20


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tells_of_the_end(path: Path) -> bool:
    return any('"event": "m-logged' in line and "completed" in line for line in path.read_text().splitlines())


@pytest.fixture
def moved(
    own_redis_server: RedisServer, tmp_path: Path
) -> tuple[MigrationRecord, dict[Side, list[dict[str, Any]]], str]:
    """A guest that was moved, what both hosts' workers of its roles logged, and all that was logged as text."""
    redis = RedisSettings.model_validate({"url": own_redis_server.url})
    overrides = {"worker.lease": 6, "worker.poll_interval": 0.1, "worker.log_format": "json"}
    with LocalFleet(redis, ram_bytes=128 * MIB, overrides=overrides) as fleet:
        alpha, beta = fleet.hosts["alpha"], fleet.hosts["beta"]
        guest = alpha.guests.start(MemoryGuestSpec("web", 32 * MIB, dirty_rate=20 * MIB))
        guest.wait_filled(30)
        fleet.start()
        with closing(Ledger(fleet.settings)) as ledger:
            announce(ledger, alpha.settings, guest)
            submit(ledger, MigrateRequest(migration="m-logged", guest="web", destination="beta"))
            admit(ledger, bell_for(fleet.settings))

            def settled() -> MigrationRecord | None:
                found = ledger.find("m-logged")
                return found if found and found.settled else None

            record = until("the end", settled, seconds=60)
        paths = {Side.SOURCE: alpha.log(Side.SOURCE), Side.DESTINATION: beta.log(Side.DESTINATION)}
        # A worker logs the end after it has written it down.
        until("both workers' last words", lambda: all(tells_of_the_end(path) for path in paths.values()), seconds=30)
        text = "".join(path.read_text() for path in fleet.logs())
        return record, {side: lines(path) for side, path in paths.items()}, text


def test_every_line_of_a_move_says_which_and_each_round_is_one_line(
    moved: tuple[MigrationRecord, dict[Side, list[dict[str, Any]]], str],
) -> None:
    record, logged, _ = moved
    for side, host in ((Side.SOURCE, "alpha"), (Side.DESTINATION, "beta")):
        about = [line for line in logged[side] if "m-logged" in json.dumps(line)]
        assert about
        for line in about:
            if line["logger"] == "droveway.supervise":
                said = line["migration"], line["guest"], line["host"], line["role"]
                assert said == ("m-logged", "web", host, str(side))
                assert line["phase"]
        assert any(line["event"].startswith("m-logged") and "completed" in line["event"] for line in about)
    rounds = [line for line in logged[Side.SOURCE] if line["event"].startswith("round ")]
    assert record.source.progress is not None
    done = record.source.progress["rounds"]
    assert [(each["kind"], each["sent"], each["verdict"]) for each in rounds] == [
        (each["kind"], each["sent"], each.get("verdict")) for each in done
    ]
    # However late the worker looked: a quick move has ended by then.
    phases = {"bulk": "bulk", "dirty": "rounds", "final": "downtime"}
    assert [each["phase"] for each in rounds] == [phases[each["kind"]] for each in done]
    assert [each["began"] for each in rounds] == [each["began"] for each in done]
    assert {each["level"] for each in rounds} == {"info"}


def test_what_is_about_no_migration_does_not_say_that_it_is(
    moved: tuple[MigrationRecord, dict[Side, list[dict[str, Any]]], str],
) -> None:
    _, logged, _ = moved
    others = [line for side in Side for line in logged[side] if line["logger"].startswith("celery.worker")]
    assert others
    assert not any("migration" in line for line in others)
