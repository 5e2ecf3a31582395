"""The image is built, and what ops/compose.yaml says runs, on a Docker engine: but for Grafana, whose image Debian's
packages cannot stand in for.
"""

from __future__ import annotations

import json
import resource
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ops.engine import Engine
from tests.ops.test_compose import FILE, services
from tests.until import until

CHECKOUT = Path(__file__).parents[2]
PROMETHEUS = "http://127.0.0.1:9090/api/v1/query"
HOSTS = ("alpha", "beta")

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    watched = services()
    with Engine() as engine:
        engine.have_debian()
        engine.run("docker", "build", "--network", "host", "-f", "ops/container/Dockerfile", "-t", "droveway", CHECKOUT)
        engine.have_stand_in(watched["redis"]["image"], "redis-server")
        engine.have_stand_in(watched["prometheus"]["image"], "prometheus", '["prometheus"]')
        engine.alone()
        yield engine


def test_the_image_runs_the_command_as_nobody_much(engine: Engine) -> None:
    def inside(*words: str) -> str:
        return engine.run("docker", "run", "--rm", "--network", "none", *words)

    assert inside("droveway", "--version").startswith("droveway, version ")
    assert inside("--entrypoint", "id", "droveway", "--user") == "970\n"
    assert inside("--entrypoint", "python3", "droveway", "-c", "import pyverbs.device; print('verbs')") == "verbs\n"


