"""`droveway reconcile` after a move was cut off: it finishes what the journals decide, and says what they cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import RedisSettings
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.host import LocalHost
from tests.redis_server import RedisServer
from workers.guests.contract import RunState

ROOT = Path(__file__).parents[2]


class CutOff:
    """Two hosts, and a move between them whose movers and workers are killed at a named step."""

    def __init__(self) -> None:
        self.redis = RedisServer()
        self.redis.start()
        self._fault = self.redis.directory / "fault"
        self.fleet = LocalFleet(
            RedisSettings.model_validate({"url": self.redis.url}),
            overrides={"worker.lease": 2},
            environment={"DROVEWAY_FAULT": f"file={self._fault}"},
        )
        self.alpha, self.beta = self.fleet.hosts.values()

    def close(self) -> None:
        self.fleet.close()
        self.redis.close()

    def cut_off(self, point: str) -> str:
        """The migration of `web` whose movers died there; no worker is left to settle it."""
        self.fleet.start()
        self.call(self.alpha, "guest", "start", "web", "--memory", "8M")
        self._fault.write_text(f"stop-at={point}")
        migration = str(self.call(self.alpha, "migrate", "web", "--to", "beta", "--detach")["migration"])
        host = self.alpha if point.startswith("source") else self.beta
        until(lambda: any(_stopped(attempt.directory / "pid") for attempt in host.attempts()))
        for each in self.fleet.hosts.values():
            each.kill()
        # The one that is held last: the other would notice, and act upon it.
        for each in (self.beta, self.alpha) if host is self.alpha else (self.alpha, self.beta):
            each.kill_movers()
        return migration

    def call(self, host: LocalHost, *words: str, code: int = 0) -> dict[str, Any]:
        """The document of a call on that host, which must end so."""
        done = subprocess.run(
            [sys.executable, "-m", "tasks.cli.main", *words, "--json"],
            capture_output=True,
            text=True,
            env=os.environ | host.settings.environment(),
            cwd=ROOT,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def states(self) -> dict[str, RunState | None]:
        """How each copy of the guest is, by host."""
        return {host.name: guest.status for host in self.fleet.hosts.values() for guest in host.guests.list()}


@pytest.fixture
def scene() -> Iterator[CutOff]:
    made = CutOff()
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)


def _stopped(pid_file: Path) -> bool:
    try:
        pid = json.loads(pid_file.read_text())["pid"]
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_was_cut_off_before_it_was_given_goes_on_at_the_source(scene: CutOff) -> None:
    migration = scene.cut_off("source.paused")
    assert scene.states() == {"alpha": RunState.PAUSED, "beta": RunState.INMIGRATE}
    assert scene.call(scene.alpha, "guest", "stop", "web", code=3)["error"]["reason"] == "unresolved"
    (settled,) = scene.call(scene.alpha, "reconcile", "web")["settled"]
    assert (settled["migration"], settled["side"], settled["outcome"]) == (migration, "source", "failed")
    assert "it goes on here" in settled["message"]
    scene.call(scene.beta, "reconcile")
    assert scene.states() == {"alpha": RunState.RUNNING}
    assert scene.call(scene.alpha, "status", migration, "--watch", code=6)["state"] == "failed"
    assert scene.call(scene.alpha, "guest", "check", "web", "--full")["corrupt"] == 0


def test_the_source_settles_by_its_journal_alone_while_redis_is_away(scene: CutOff) -> None:
    scene.cut_off("source.paused")
    scene.redis.kill()
    said = scene.call(scene.alpha, "reconcile", code=5)
    assert [each["outcome"] for each in said["settled"]] == ["failed"]
    assert "cannot be reached" in said["settled"][0]["untold"]
    assert scene.states()["alpha"] is RunState.RUNNING


def test_what_nobody_confirmed_stays_until_both_hosts_can_tell(scene: CutOff) -> None:
    scene.cut_off("destination.journal-taken")
    said = scene.call(scene.alpha, "reconcile", code=8)
    assert said["unresolved"] == ["web"]
    assert said["error"]["exit_code"] == 8
    assert RunState.RUNNING not in scene.states().values()
    scene.call(scene.beta, "reconcile")
    assert scene.states()["beta"] is RunState.RUNNING
    said = scene.call(scene.alpha, "reconcile")
    assert [each["outcome"] for each in said["settled"]] == ["completed"]
    assert scene.states() == {"beta": RunState.RUNNING}


def test_a_guest_is_taken_back_only_from_the_host_that_was_named(scene: CutOff) -> None:
    scene.cut_off("destination.journal-taken")
    refused = scene.call(scene.alpha, "reconcile", "web", "--fenced", "gamma", code=3)["error"]
    assert refused["reason"] == "nothing-fenced"
    assert scene.states()["alpha"] is RunState.PAUSED
    said = scene.call(scene.alpha, "reconcile", "web", "--fenced", "beta")
    assert [each["reason"] for each in said["settled"]] == ["taken-back"]
    assert scene.states()["alpha"] is RunState.RUNNING
    scene.call(scene.beta, "reconcile")  # it came back after all, and must not run its copy
    assert scene.states() == {"alpha": RunState.RUNNING}
