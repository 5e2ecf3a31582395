"""`droveway doctor` on this machine: real kernel, real disks, a real Redis that is harmed in turn."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from config.settings import load_settings
from tasks.app import offered
from tasks.certificates import Bearer, make
from tasks.doctor.look import certificate, directory, look
from tasks.ledger.ledger import Ledger
from tests.integration.console import Console, fleet_in
from tests.redis_server import CONFIGURATION, RedisServer
from workers.pairing.contract import Side
from workers.wire import WIRE


@pytest.fixture
def host(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    """A host of its own on this machine, whose settings the command reads."""
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("DROVEWAY_HOST__NAME", "alpha")
    monkeypatch.setenv("DROVEWAY_HOST__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DROVEWAY_HOST__METRICS_SOURCE_PORT", "0")
    monkeypatch.setenv("DROVEWAY_HOST__METRICS_DESTINATION_PORT", "0")
    return console


def examined(console: Console) -> dict[str, dict[str, str]]:
    """The findings by their check; exit code and `fit` are as these say."""
    code, out, err = console("doctor", "--json")
    assert err == ""
    said = json.loads(out)
    failed = [each["check"] for each in said["findings"] if each["state"] == "fail"]
    assert (code, said["fit"]) == ((4, False) if failed else (0, True))
    return {each["check"]: each for each in said["findings"]}


def state(findings: dict[str, dict[str, str]], check: str) -> tuple[str, str]:
    return findings[check]["state"], f"{findings[check]['seen']} -> {findings[check]['todo']}"


def test_a_host_beside_the_shipped_redis(host: Console, own_redis_server: RedisServer, tmp_path: Path) -> None:
    with own_redis_server.client() as client:
        before = client.dbsize()
        findings = examined(host)
        assert client.dbsize() == before
    assert list((tmp_path / "state").iterdir()) == []
    assert findings["versions"]["state"] == "warn", "the other host does not say what it speaks"
    for check in ("Redis", "Redis' durability", "Redis' rights", "clock"):
        assert state(findings, check)[0] == "ok", findings[check]
    assert "appendfsync always" in findings["Redis' durability"]["seen"]
    assert findings["workers"]["state"] == "skip"
    assert "synced write" in findings["state directory"]["seen"]
    assert os.uname().release in findings["dirty tracking"]["seen"]
    assert findings["dirty tracking"]["state"] != "fail"


def test_the_table_says_the_same(host: Console) -> None:
    code, out, _ = host("doctor")
    assert code in (0, 4)
    assert re.search(r"Redis' durability +ok", out)
    assert "WHAT TO DO" in out


def test_a_redis_that_forgets_or_drops_is_found(host: Console, own_redis_server: RedisServer) -> None:
    for setting, value, verdict in (
        ("appendfsync", "everysec", "warn"),
        ("appendfsync", "no", "fail"),
        ("maxmemory-policy", "allkeys-lru", "fail"),
        ("appendonly", "no", "fail"),
    ):
        with own_redis_server.client() as client:
            was = client.config_get(setting)[setting]
            client.config_set(setting, value)
            assert state(examined(host), "Redis' durability")[0] == verdict, setting
            client.config_set(setting, was)
    assert state(examined(host), "Redis' durability")[0] == "ok"


def test_a_redis_that_is_away_is_one_finding_and_no_traceback(host: Console, own_redis_server: RedisServer) -> None:
    own_redis_server.kill()
    findings = examined(host)
    assert state(findings, "Redis")[0] == "fail"
    assert findings["clock"]["state"] == findings["versions"]["state"] == "skip"
    own_redis_server.start()


@pytest.mark.parametrize(
    ("user", "without", "verdict", "says"),
    [
        ("droveway", (), "ok", "every command"),
        ("droveway", ("+hset", "+xadd"), "fail", "may not HSET, XADD"),
        ("droveway", ("~droveway:*",), "fail", "may not touch droveway:"),
        ("droveway-reader", (), "warn", "may only read"),
    ],
)
def test_rights_are_tried_and_not_asked_for(
    host: Console,
    own_redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
    without: tuple[str, ...],
    verdict: str,
    says: str,
) -> None:
    acl = CONFIGURATION.with_name("droveway.acl").read_text()
    (line,) = [line for line in acl.splitlines() if line.startswith(f"user {user} ")]
    rules = [">secret" if rule.startswith("#") else rule for rule in line.split()[2:] if rule not in without]
    with own_redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", user, *rules)
        monkeypatch.setenv("DROVEWAY_REDIS__URL", f"unix://{user}:secret@{own_redis_server.socket}")
        findings = examined(host)
        assert client.keys("*doctor*") == []
    assert state(findings, "Redis' rights")[0] == verdict
    assert says in findings["Redis' rights"]["seen"]
    assert findings["Redis' durability"]["state"] == "ok", "whoever may give the shipped rights sees that much"


def test_a_host_that_is_left_behind_is_named(host: Console, own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger:
        for side in Side:
            ledger.heartbeat("beta", side, offered(settings).fields() | {"wire": str(WIRE - 2)}, [], [])
    verdict, said = state(examined(host), "versions")
    assert verdict == "fail"
    assert f"beta {WIRE - 2}" in said


def test_ports_and_workers_are_those_of_this_host(
    host: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken, (tmp_path / "state" / "source.lock").open("w") as lock:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("DROVEWAY_HOST__PORTS", f"{port}-{port}")
        assert state(examined(host), "ports")[0] == "fail"
        monkeypatch.delenv("DROVEWAY_HOST__PORTS")
        monkeypatch.setenv("DROVEWAY_HOST__METRICS_SOURCE_PORT", str(port))
        verdict, said = state(examined(host), "ports")
        assert (verdict, str(port) in said) == ("fail", True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        findings = examined(host)
        assert "only the source worker" in findings["workers"]["seen"]
        assert findings["ports"]["state"] != "fail", "its own worker has it"
    monkeypatch.setenv("DROVEWAY_HOST__ADDRESS", "192.0.2.77")
    assert "does not have this address" in examined(host)["ports"]["seen"]


def test_directories_are_looked_at_where_they_would_be_made(tmp_path: Path) -> None:
    there = directory(tmp_path / "not" / "yet", synced=True)
    assert there.problem == ""
    assert there.synced is not None
    assert there.synced < 10
    assert list(tmp_path.iterdir()) == []
    assert directory(Path("/dev/shm/droveway")).filesystem in ("tmpfs", "overlay")
    assert directory(Path("/proc/nowhere"), synced=True).problem
    (tmp_path / "file").touch()
    assert "is no directory" in directory(tmp_path / "file" / "below").problem


def test_certificates_are_read_with_their_keys_and_their_authority(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for name in ("one", "two"):
        make(tmp_path / name, [Bearer("alpha", "alpha")], now=now, days=10, ca_days=100, replace=False)
    one, two = tmp_path / "one", tmp_path / "two"
    sound = certificate("tls", one / "alpha.pem", one / "alpha.key", one / "ca.pem")
    assert (sound.problem, sound.names, sound.key_mode) == ("", ("alpha",), 0o600)
    assert sound.until is not None
    assert sound.ca_until is not None
    assert (sound.ca_until - sound.until).days == 90
    assert "not its key" in certificate("tls", one / "alpha.pem", two / "alpha.key", one / "ca.pem").problem
    assert "vouches" in certificate("tls", one / "alpha.pem", one / "alpha.key", two / "ca.pem").problem
    assert "cannot be read" in certificate("tls", one / "alpha.pem", one / "none.key", one / "ca.pem").problem
    (one / "both.pem").write_bytes((two / "ca.pem").read_bytes() + (one / "ca.pem").read_bytes())
    assert certificate("tls", one / "alpha.pem", one / "alpha.key", one / "both.pem").problem == ""


def test_a_url_is_local_or_not(redis_url: str) -> None:
    facts = look(load_settings(environment={}, overrides={"redis.url": redis_url}))
    assert facts.redis.local
    away = look(
        load_settings(environment={}, overrides={"redis.url": "redis://192.0.2.9:1/0", "redis.connect_timeout": 0.01})
    )
    assert (away.redis.local, bool(away.redis.problem)) == (False, True)
