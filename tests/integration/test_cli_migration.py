"""The `droveway` command against two hosts' real workers: what people and scripts get to see, and the exit codes."""

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

from config.settings import RedisSettings
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.host import LocalHost
from tests.redis_server import RedisServer
from workers.pairing.contract import Side

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SLOW = ("--set", "max-bandwidth=1M")


class Command:
    """`droveway` as it is called on one host."""

    def __init__(self, host: LocalHost) -> None:
        self.environment = os.environ | host.settings.environment()

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=ROOT,
        )

    def __call__(self, *words: str) -> tuple[int, str, str]:
        call = self.start(*words)
        out, err = call.communicate(timeout=120)
        return call.returncode, out, err

    def said(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The document of a call with --json, which must end so."""
        got, out, err = self(*words, "--json")
        assert got == code, (out, err)
        document: dict[str, Any] = json.loads(out)
        return document


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    server = RedisServer()
    server.start()
    try:
        with LocalFleet(
            RedisSettings.model_validate({"url": server.url}), ram_bytes=256 * MIB, overrides={"worker.lease": "5s"}
        ) as made:
            made.start()
            yield made
    finally:
        server.close()


@pytest.fixture
def alpha(fleet: LocalFleet) -> Command:
    return Command(fleet.hosts["alpha"])


@pytest.fixture
def beta(fleet: LocalFleet) -> Command:
    return Command(fleet.hosts["beta"])


@pytest.fixture
def guest(alpha: Command, fleet: LocalFleet, request: pytest.FixtureRequest) -> Iterator[str]:
    """A guest on alpha with a name of this test's own; gone afterwards, wherever it went."""
    name = f"g{abs(hash(request.node.name)) % 10**6}"
    alpha.said("guest", "start", name, "--memory", "32M", "--dirty-rate", "1M")
    yield name
    for host in fleet.hosts.values():
        if name in [each.name for each in host.guests.list()]:
            host.guests.stop(name)


def test_a_guest_that_is_stopped_gives_its_memory_back_at_once_and_workers_do_not_bring_it_back(alpha: Command) -> None:
    def seen() -> tuple[bool, int]:
        said = alpha.said("hosts")
        free = next(host["free_bytes"] for host in said["hosts"] if host["host"] == "alpha")
        return "shortlived" in [guest["guest"] for guest in said["guests"]], free

    _, free = seen()
    alpha.said("guest", "start", "shortlived", "--memory", "32M")
    assert seen() == (True, free - 32 * MIB)
    alpha.said("guest", "stop", "shortlived")
    assert seen() == (False, free)
    deadline = time.monotonic() + 5  # three heartbeats of each worker
    while time.monotonic() < deadline:
        assert seen() == (False, free)


def test_a_guest_is_stopped_without_a_word_while_redis_is_away(alpha: Command) -> None:
    alpha.said("guest", "start", "shortlived", "--memory", "32M")
    code, _, err = alpha("guest", "stop", "shortlived", "--redis", "unix:///nowhere/redis.sock")
    assert (code, err) == (0, "")


def test_a_guest_moves_and_everything_about_it_can_be_asked(alpha: Command, beta: Command, guest: str) -> None:
    moved = alpha.said("migrate", guest, "--to", "beta", "--capability", "rdma-pin-all=on", "--set", "channels=2")
    assert moved["state"] == "completed"
    assert moved["capabilities"]["rdma-pin-all"] is True
    assert moved["parameters"]["channels"] == 2
    assert moved["choices"]["policy"] == "pin-all"
    assert moved["seconds"]["downtime"] > 0
    assert moved["source"]["outcome"] == moved["destination"]["outcome"] == "completed"
    assert alpha.said("show", moved["migration"]) == alpha.said("status", moved["migration"])
    assert moved["migration"] in [each["migration"] for each in alpha.said("list")["migrations"]]
    assert [each["name"] for each in beta.said("guest", "list")["guests"] if each["name"] == guest] == [guest]
    check = beta.said("guest", "check", guest, "--full")
    assert (check["corrupt"], check["full_check"]["corrupt"]) == (0, 0)
    code, out, _ = alpha("show", moved["migration"])
    assert code == 0
    assert "rdma-pin-all" in out
    assert "switch-over" in out


def test_a_pipe_gets_plain_lines_and_a_summary(alpha: Command, guest: str) -> None:
    code, out, err = alpha("migrate", guest, "--to", "beta")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert any(line.startswith(f"{guest} alpha→beta: round 0 (bulk)") for line in lines)
    assert f"{guest} alpha→beta: completed" in lines
    assert "dirty tracker" in out


def test_ctrl_c_leaves_the_move_running_and_says_how_to_go_on(alpha: Command, guest: str) -> None:
    following = alpha.start("migrate", guest, "--to", "beta", *SLOW)
    assert following.stdout is not None
    until(lambda: ": active" in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    migration = err.split()[0]
    assert f"droveway status {migration} --watch" in err
    assert f"droveway cancel {migration}" in err
    assert "Traceback" not in err
    assert alpha.said("status", migration)["state"] == "active"
    assert alpha.said("cancel", migration)["state"] == "cancelling"
    ended = alpha.said("status", migration, "--watch", code=7)
    assert ended["state"] == "cancelled"
    assert ended["error"]["exit_code"] == 7
    assert [each["status"] for each in alpha.said("guest", "list")["guests"] if each["name"] == guest] == ["running"]


def test_a_detached_move_is_only_submitted_and_a_second_one_is_refused(alpha: Command, guest: str) -> None:
    submitted = alpha.said("migrate", guest, "--to", "beta", "--detach", *SLOW)
    migration = submitted["migration"]
    refused = alpha.said("migrate", guest, "--to", "beta", code=3)["error"]
    assert refused["reason"] == "busy"
    assert migration in refused["message"]
    until(lambda: alpha.said("status", migration)["state"] == "active")
    assert alpha.said("guest", "stop", guest, code=3)["error"]["reason"] == "busy"
    assert alpha.said("cancel", migration)["state"] == "cancelling"
    assert alpha.said("status", migration, "--watch", code=7)["state"] == "cancelled"
    assert alpha.said("cancel", migration, code=3)["error"]["reason"] == "ended"


def test_what_the_fleet_refuses_is_refused_with_its_reason_and_touches_nothing(alpha: Command, guest: str) -> None:
    refusals = {
        ("nosuch", "beta"): "unknown-guest",
        (guest, "nosuch"): "unknown-host",
        (guest, "alpha"): "same-host",
    }
    for (name, host), reason in refusals.items():
        assert alpha.said("migrate", name, "--to", host, code=3)["error"]["reason"] == reason
    assert alpha.said("status", "m-nosuch", code=3)["error"]["reason"] == "unknown-migration"
    assert alpha.said("status")["migrations"] == []
    assert alpha.said("guest", "check", guest)["corrupt"] == 0


def test_a_name_that_the_fleet_has_is_not_given_twice(beta: Command, guest: str) -> None:
    refused = beta.said("guest", "start", guest, "--memory", "1M", code=3)["error"]
    assert refused["reason"] == "guest-exists"
    assert "alpha" in refused["message"]


def test_a_guest_may_start_while_redis_is_away(alpha: Command, fleet: LocalFleet) -> None:
    nowhere = ("--redis", "unix:///nonexistent/redis.sock")
    try:
        started = alpha.said("guest", "start", "early", "--memory", "1M", *nowhere)
        assert "before a worker of this host announces it" in started["warning"]
        assert "early" in [each["name"] for each in alpha.said("guest", "list", *nowhere)["guests"]]
    finally:
        assert alpha("guest", "stop", "early")[0] == 0
    assert "early" not in [each.name for each in fleet.hosts["alpha"].guests.list()]


def test_a_guest_starts_on_a_host_that_was_just_booted(alpha: Command, tmp_path: Path) -> None:
    ram = Path(tempfile.mkdtemp(dir="/dev/shm")) / "droveway"
    alpha.environment["DROVEWAY_HOST__RAM_DIR"] = str(ram)
    away = ("--state-dir", str(tmp_path / "state"), "--redis", "unix:///nonexistent/redis.sock")
    try:
        alpha.said("guest", "start", "first", "--memory", "1M", *away)
        alpha.said("guest", "stop", "first", *away)
        assert list(ram.iterdir()) == []
    finally:
        shutil.rmtree(ram.parent)


def test_hosts_say_what_they_have(alpha: Command, guest: str) -> None:
    hosts = {each["host"]: each for each in alpha.said("hosts")["hosts"]}
    assert set(hosts) == {"alpha", "beta"}
    assert hosts["alpha"]["workers"] == ["destination", "source"]
    code, out, _ = alpha("hosts")
    assert code == 0
    assert "beta" in out


def test_reconcile_finds_nothing_in_a_healthy_fleet(alpha: Command) -> None:
    code, out, err = alpha("reconcile")
    assert (code, err) == (0, "")
    assert out


def test_one_command_runs_both_roles_and_ends_them_with_it(fleet: LocalFleet, tmp_path: Path) -> None:
    both = Command(fleet.hosts["alpha"])
    gamma = ("--host", "gamma", "--state-dir", str(tmp_path))
    worker = both.start("worker", *gamma)
    until(lambda: both.said("hosts", *gamma) and _roles(both, "gamma") == ["destination", "source"])
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert _children(worker.pid) == []


def test_when_one_role_ends_on_its_own_the_other_is_stopped_and_it_is_said(fleet: LocalFleet, tmp_path: Path) -> None:
    both = Command(fleet.hosts["alpha"])
    worker = both.start("worker", "--host", "delta", "--state-dir", str(tmp_path))
    until(lambda: _roles(both, "delta") == ["destination", "source"])
    source = next(pid for pid in _children(worker.pid) if b"source" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(source, signal.SIGKILL)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 4
    assert "droveway: the source worker of delta ended on its own (by SIGKILL)" in err


def test_a_host_whose_workers_stopped_is_refused_as_destination(fleet: LocalFleet, alpha: Command, guest: str) -> None:
    beta = fleet.hosts["beta"]
    beta.stop(Side.DESTINATION)
    try:
        until(lambda: _roles(alpha, "beta") == ["source"])
        assert alpha.said("migrate", guest, "--to", "beta", code=3)["error"]["reason"] == "no-worker"
    finally:
        beta.start()
        fleet.await_workers()


def _roles(command: Command, host: str) -> list[str]:
    found = [each["workers"] for each in command.said("hosts")["hosts"] if each["host"] == host]
    return list(found[0]) if found else []


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found
