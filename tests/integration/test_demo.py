"""`droveway demo` as it is called: it shows what it promises, fails when memory is harmed, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tasks.cli.main", "demo"]
SMALL = ["--memory", "64M", "--dirty-rate", "20M"]


class Place:
    """A temporary directory that a demo and everything it starts are given, so that they can be found again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"TMPDIR": str(directory)}

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *SMALL, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | environment,
            cwd=ROOT,
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        demo = self.start(*words, **environment)
        out, err = demo.communicate(timeout=200)
        return demo.returncode, out, err

    def fleets(self) -> list[Path]:
        return list(self.directory.glob("droveway-fleet-*"))

    def processes(self) -> list[int]:
        mark = f"TMPDIR={self.directory}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def assert_empty(self) -> None:
        """Nothing is there any more; processes that were killed may take a moment to be gone."""
        until(lambda: not self.processes())
        assert self.fleets() == []


@pytest.fixture
def place() -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="dw-"))  # not pytest's: paths of unix sockets must be short
    try:
        yield Place(directory)
    finally:
        shutil.rmtree(directory)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def ram_files(names: list[str]) -> list[Path]:
    return [path for name in names for path in Path("/dev/shm").glob(name)]


def test_it_moves_a_live_guest_to_and_fro_and_prints_the_promised_document(place: Place) -> None:
    code, out, err = place.run("--json")
    assert (code, err) == (0, "")
    moves: list[dict[str, Any]] = json.loads(out)["migrations"]
    assert [move["capabilities"]["rdma-pin-all"] for move in moves] == [False, True]
    for move in moves:
        assert set(move) == {"capabilities", "state", "seconds", "transferred_bytes", "rounds", "guest"}
        assert move["state"] == "completed"
        assert set(move["seconds"]) == {"total", "registration", "bulk", "rounds", "downtime"}
        assert 0 < move["seconds"]["downtime"] < move["seconds"]["total"]
        assert move["rounds"][0]["kind"] == "bulk"
        assert move["rounds"][-1]["kind"] == "final"
        assert move["transferred_bytes"] == sum(each["sent"] for each in move["rounds"])
        assert move["transferred_bytes"] > 40 << 20
        assert move["guest"]["corrupt"] == 0
        assert move["guest"]["pages_checked"] > 10_000
        assert move["guest"]["longest_gap_seconds"] > 0
    place.assert_empty()


def test_a_server_that_was_given_is_used_and_keeps_none_of_our_keys(place: Place, redis_url: str) -> None:
    code, out, _ = place.run(DROVEWAY_REDIS__URL=redis_url)
    assert code == 0
    assert redis_url in out
    assert "completed" in out
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match="droveway-demo-*")) == []
    place.assert_empty()


def test_memory_that_was_harmed_cannot_pass(place: Place) -> None:
    # So many writes that some fall into the last interval, however short; so much memory that they are not all undone.
    busy = ("--memory", "256M", "--dirty-rate", "100M")
    code, out, err = place.run("--json", *busy, DROVEWAY_FAULT="drop-final-dirty")
    assert code == 6, err
    document = json.loads(out)
    assert document["error"]["reason"] == "corrupt"
    assert "CORRUPT" in document["error"]["message"]
    assert sum(move["guest"]["corrupt"] for move in document["migrations"]) > 0
    place.assert_empty()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_clears_up_when_it_is_interrupted(place: Place, number: signal.Signals) -> None:
    demo = place.start()
    until(lambda: list(place.directory.glob("droveway-fleet-*/alpha/guests/demo/control")))
    names = [path.name for path in place.fleets()]
    assert ram_files(names)
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    place.assert_empty()
    assert ram_files(names) == []


def test_what_a_killed_one_left_is_cleared_by_the_next(place: Place) -> None:
    demo = place.start()
    until(lambda: list(place.directory.glob("droveway-fleet-*/alpha/guests/demo/control")))
    names = [path.name for path in place.fleets()]
    demo.kill()
    demo.communicate(timeout=60)
    code, out, err = place.run()
    assert code == 0, err
    assert "cleared up after a demo that was killed" in out
    place.assert_empty()
    assert ram_files(names) == []


def test_a_failure_shows_the_ends_of_the_logs_and_clears_up(place: Place) -> None:
    demo = place.start(DROVEWAY_FAULT="stop-at=source.bulk")
    movers: list[Path] = []

    def stopped() -> bool:
        movers[:] = place.directory.glob("droveway-fleet-*/alpha/movers/*.source/pid")
        return any(_state(json.loads(path.read_text())["pid"]) == "T" for path in movers)

    until(stopped)
    os.kill(json.loads(movers[0].read_text())["pid"], signal.SIGKILL)
    err = demo.communicate(timeout=200)[1]
    assert demo.returncode == 6
    assert "alpha/source.log" in err
    assert err.strip().splitlines()[-1].startswith("droveway: ")
    place.assert_empty()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_more_memory_than_there_is_gets_refused_before_anything_starts(place: Place) -> None:
    code, _, err = place.run("--memory", "64T")
    assert code == 4
    assert "--memory" in err
    place.assert_empty()
