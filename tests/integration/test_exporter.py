"""`droveway exporter` and the pages of a worker as processes, on a real Redis that comes and goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from config.settings import RedisSettings, Settings
from tasks.exporter.reading import Reader
from tasks.jobs import Kind, Order
from tasks.ledger.ledger import Answer, Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import State, Step
from tasks.records import Kept, LocalGuest, Submission
from tests.integration.console import GIB, OFFERED, Console, fleet_in
from tests.integration.scripted_fleet import end
from tests.redis_server import RedisServer
from workers.metrics import names
from workers.pairing.contract import Side

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(port: int) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(asked(port, "/metrics")[1]):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@contextmanager
def exporter(settings: Settings, *words: str) -> Iterator[int]:
    port = free_port()
    environment = os.environ | settings.environment() | {"DROVEWAY_EXPORTER__INTERVAL": "100ms"}
    command = [sys.executable, "-m", "tasks.cli.main", "exporter", "--port", str(port), *words]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f":{port}/metrics" in process.stderr.readline()
            yield port
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def until_seen(port: int, sample: str, value: float) -> dict[str, float]:
    deadline = time.monotonic() + 20
    while (found := samples(port)).get(sample) != value:
        assert time.monotonic() < deadline, (sample, found.get(sample))
        time.sleep(0.1)
    return found


def test_the_fleet_is_shown_and_only_read(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger, exporter(settings) as port:
        before = written(own_redis_server)
        found = until_seen(port, 'droveway_guests_not_evacuable{reason="pinned"}', 0)
        assert found['droveway_host_up{host="alpha",side="source"}'] == 1
        assert found['droveway_host_memory_bytes{host="alpha",state="resident"}'] == GIB
        assert found["droveway_redis_up"] == 1
        checks = ("appendonly", "appendfsync", "maxmemory_policy")
        assert all(found[f'droveway_redis_durable{{check="{check}"}}'] == 1 for check in checks)
        assert found["droveway_imbalance"] > 0
        assert found['droveway_imbalance_target{policy="default"}'] == 0.06
        assert written(own_redis_server) == before, "it changes nothing in Redis"

        ledger.pin(Kept.CORDON, "beta", "firmware")
        assert ledger.submit(Submission("m-1", "web", "alpha", "beta", GIB, {}, {}))[0] is Answer.OK
        until_seen(port, 'droveway_migrations_open{state="queued"}', 1)
        until_seen(port, 'droveway_host_cordoned{host="beta"}', 1)
        with own_redis_server.client() as client:
            client.config_set("appendfsync", "everysec")
            client.config_set("maxmemory-policy", "allkeys-lru")
        until_seen(port, 'droveway_redis_durable{check="appendfsync"}', 0)
        until_seen(port, 'droveway_redis_durable{check="maxmemory_policy"}', 0)
        page = asked(port, "/metrics")[1]
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "web" in line or "m-1" in line]
    shown = {family.name for family in text_string_to_metric_families(page)}
    assert shown <= {metric.name for metric in (names.BUILD, *names.FLEET)}


def test_what_rebalancing_aims_at_and_gains_is_told_of_each_policy(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "droveway.toml"
    policy = '[rebalance.{}]\ncron = "0 3 * * *"\ntarget = {}\nthreshold = 1.5\nmost_moves = {}\n'
    file.write_text(policy.format("nightly", 0.01, 10) + policy.format("content", 1.4, 10))
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger:
        for side in Side:
            ledger.heartbeat("alpha", side, OFFERED, [], [LocalGuest(name, GIB, 0) for name in ("web", "db")])
    with exporter(settings, "--config", str(file)) as port:
        found = until_seen(port, 'droveway_rebalance_gain{policy="content"}', 0)
    targets = {name: value for name, value in found.items() if name.startswith("droveway_imbalance_target")}
    assert targets == {
        'droveway_imbalance_target{policy="nightly"}': 0.01,
        'droveway_imbalance_target{policy="content"}': 1.4,
    }
    assert found['droveway_rebalance_gain{policy="nightly"}'] > 0


def written(server: RedisServer) -> int:
    """Changes since the last snapshot: none is ever made."""
    with server.client() as client:
        return int(client.info("persistence")["rdb_changes_since_last_save"])


def test_an_evacuation_is_shown_while_it_is_under_way_and_counted_when_it_has_ended(
    own_redis_server: RedisServer,
) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger, exporter(settings) as port:
        asks = Evacuation("e-1", frozenset({"alpha"}), deadline=ledger.now() + 3600)
        assert ledger.begin_job(Order(Kind.EVACUATION, asks, "why"))[0] is Answer.OK
        found = until_seen(port, 'droveway_jobs{kind="evacuation",state="running"}', 1)
        assert 3500 < found['droveway_evacuation_deadline_seconds{evacuation="e-1"}'] <= 3600
        ledger.cancel_job("e-1")
        ledger.note_job("e-1", Step(State.CANCELLED, "enough"))
        found = until_seen(port, 'droveway_jobs{kind="evacuation",state="cancelled"}', 1)
        assert not [name for name in found if "e-1" in name]


def test_a_job_of_a_newer_release_hides_nothing_else(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger, own_redis_server.client() as client:
        assert ledger.begin_job(Order(Kind.EVACUATION, Evacuation("e-1", frozenset({"alpha"})), "why"))[0] is Answer.OK
        client.hset(f"{settings.redis.prefix}job:e-1", "kind", "exchange")
        with exporter(settings) as port:
            found = until_seen(port, 'droveway_host_up{host="alpha",side="source"}', 1)
    assert found["droveway_redis_up"] == 1
    assert found['droveway_jobs{kind="evacuation",state="running"}'] == 0, "kinds of our own are counted"


def test_the_most_moved_guest_is_counted_and_what_has_ended_is_read_once(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger:
        reader = Reader(ledger)
        for number, (source, destination) in enumerate([("alpha", "beta"), ("beta", "alpha"), ("alpha", "beta")]):
            submission = Submission(f"m-{number}", "web", source, destination, GIB, {}, {})
            assert ledger.submit(submission)[0] is Answer.OK
            ledger.admit()
            assert end(ledger, "completed" if number else "failed") == ["web"]
            if not number:  # that one failed: it is where it was
                ledger.submit(Submission("m-again", "web", "alpha", "beta", GIB, {}, {}))
                ledger.admit()
                end(ledger, "completed")
            else:
                assert reader.read().moved == {"web": number + 1}
        calls = counted_reads(own_redis_server)
        assert reader.read().moved == {"web": 3}
        assert counted_reads(own_redis_server) == calls, "of what has ended nothing is asked again"


def counted_reads(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


def test_without_redis_it_is_healthy_not_ready_and_shows_nothing_old(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with exporter(settings) as port:
        until_seen(port, "droveway_redis_up", 1)
        assert asked(port, "/healthz") == (200, "ok\n")
        assert asked(port, "/readyz") == (200, "ok\n")
        assert asked(port, "/")[0] == 404
        own_redis_server.stop()
        found = until_seen(port, "droveway_redis_up", 0)
        assert set(found) == {
            'droveway_build_info{protocol="5",version="0.1.0"}',
            "droveway_redis_up",
            "droveway_exporter_read_seconds",
        }
        assert asked(port, "/healthz")[0] == 200
        time.sleep(2.1)  # an answer is believed for so long
        code, said = asked(port, "/readyz")
        assert code == 503
        assert "cannot be reached" in said
        own_redis_server.start()
        until_seen(port, "droveway_redis_up", 1)


def test_a_redis_that_hangs_is_told_of_before_a_scrape_is_given_up(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with exporter(settings) as port:
        until_seen(port, "droveway_redis_up", 1)
        own_redis_server.freeze()
        try:
            time.sleep(0.2)  # what was read before is shown for so long
            began = time.monotonic()
            assert samples(port)["droveway_redis_up"] == 0
            assert time.monotonic() - began < 8, "Prometheus waits for 10 s, unless it is told otherwise"
        finally:
            own_redis_server.thaw()
        until_seen(port, "droveway_redis_up", 1)


def test_a_worker_without_redis_is_healthy_and_not_ready_and_tells_its_metrics(own_redis_server: RedisServer) -> None:
    ports = {"host.metrics_source_port": free_port(), "host.metrics_destination_port": free_port()}
    redis = RedisSettings.model_validate({"url": own_redis_server.url})
    with LocalFleet(redis, ("alpha",), overrides=ports) as fleet:
        fleet.start()
        source = ports["host.metrics_source_port"]
        assert asked(source, "/healthz")[0] == asked(source, "/readyz")[0] == 200
        own_redis_server.stop()
        time.sleep(2.1)
        assert asked(source, "/readyz")[0] == 503
        assert asked(source, "/healthz")[0] == 200
        assert samples(source)['droveway_migrations_in_flight{side="source"}'] == 0
        own_redis_server.start()
        deadline = time.monotonic() + 20
        while asked(source, "/readyz")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_port_that_is_taken_is_said_in_a_sentence(console: Console) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = console("exporter", "--port", str(taken.getsockname()[1]))
    assert code != 0
    assert "exporter.port" in err


@pytest.mark.parametrize("words", [(), ("--markdown",)])
def test_every_metric_is_listed(console: Console, words: tuple[str, ...]) -> None:
    code, out, _ = console("metrics", *words)
    assert code == 0
    assert "droveway_host_up" in out
    said = {row["name"] for row in console.said("metrics")["metrics"]}
    assert {"droveway_sent_bytes_total", "droveway_redis_up"} <= said


def test_guests_that_are_heard_of_are_counted_by_host(own_redis_server: RedisServer) -> None:
    settings = fleet_in(own_redis_server)
    with closing(Ledger(settings)) as ledger:
        ledger.heartbeat("beta", Side.SOURCE, OFFERED, [], [LocalGuest("db", GIB, 0)])
        assert Reader(ledger).read().hosts == {"alpha", "beta"}