@pytest.fixture
def compose(engine: Engine, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`docker compose WORDS` for the shipped file; everything that it started is taken down in the end."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    words = [*program, "--project-name", "droveway-test", "-f", str(FILE)]
    if not _may_lock_all():
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        less = {"services": {host: {"ulimits": {"memlock": hard}} for host in HOSTS}}
        (tmp_path / "less.yaml").write_text(json.dumps(less))
        words += ["-f", str(tmp_path / "less.yaml")]

    def run(*more: str) -> str:
        return engine.run(*words, *more)

    try:
        yield run
    finally:
        run("down", "--volumes", "--timeout", "5")


def _may_lock_all() -> bool:
    """Whether an engine may do what the file asks for: some machines give their root no right to raise a limit."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (before[0], resource.RLIM_INFINITY))
    except (PermissionError, ValueError):
        return False
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    return True


def asked(engine: Engine, expression: str) -> list[dict[str, Any]]:
    """The series that compose's Prometheus has for it now; none while it does not answer."""
    said = engine.get(f"{PROMETHEUS}?{urllib.parse.urlencode({'query': expression})}")
    return json.loads(said)["data"]["result"] if said else []


def test_two_hosts_in_containers_move_guests_and_are_watched(engine: Engine, compose: Callable[..., str]) -> None:
    compose("up", "-d", "--no-build", *[name for name in services() if name != "grafana"])

    def healthy() -> bool:
        said = engine.run("docker", "ps", "--all", "--format", "{{.Names}} {{.Status}}").splitlines()
        bad = [line.split()[0] for line in said if "Exited" in line or "Restarting" in line]
        assert not bad, engine.run("sh", "-c", f"docker logs {bad[0]} 2>&1")
        return sum("(healthy)" in line for line in said) == len({"redis", "alpha", "beta", "exporter"})

    until("the health of Redis, both hosts and the exporter", healthy, seconds=180.0, every=1.0)
    for what, expression in {
        "scrapes of both roles of both hosts, and of the exporter": 'count(up{job=~"droveway-.*"} == 1) == 5',
        "moves off both hosts": 'count(sum by (host) (droveway_migrations_total{state="completed"}) > 0) == 2',
        "four guests": "sum(droveway_host_guests) == 4",
        "Redis' settings": "count(droveway_redis_durable == 1) == 3",
    }.items():
        until(what, lambda expression=expression: asked(engine, expression), seconds=180.0, every=1.0)
    assert asked(engine, 'sum(droveway_migrations_total{state="failed"}) > 0') == []
    # It judges by the shipped rules: what they record is there.
    until(
        "a recorded figure",
        lambda: asked(engine, "fleet:droveway_migrations_completed:ratio1h"),
        seconds=120.0,
        every=1.0,
    )
    logged = engine.run("sh", "-c", "docker logs droveway-test_alpha_1 2>&1").splitlines()
    rounds = [line for line in logged if "round 0" in line]
    assert {"migration", "host", "role", "phase"} <= json.loads(rounds[0]).keys()
    compose("stop", "--timeout", "20", "alpha")
    state = engine.run("docker", "inspect", "--format", "{{.State.ExitCode}}", "droveway-test_alpha_1")
    assert state == "0\n", "a worker ends by itself when it is told to"


#: What an operator does after ops/scripts/debian-setup, as its last words say; units run by their ExecStart.
_FILL_IN = r"""
droveway certs /root/pki --host alpha=127.0.0.1 --host beat --host exporter --redis localhost=127.0.0.1
cp /root/pki/ca.pem /root/pki/{alpha,beat,exporter,redis}.{pem,key} /etc/droveway/
chown redis /etc/droveway/redis.key
chown droveway /etc/droveway/{beat,exporter}.key
for file in /etc/droveway.toml /etc/droveway/{beat,exporter}.toml; do
    user=$(sed -n 's#.*rediss://\(.*\):PASSWORD.*#\1#p' $file)
    sed -i "s/PASSWORD/$(awk -v user=$user '$1 == user { print $2 }' /etc/droveway/redis-passwords)/" $file
    sed -i 's/redis.example/localhost/; s/"10.0.0.1"/"127.0.0.1"/' $file
done
sed -i 's/^# \(\[rebalance\|cron\)/\1/' /etc/droveway/beat.toml
"""
_START = r"""
unit() { # name, user
    mkdir -p /var/lib/droveway-$1 && chown $2: /var/lib/droveway-$1 && cd /var/lib/droveway-$1
    start=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/droveway-$1.service)
    setting=$(sed -n 's/^Environment=//p' /etc/systemd/system/droveway-$1.service)
    env $setting setpriv --reuid $2 --regid $2 --init-groups ${start/--supervised systemd/} \
        >/var/log/droveway-$1 2>&1 &
}
answers() { python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$1')" 2>/dev/null; }
unit redis redis
unit worker root
unit beat droveway
unit exporter droveway
for port in 9641 9642 9643; do
    for _ in {1..60}; do ! answers $port/readyz || break; sleep 1; done
    answers $port/readyz || { tail -n 20 /var/log/droveway-*; exit 1; }
done
kill -0 $(jobs -p)
cd /
droveway doctor --json
droveway guest start web --memory 32M
droveway guest list --json
"""


@pytest.mark.thorough
def test_a_new_debian_becomes_a_host_by_the_shipped_script() -> None:
    with Engine() as engine:
        engine.have_debian()
        words = "--name host --network host --cap-add SYS_PTRACE --cap-add IPC_LOCK --security-opt seccomp=unconfined"
        engine.run("docker", "run", "-d", *words.split(), "debian:12-slim", "sleep", "infinity")

        def inside(script: str) -> str:
            return engine.run("docker", "exec", "host", "bash", "-euc", script)

        for each in (
            "config",
            "ops",
            "tasks",
            "workers",
            "pyproject.toml",
            "requirements.lock",
            "README.md",
            "LICENSE",
        ):
            engine.run("docker", "cp", CHECKOUT / each, "host:/opt/")
        setup = "/opt/ops/scripts/debian-setup --redis --beat --exporter"
        assert "systemctl enable --now droveway-worker droveway-redis" in inside(setup)
        assert "nothing is left to do" in inside(f"{setup} --check")
        inside(_FILL_IN)
        doctor, _, guests = inside(_START).splitlines()
        assert json.loads(doctor)["fit"], doctor
        assert [guest["status"] for guest in json.loads(guests)["guests"]] == ["running"]
