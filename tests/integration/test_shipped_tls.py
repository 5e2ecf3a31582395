"""A fleet as ops/ sets it up: certificates by `droveway certs`, Redis by ops/redis/tls.conf, users by redis-users."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from config.errors import DrovewayError, HostError, UnreachableError
from config.redis import coordination_client, reaching_redis
from config.settings import HostSettings, RedisSettings, Settings, TlsSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.cli.main import main
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.tied import tied_to_us
from tasks.requests import admit, submit, watch
from tests.requirements import missing
from workers.guests.memory_spec import MemoryGuestSpec

OPS = Path(__file__).parents[2] / "ops"


def certs(directory: Path, *words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["certs", str(directory), *words])
    assert ended.value.code == 0


@dataclass(frozen=True)
class Shipped:
    """The server, and where its fleet's files are."""

    port: int
    pki: Path
    passwords: dict[str, str]

    def settings(self, user: str = "droveway", bearer: str | None = "alpha", **others: object) -> RedisSettings:
        password = self.passwords.get(user, "nobody")
        given: dict[str, object] = {
            "url": SecretStr(f"rediss://{user}:{password}@localhost:{self.port}/0"),
            "ca": self.pki / "ca.pem",
        }
        if bearer:
            given |= {"certificate": self.pki / f"{bearer}.pem", "key": self.pki / f"{bearer}.key"}
        return RedisSettings.model_validate(given | others)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    program = shutil.which("redis-server")
    if program is None:
        missing("no redis-server (the wheel's Valkey has no TLS)")
    etc = tmp_path_factory.mktemp("etc")
    (etc / "redis").mkdir()
    certs(etc, "--host", "alpha=127.0.0.1", "--host", "beta=127.0.0.1", "--redis", "localhost=127.0.0.1")
    for name in ("droveway.conf", "tls.conf"):
        text = (OPS / "redis" / name).read_text()
        (etc / "redis" / name).write_text(text.replace("/etc/droveway", str(etc)))
    subprocess.run([OPS / "scripts" / "redis-users", etc / "redis" / "droveway.acl", etc / "passwords"], check=True)
    passwords = dict(line.split() for line in (etc / "passwords").read_text().splitlines())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = etc / "redis.log"
    with log.open("wb") as out:
        words = [program, str(etc / "redis" / "tls.conf"), "--tls-port", str(port), "--dir", str(etc)]
        server = subprocess.Popen(tied_to_us(words), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        found = Shipped(port, etc, passwords)
        for _ in range(200):
            if server.poll() is not None:
                pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield found
    finally:
        server.kill()
        server.wait()


def ask(settings: RedisSettings, *command: str) -> object:
    with coordination_client(settings) as client, reaching_redis(settings):
        return client.execute_command(*command)


def test_a_guest_moves_between_workers_over_tls_with_the_rights_that_are_shipped(shipped: Shipped) -> None:
    with LocalFleet(shipped.settings()) as fleet:
        for name, host in fleet.hosts.items():
            files = {each: shipped.pki / f"{name}.{end}" for each, end in (("certificate", "pem"), ("key", "key"))}
            tls = TlsSettings(ca=shipped.pki / "ca.pem", **files)
            host.settings = host.settings.model_copy(update={"tls": tls, "redis": shipped.settings(bearer=name)})
        fleet.start()
        alpha = fleet.hosts["alpha"]
        started = alpha.guests.start(MemoryGuestSpec("web", 16 << 20, 5 << 20))
        started.wait_filled(30)
        request = MigrateRequest(migration=new_migration_id(), guest="web", destination="beta")
        with closing(Ledger(fleet.settings)) as ledger:
            announce(ledger, alpha.settings, started)
            submit(ledger, request)
            admit(ledger, bell_for(fleet.settings))
            *_, record = watch(ledger, request.migration)
        assert record.state == "completed", record.message
        oracle = fleet.hosts["beta"].guests.open("web").query_oracle(full=True)  # type: ignore[attr-defined]
        assert oracle["corrupt"] == 0
        logs = "".join(log.read_text("utf-8", "replace") for log in fleet.logs())
        assert "no permissions" not in logs  # as Redis words it, whoever logs it
        # What an exporter reads, it may: as a user that can write nothing.
        reader = fleet.settings.model_copy(update={"redis": shipped.settings("droveway-reader")})
        with closing(Ledger(reader)) as ledger:
            assert set(ledger.fleet().hosts) == {"alpha", "beta"}
            assert [each.migration for each in ledger.history()] == [request.migration]
            assert ledger.open() == []
            assert ledger.jobs() == []
            assert ledger.cluster().guests["web"].host == "beta"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"user": "somebody"}, "does not accept our user or password"),
        ({"user": "default"}, "does not accept our user or password"),
        ({"url": "rediss://droveway:guessed@localhost:{port}/0"}, "does not accept our user or password"),
        ({"bearer": None}, "cannot be reached"),
        ({"url": "redis://droveway:{password}@localhost:{port}/0", "ca": None}, "cannot be reached"),
    ],
    ids=["user", "default-user", "password", "no-certificate", "no-tls"],
)
def test_who_is_not_of_the_fleet_is_not_let_in(shipped: Shipped, changed: dict[str, str | None], why: str) -> None:
    changed = {name: _filled(value, shipped) for name, value in changed.items()}
    if str(changed.get("url", "")).startswith("redis:"):
        changed |= {"bearer": None}
    with pytest.raises(UnreachableError, match=why):
        ask(shipped.settings(**changed), "TIME")  # type: ignore[arg-type]


