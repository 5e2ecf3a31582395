"""A supervisor, a real Redis, and movers that say what they are told: whatever ends, the next goes on from there."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from config.errors import HostError, MessageError, RefusedError
from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.host import HostService, Offered
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import DestinationDoorbell, SourceDoorbell
from tasks.records import LocalGuest, MigrationRecord, Submission
from tasks.requests import snapshot
from tasks.supervise import Settle, Supervisor
from tests.redis_server import RedisServer
from workers.attempt import Attempt, Status
from workers.metrics.exporter import Exporter
from workers.pairing.contract import Side, Ticket

GIB = 1 << 30
MOVER = (sys.executable, str(Path(__file__).with_name("scripted_mover.py")))
OFFERED = Offered("::1", "1", 4 * GIB, None, (), (), (), dict.fromkeys(Side, 1))


def until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class SilentBell:
    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


def never(attempt: Attempt) -> Status:
    raise AssertionError("nothing here was cut off")


class Alpha:
    """The source role of one host; `worker()` is a worker's life, `restart()` the next one's."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        redis = RedisSettings(url=SecretStr(server.url))
        self.settings = Settings(redis=redis, worker=WorkerSettings(lease=3, poll_interval=0.05))
        self.directory = directory
        self.ledger = Ledger(self.settings)
        self.metrics = Exporter()
        self.poll = 0.05
        self.settle: Settle = never
        self.service = self.worker()

    def worker(self) -> HostService:
        def settle(attempt: Attempt) -> Status:
            return self.settle(attempt)  # whatever the test has set by then

        supervisor = Supervisor(self.ledger, settle, self.metrics, {}, self.poll, 3, command=MOVER)
        return HostService(
            host="alpha",
            side=Side.SOURCE,
            state_dir=self.directory,
            ledger=self.ledger,
            bell=SilentBell(),
            supervisor=supervisor,
            metrics=self.metrics,
            offered=OFFERED,
            owned_guests=lambda: [LocalGuest("web", GIB, 0)],
            journal_facts=list,
            heartbeat_interval=0.1,
            reconcile_interval=0.3,
        )

    def restart(self) -> None:
        self.service.stop()
        self.service = self.worker()
        self.service.start()

    def admitted(self) -> SourceDoorbell:
        """A migration that waits for its source."""
        self.service.beat()
        for side in Side:
            self.ledger.heartbeat("beta", side, OFFERED.fields(), [], [])
        assert self.ledger.submit(Submission("m-1", "web", "alpha", "beta", GIB, {}, {}))[0] is Answer.OK
        assert self.ledger.admit() == ["m-1"]
        return SourceDoorbell(migration="m-1", guest="web", epoch=1, source="alpha", destination="beta")

    def wish(self, name: str, text: str = "") -> None:
        (self.directory / name).write_text(text)

    def starts(self) -> list[str]:
        path = self.directory / "starts"
        return path.read_text().split() if path.exists() else []

    def attempts(self) -> list[Attempt]:
        return list(Attempt.all(self.directory))

    def counted(self, sample: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(sample, labels)

    def close(self) -> None:
        self.service.stop()
        self.wish("go")
        for attempt in self.attempts():
            assert attempt.wait(30)
        self.ledger.close()


@pytest.fixture
def alpha(own_redis_server: RedisServer, tmp_path: Path) -> Iterator[Alpha]:
    alpha = Alpha(own_redis_server, tmp_path)
    alpha.service.start()
    yield alpha
    alpha.close()


def moving(alpha: Alpha) -> None:
    alpha.service.answer(alpha.admitted())
    until("the mover's progress", lambda: snapshot(alpha.ledger, "m-1").state == "active")


def ended(alpha: Alpha, state: str) -> None:
    until(f"the end as {state}", lambda: snapshot(alpha.ledger, "m-1").state == state)
    until("the directory's end", lambda: not alpha.attempts())


def test_what_becomes_known_of_its_qemu_is_said_with_the_next_heartbeat(alpha: Alpha) -> None:
    alpha.service.beat()
    assert alpha.ledger.fleet().hosts["alpha"].cpu_models == frozenset()
    alpha.service.cpu_models = lambda: {"EPYC", "max"}
    until("the models", lambda: alpha.ledger.fleet().hosts["alpha"].cpu_models == {"EPYC", "max"})


def test_an_end_is_told_at_once_however_seldom_the_supervisor_looks(alpha: Alpha) -> None:
    moving(alpha)
    alpha.poll = 3600
    alpha.restart()
    alpha.wish("go")
    ended(alpha, "completed")


def test_a_move_is_followed_from_the_doorbell_to_the_record(alpha: Alpha) -> None:
    moving(alpha)
    assert alpha.counted("droveway_migrations_in_flight", side="source") == 1
    alpha.wish("go")
    ended(alpha, "completed")
    until("the thread's end", lambda: alpha.counted("droveway_migrations_in_flight", side="source") == 0)
    assert alpha.counted("droveway_migrations_total", state="completed", reason="none") == 1
    assert alpha.counted("droveway_queue_wait_seconds_count") == 1
    assert alpha.ledger.fleet().guests["web"].host == "beta"


def test_the_same_doorbell_again_and_again_starts_one_mover(alpha: Alpha) -> None:
    doorbell = alpha.admitted()
    rings = [threading.Thread(target=alpha.service.answer, args=(doorbell,)) for _ in range(6)]
    for ring in rings:
        ring.start()
    for ring in rings:
        ring.join()
    until("a start", alpha.starts)
    alpha.wish("go")
    ended(alpha, "completed")
    alpha.service.answer(doorbell)
    assert alpha.starts() == ["m-1.1.source"]
    assert alpha.counted("droveway_duplicate_deliveries_total", side="source") == 6


@pytest.mark.parametrize(
    "change", [{"epoch": 2}, {"guest": "db"}, {"destination": "gamma"}, {"migration": "m-2"}, {"source": "delta"}]
)
def test_a_doorbell_that_disagrees_with_the_record_starts_nothing(alpha: Alpha, change: dict[str, object]) -> None:
    doorbell = alpha.admitted().model_copy(update=change)
    with pytest.raises(MessageError):
        alpha.service.answer(doorbell)
    assert alpha.attempts() == []


def test_a_doorbell_for_the_other_role_starts_nothing(alpha: Alpha) -> None:
    fields = alpha.admitted().model_dump(exclude={"side"})
    with pytest.raises(MessageError, match="queues"):
        alpha.service.answer(DestinationDoorbell(**fields))


def test_what_another_holder_took_is_not_started_here(alpha: Alpha) -> None:
    doorbell = alpha.admitted()
    assert alpha.ledger.claim(Ticket("m-1", "web", 1, Side.SOURCE, "stranger")) is Answer.OK
    alpha.service.answer(doorbell)
    until("the directory's end", lambda: not alpha.attempts())
    assert alpha.starts() == []
    assert alpha.counted("droveway_duplicate_deliveries_total", side="source") == 1


def test_the_next_worker_takes_up_a_mover_that_goes_on(alpha: Alpha) -> None:
    moving(alpha)
    alpha.service.stop()
    assert [attempt.alive() for attempt in alpha.attempts()] == [True]
    alpha.service = alpha.worker()
    alpha.service.start()
    alpha.wish("go")
    ended(alpha, "completed")
    assert alpha.starts() == ["m-1.1.source"]


def test_the_next_worker_takes_up_what_was_claimed_and_never_started(alpha: Alpha) -> None:
    alpha.service.stop()
    doorbell = alpha.admitted()
    stopped = alpha.worker()
    stopped.supervisor.detach()  # a worker that was killed right after it wrote the job down
    stopped.answer(doorbell)
    assert [attempt.started() for attempt in alpha.attempts()] == [False]
    alpha.service = alpha.worker()
    alpha.service.start()
    alpha.wish("go")
    ended(alpha, "completed")


def test_an_end_that_came_while_nobody_looked_is_told(alpha: Alpha) -> None:
    moving(alpha)
    alpha.service.stop()
    alpha.wish("go")
    assert all(attempt.wait(30) for attempt in alpha.attempts())
    assert snapshot(alpha.ledger, "m-1").state == "active"
    alpha.service = alpha.worker()
    alpha.service.start()
    ended(alpha, "completed")


def test_a_mover_that_died_is_settled_from_the_journal(alpha: Alpha, caplog: pytest.LogCaptureFixture) -> None:
    moving(alpha)
    (attempt,) = alpha.attempts()
    (attempt.directory / "log").write_text("a" * 5000 + " MemoryError")
    settled = []

    def settle(attempt: Attempt) -> Status:
        settled.append(attempt.directory.name)
        return Status(state="failed", outcome="failed", reason="mover-died", message="it died")

    alpha.settle = settle
    os.kill(_pid(alpha), signal.SIGKILL)
    ended(alpha, "failed")
    assert settled == ["m-1.1.source"]
    assert snapshot(alpha.ledger, "m-1").reason == "mover-died"
    assert alpha.counted("droveway_migrations_total", state="failed", reason="mover-died") == 1
    (said,) = [each.getMessage() for each in caplog.records if "last words" in each.getMessage()]
    assert said.startswith("m-1.1.source: the last words of its mover:\naaa")
    assert said.endswith("aaa MemoryError")
    assert len(said) < 4200


def test_what_cannot_be_settled_yet_stays_and_is_tried_again(alpha: Alpha) -> None:
    moving(alpha)
    answers = iter([Status(outcome="unresolved", state="device"), RefusedError("busy", "busy"), None])

    def settle(attempt: Attempt) -> Status:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer or Status(state="completed", outcome="completed")

    alpha.settle = settle
    os.kill(_pid(alpha), signal.SIGKILL)
    ended(alpha, "completed")


def test_cancelling_reaches_the_mover(alpha: Alpha) -> None:
    moving(alpha)
    assert alpha.ledger.cancel("m-1", "")[0] is Answer.ASKED
    ended(alpha, "cancelled")


@pytest.mark.parametrize("loses_everything", [False, True])
def test_a_redis_that_comes_back_hears_the_end(
    alpha: Alpha, own_redis_server: RedisServer, loses_everything: bool
) -> None:
    moving(alpha)
    own_redis_server.kill()
    alpha.wish("go")
    assert all(attempt.wait(30) for attempt in alpha.attempts())
    # Not started in between: the end would be told, and forgotten with everything else.
    own_redis_server.forget() if loses_everything else own_redis_server.start()
    until("the record", lambda: alpha.ledger.find("m-1") is not None)
    ended(alpha, "completed")


def test_a_claim_that_was_given_away_is_counted_and_the_mover_asked_to_cancel(
    alpha: Alpha, own_redis_server: RedisServer
) -> None:
    moving(alpha)
    with own_redis_server.client() as client:
        client.hset("droveway:migration:m-1", "claim:source", "stranger")
    until("the count", lambda: alpha.counted("droveway_leases_lost_total", side="source") == 1)
    until("the directory's end", lambda: not alpha.attempts())
    assert snapshot(alpha.ledger, "m-1").state == "active"  # the stranger's to end


def test_an_attempt_whose_directory_is_gone_is_settled_all_the_same(
    alpha: Alpha, own_redis_server: RedisServer
) -> None:
    moving(alpha)
    alpha.service.stop()
    (attempt,) = alpha.attempts()
    os.kill(_pid(alpha), signal.SIGKILL)
    assert attempt.wait(30)
    attempt.remove()
    with own_redis_server.client() as client:
        client.hset("droveway:migration:m-1", "lease:source", 1)
    alpha.settle = lambda attempt: Status(state="failed", outcome="failed", reason="mover-died")
    alpha.service = alpha.worker()
    alpha.service.start()
    ended(alpha, "failed")


def test_the_fleet_is_looked_over_by_one_of_its_workers_in_an_interval(
    alpha: Alpha, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass reads all records: did each of two thousand workers make it, Redis would do nothing else."""
    alpha.service.stop()
    workers = [alpha.worker() for _ in range(4)]
    passes: list[float] = []
    monkeypatch.setattr(alpha.ledger, "prune", lambda: passes.append(time.monotonic()))
    for worker in workers:
        worker.reconcile_interval = 2.0
    for count in (1, 2):
        for worker in workers:
            worker.look_over()
        assert len(passes) == count
        time.sleep(2.0)


def test_a_second_worker_of_the_same_role_is_refused(alpha: Alpha) -> None:
    with pytest.raises(HostError, match="source worker runs on this host already"):
        alpha.worker().start()


def _pid(alpha: Alpha) -> int:
    (attempt,) = alpha.attempts()
    return int(json.loads((attempt.directory / "pid").read_text())["pid"])
