"""ops/compose.yaml: what it names exists, its settings are settings, its Redis lets in whom it should, and nobody else.

No container is run here: test_containers.py does that, on an engine of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from config.settings import load_settings
from tasks.one_machine.tied import tied_to_us
from tests.conftest import missing
from tests.ops.ports import free_port
from tests.until import until

OPS = Path(__file__).parents[2] / "ops"
FILE = OPS / "compose.yaml"
PASSWORD = "a password of this test"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def ours() -> dict[str, Any]:
    return {name: each for name, each in services().items() if each["image"] == "droveway"}


def test_compose_reads_it() -> None:
    if shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode == 0:
        command = ["docker", "compose"]
    else:
        missing("no docker compose found (ops/scripts/ops-setup installs docker-compose on Debian)")
    run = subprocess.run([*command, "-f", FILE, "config", "-q"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("service", services())
def test_every_file_that_is_mounted_is_there(service: str) -> None:
    for volume in services()[service].get("volumes", []):
        where = volume.split(":")[0]
        assert (OPS / where).exists() if where.startswith(".") else where in yaml.safe_load(FILE.read_text())["volumes"]


@pytest.mark.parametrize("service", ours())
def test_what_is_built_is_there(service: str) -> None:
    build = ours()[service]["build"]
    assert (OPS / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("service", ours())
def test_settings_are_settings(service: str) -> None:
    environment = {key: value.replace("${REDIS_PASSWORD:-", "").replace("}", "") for key, value in _given(service)}
    settings = load_settings(Path(os.devnull), environment)
    assert "@redis:6379" in settings.redis.url.get_secret_value()


def _given(service: str) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in ours()[service]["environment"].items()]


def test_prometheus_scrapes_each_host_and_the_exporter_where_they_listen() -> None:
    workers = yaml.safe_load((OPS / "prometheus" / "targets" / "workers.yml").read_text())
    found = {each["labels"]["host"]: each["targets"] for each in workers}
    hosts = {name for name, each in ours().items() if "DROVEWAY_HOST__NAME" in each["environment"]}
    assert found.keys() == hosts
    for host in hosts:
        settings = load_settings(Path(os.devnull), dict(_given(host)))
        ports = (settings.host.metrics_source_port, settings.host.metrics_destination_port)
        assert found[host] == [f"{host}:{port}" for port in ports]
        assert settings.host.metrics_listen == "0.0.0.0"
    exporter = yaml.safe_load((OPS / "prometheus" / "targets" / "exporter.yml").read_text())
    port = load_settings(Path(os.devnull), dict(_given("exporter"))).exporter.port
    assert exporter == [{"targets": [f"exporter:{port}"]}]


def test_grafana_asks_the_prometheus_that_its_dashboards_name() -> None:
    (source,) = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for path in (OPS / "grafana/provisioning/dashboards").glob("*.json"):
        assert f'"uid": "{source["uid"]}"' in path.read_text() or path.stem == "droveway-runbooks"
    (provider,) = yaml.safe_load((OPS / "grafana/provisioning/dashboards/droveway.yaml").read_text())["providers"]
    (volume,) = services()["grafana"]["volumes"]
    assert provider["options"]["path"] == f"{volume.split(':')[1]}/dashboards"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """The port of a Redis that was started by compose's own words, but for where its files are."""
    if shutil.which("redis-server") is None:
        missing("no redis-server found")
    shell, option, script = services()["redis"]["command"]
    port = free_port()
    script = script.replace("$$", "$").replace("/etc/droveway/redis", str(OPS / "redis"))
    script = script.replace("/tmp", str(tmp_path)).replace("/data", f"{tmp_path} --port {port}")
    environment = os.environ | {"REDISCLI_AUTH": PASSWORD}
    process = subprocess.Popen(
        tied_to_us([shell, option, script]), env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=port, username="droveway", password=PASSWORD) as client:
            until("Redis' answer", lambda: _answers(client), seconds=20.0)
        yield port
    finally:
        process.kill()
        process.wait(timeout=20)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


def test_its_redis_is_durable_and_lets_in_whom_it_should(server: int) -> None:
    with redis.Redis(port=server, username="droveway", password=PASSWORD) as client:
        info = client.info()
        assert (info["aof_enabled"], info["maxmemory_policy"]) == (1, "noeviction")
        client.set("droveway:x", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other:x", "1")
    with redis.Redis(port=server) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    wrong = redis.Redis(port=server, username="droveway", password="wrong")
    with wrong, pytest.raises(redis.exceptions.AuthenticationError):
        wrong.ping()
