"""Real Celery workers of two hosts as processes, their movers scripted: messages repeated, workers and Redis killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from tasks.app import bell_for, sender
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, Reconcile
from tasks.queues import CONTROL_QUEUE, host_queue
from tasks.records import LocalGuest, MigrationRecord
from tasks.requests import admit, submit
from tests.redis_server import RedisServer
from workers.attempt import Attempt
from workers.pairing.contract import Side

GIB = 1 << 30
WORKER = str(Path(__file__).with_name("scripted_worker.py"))


def until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Fleet:
    """alpha's source worker and beta's destination worker."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.settings = {side: self._settings(host, side) for host, side in zip(("alpha", "beta"), Side, strict=True)}
        self.ledger = Ledger(self.settings[Side.SOURCE])
        self.workers: dict[Side, subprocess.Popen[bytes]] = {}

    def _settings(self, host: str, side: Side) -> Settings:
        (self.directory / host).mkdir()
        overrides = {
            "redis.url": self.server.url,
            "host.name": host,
            "host.state_dir": str(self.directory / host),
            "host.memory": "4G",
            f"host.metrics_{side}_port": 0,
            "worker.lease": 4,
            "worker.poll_interval": 0.1,
            "worker.reconcile_interval": 1,
        }
        return load_settings(Path(os.devnull), {}, overrides)

    def start(self) -> None:
        for side in Side:
            self.start_worker(side)
        until("both workers' heartbeats", lambda: set(self.ledger.fleet().hosts) == {"alpha", "beta"})

    def start_worker(self, side: Side) -> None:
        environment = {**os.environ, **self.settings[side].environment()}
        with (self.directory / f"{side}.log").open("ab") as log:
            self.workers[side] = subprocess.Popen(
                [sys.executable, WORKER, side], env=environment, stdout=log, stderr=log
            )

    def kill_workers(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait()

    def submitted(self) -> str:
        self.ledger.announce("alpha", LocalGuest("web", GIB, 0))
        request = MigrateRequest(migration="m-1", guest="web", destination="beta")
        return submit(self.ledger, request)

    def begun(self) -> None:
        self.submitted()
        admit(self.ledger, bell_for(self.settings[Side.SOURCE]))
        self.both_started()

    def both_started(self) -> None:
        until("both movers", lambda: all(self.starts(side) for side in Side))

    def record(self) -> MigrationRecord | None:
        return self.ledger.find("m-1")

    def starts(self, side: Side) -> list[str]:
        path = self.settings[side].host.state_dir / "starts"
        return path.read_text().split() if path.exists() else []

    def let_go(self) -> None:
        for settings in self.settings.values():
            (settings.host.state_dir / "go").touch()

    def attempts(self) -> list[Attempt]:
        return [attempt for each in self.settings.values() for attempt in Attempt.all(each.host.state_dir)]

    def completed_once(self) -> None:
        """The move completed, each mover was started once, and nothing is left."""
        until("the end", lambda: (record := self.record()) is not None and record.settled)
        record = self.record()
        assert record is not None
        assert (record.state, record.source.outcome, record.destination.outcome) == ("completed",) * 3
        assert {side: self.starts(side) for side in Side} == {side: [f"m-1.1.{side}"] for side in Side}
        until("the directories' end", lambda: not self.attempts())
        assert self.ledger.open() == []
        assert not any(taken for host in self.ledger.fleet().hosts.values() for taken in host.admitted.values())

    def close(self) -> None:
        self.let_go()
        self.kill_workers()
        for attempt in self.attempts():
            assert attempt.wait(30)
        self.ledger.close()


@pytest.fixture
def fleet(own_redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_redis_server, tmp_path)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()
        for log in sorted(tmp_path.glob("*.log")):
            print(log.name, log.read_text(), sep="\n")


def test_the_same_message_three_times_is_one_run(fleet: Fleet) -> None:
    fleet.submitted()
    bell = bell_for(fleet.settings[Side.SOURCE])
    admit(fleet.ledger, bell)
    record = fleet.record()
    assert record is not None
    for _ in range(2):
        for side in Side:
            bell.ring(record, side)
    fleet.both_started()
    fleet.let_go()
    fleet.completed_once()


def test_a_producers_message_alone_moves_a_guest_and_twice_is_once(fleet: Fleet) -> None:
    fleet.ledger.announce("alpha", LocalGuest("web", GIB, 0))
    send = sender(fleet.settings[Side.SOURCE])
    for _ in range(2):
        send(MigrateRequest(migration="m-1", guest="web", destination="beta"), CONTROL_QUEUE)
    send(MigrateRequest(migration="m-2", guest="wed", destination="beta"), CONTROL_QUEUE)
    fleet.both_started()
    fleet.let_go()
    fleet.completed_once()
    until("the refusal", lambda: fleet.ledger.find("m-2") is not None)
    refused = fleet.ledger.find("m-2")
    assert refused is not None
    assert (refused.state, refused.reason) == ("failed", "unknown-guest")


def test_killed_workers_are_followed_by_new_ones_that_take_the_movers_up(fleet: Fleet) -> None:
    fleet.begun()
    fleet.kill_workers()
    fleet.let_go()
    for side in Side:
        fleet.start_worker(side)
    fleet.completed_once()


@pytest.mark.parametrize("loses_everything", [False, True])
def test_celery_and_redis_restarted_in_the_middle_lose_nothing(fleet: Fleet, loses_everything: bool) -> None:
    fleet.begun()
    fleet.kill_workers()
    fleet.server.kill()
    fleet.server.start()
    if loses_everything:
        fleet.server.forget()
    for side in Side:
        fleet.start_worker(side)
    until(
        "both sides in the record",
        lambda: (r := fleet.record()) is not None and r.source.at_work and r.destination.at_work,
    )
    fleet.let_go()
    fleet.completed_once()


def test_a_redis_that_dies_under_running_workers_is_outlived(fleet: Fleet) -> None:
    fleet.begun()
    fleet.server.kill()
    fleet.let_go()
    assert all(attempt.wait(60) for attempt in fleet.attempts())
    fleet.server.start()
    fleet.completed_once()


def test_a_doorbell_that_was_lost_is_rung_again(fleet: Fleet) -> None:
    fleet.submitted()
    fleet.ledger.admit()  # and whoever did it died before ringing
    with fleet.server.client() as client:
        client.hset("droveway:migration:m-1", mapping={"rung": 1, "admitted": round(fleet.ledger.now() - 30) * 1000})
    fleet.both_started()
    fleet.let_go()
    fleet.completed_once()


def test_nonsense_in_the_queues_harms_nobody(fleet: Fleet) -> None:
    send = sender(fleet.settings[Side.SOURCE])
    with fleet.server.client() as client:
        client.lpush(f"droveway:{CONTROL_QUEUE}", b"not even JSON")
    send(Reconcile.model_construct(version=7), CONTROL_QUEUE)
    send(Reconcile.model_construct(version=1, host="../x"), host_queue("alpha", Side.SOURCE))
    send(Reconcile(), CONTROL_QUEUE)
    fleet.begun()
    fleet.let_go()
    fleet.completed_once()


def test_a_worker_told_to_stop_leaves_its_mover_and_gives_its_role_back(fleet: Fleet) -> None:
    fleet.begun()
    worker = fleet.workers[Side.SOURCE]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert any(attempt.alive() for attempt in fleet.attempts())
    assert "alpha" not in fleet.ledger.fleet().hosts
    fleet.start_worker(Side.SOURCE)
    fleet.let_go()
    fleet.completed_once()