def _filled(value: str | None, shipped: Shipped) -> str | None:
    return value and value.format(port=shipped.port, password=shipped.passwords["droveway"])


def test_neither_end_believes_another_authority(shipped: Shipped, tmp_path: Path) -> None:
    certs(tmp_path, "--host", "alpha=127.0.0.1", "--redis", "localhost=127.0.0.1")
    theirs = {"certificate": tmp_path / "alpha.pem", "key": tmp_path / "alpha.key"}
    with pytest.raises(UnreachableError, match=r"(?i)unknown ca|cannot be reached"):
        ask(shipped.settings(**theirs), "TIME")  # the server does not believe the host
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        ask(shipped.settings(ca=tmp_path / "ca.pem"), "TIME")  # the host does not believe the server


def test_the_server_is_asked_for_its_name(shipped: Shipped) -> None:
    url = f"rediss://droveway:{shipped.passwords['droveway']}@127.0.0.2:{shipped.port}/0"
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.2"):
        ask(shipped.settings(url=url), "TIME")


#: A command that the user may not give, or a key that it may not touch.
REFUSED = {
    "droveway": [
        ("GET", "celery:x"),
        ("SET", "drovewayx", "1"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("SHUTDOWN",),
        ("REPLICAOF", "NO", "ONE"),
        ("MONITOR",),
        ("MIGRATE", "127.0.0.1", "1", "droveway:x", "0", "1"),
        ("RENAME", "droveway:x", "droveway:y"),
        ("PUBLISH", "other", "x"),
        ("FUNCTION", "LIST"),
        ("MODULE", "LIST"),
    ],
    "droveway-reader": [
        ("GET", "celery:x"),
        ("SET", "droveway:x", "1"),
        ("DEL", "droveway:x"),
        ("HSET", "droveway:x", "a", "1"),
        ("LPUSH", "droveway:x", "1"),
        ("EVAL", "return 1", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("PUBLISH", "droveway:/0.celeryev", "x"),
        ("SUBSCRIBE", "droveway:/0.celeryev"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "LIST"),
        ("MONITOR",),
    ],
}


@pytest.mark.parametrize(("user", "command"), [(user, each) for user, all_ in REFUSED.items() for each in all_])
def test_a_user_can_do_no_more_than_its_work(shipped: Shipped, user: str, command: tuple[str, ...]) -> None:
    with coordination_client(shipped.settings(user)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_a_refusal_says_where_the_rights_are_listed(shipped: Shipped) -> None:
    with pytest.raises(HostError, match=r"ops/redis/droveway\.acl"):
        ask(shipped.settings("droveway-reader"), "SET", "droveway:x", "1")


def test_a_host_with_another_prefix_is_told_at_once(shipped: Shipped) -> None:
    settings = Settings(redis=shipped.settings(prefix="elsewhere:"))
    with closing(Ledger(settings)) as ledger, pytest.raises(DrovewayError, match="forbids us"):
        ledger.fleet()


def test_passwords_that_are_in_use_are_not_overwritten(shipped: Shipped) -> None:
    words = [OPS / "scripts" / "redis-users", shipped.pki / "redis" / "droveway.acl", shipped.pki / "new"]
    again = subprocess.run(words, check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "there already" in again.stderr
    assert not (shipped.pki / "new").exists()


def test_passwords_that_no_acl_has_are_not_left_behind(tmp_path: Path) -> None:
    words = [OPS / "scripts" / "redis-users", tmp_path / "redis" / "droveway.acl", tmp_path / "passwords"]
    assert subprocess.run(words, check=False, capture_output=True).returncode != 0, "there is no such directory"
    (tmp_path / "redis").mkdir()
    subprocess.run(words, check=True)
    assert (tmp_path / "passwords").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "redis" / "droveway.acl").stat().st_mode & 0o777 == 0o640
    assert len((tmp_path / "passwords").read_text().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["droveway.acl", "passwords"]


def test_the_runbooks_words_reach_this_redis(shipped: Shipped) -> None:
    text = " ".join((OPS / "runbooks" / "redis-not-durable.md").read_text().split())
    (words,) = re.findall(r"`(redis-cli -h REDIS [^`]*--askpass)`", text)
    words = words.replace("/etc/droveway/HOST", str(shipped.pki / "alpha")).replace("-h REDIS", f"-p {shipped.port}")
    words = words.replace("/etc/droveway", str(shipped.pki)).removesuffix("--askpass")
    environment = os.environ | {"REDISCLI_AUTH": shipped.passwords["droveway"]}
    told = {"PING": "PONG", "CONFIG GET appendfsync": "always", "CONFIG SET appendonly yes": "NOPERM"}
    for asked, answer in told.items():
        said = subprocess.run(
            [*words.split(), *asked.split()], check=False, capture_output=True, text=True, env=environment, timeout=20
        )
        assert answer in said.stdout + said.stderr, asked


def test_a_doctor_finds_nothing_against_them(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = {each: shipped.pki / f"alpha.{end}" for each, end in (("certificate", "pem"), ("key", "key"))}
    files = TlsSettings(ca=shipped.pki / "ca.pem", **tls)
    host = HostSettings(name="alpha", state_dir=tmp_path, metrics_source_port=0, metrics_destination_port=0)
    for name, value in Settings(redis=shipped.settings(), tls=files, host=host).environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    for check in ("Redis", "Redis' durability", "Redis' rights", "certificate of tls", "certificate of redis"):
        assert found[check]["state"] == "ok", found[check]
