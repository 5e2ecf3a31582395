"""The units in ops/systemd: what systemd itself thinks of them, and a worker that is restarted beneath a move."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.host import LocalHost
from tasks.requests import admit, submit, watch
from tests.booted import Booted
from tests.redis_server import RedisServer
from tests.requirements import installed
from tests.until import until
from workers.pairing.contract import Side

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "ops" / "systemd").glob("*.service"))
DROVEWAY = (sys.executable, "-m", "tasks.cli.main")


def verified(tmp_path: Path, unit: Path, text: str) -> str:
    """What `systemd-analyze verify` has to say of it, on a machine that has what its commands name."""
    installed("systemd-analyze", "systemd")
    root = tmp_path / "root"
    for program in ("opt/droveway/current/bin/droveway", "usr/bin/redis-server"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/passwd").write_text(
        "".join(f"{name}:x:{uid}:1::/:/bin/sh\n" for uid, name in enumerate(["root", "redis", "droveway"]))
    )
    (root / "etc/systemd/system" / unit.name).write_text(text)
    words = ["systemd-analyze", "verify", "--root", str(root), "--man=no", "--recursive-errors=no", unit.name]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_has_nothing_to_say_against_a_unit(tmp_path: Path, unit: Path) -> None:
    assert verified(tmp_path, unit, unit.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("KillMode=process", "KilMode=process", "Unknown key"),
        ("LimitMEMLOCK=infinity", "LimitMEMLOCK=all", "Failed to parse"),
        ("/opt/droveway/current/bin/droveway", "/opt/droveway/bin/droveway", "not executable"),
    ],
)
def test_what_is_wrong_with_a_unit_would_be_found(tmp_path: Path, right: str, wrong: str, says: str) -> None:
    unit = ROOT / "ops" / "systemd" / "droveway-worker.service"
    assert right in unit.read_text()
    assert says in verified(tmp_path, unit, unit.read_text().replace(right, wrong))


def unit_of(host: LocalHost, directory: Path) -> str:
    """The shipped unit, for this host of a fleet on one machine, on a system that has no network to wait for."""
    variables = directory / f"{host.name}.environment"
    variables.write_text("".join(f'{key}="{value}"\n' for key, value in host.settings.environment().items()))
    text = (ROOT / "ops" / "systemd" / "droveway-worker.service").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("Wants=", "After=", "WantedBy="))]
    command = "/opt/droveway/current/bin/droveway"
    assert f"ExecStart={command} worker" in kept
    text = "\n".join(kept).replace(command, " ".join(DROVEWAY)).replace("[Unit]", "[Unit]\nDefaultDependencies=no")
    ours = f"[Service]\nEnvironmentFile={variables}\nWorkingDirectory={ROOT}"
    return text.replace("[Service]", ours) + "\n"


def test_a_move_outlives_the_workers_and_the_guest_that_came_does_too(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    with LocalFleet(RedisSettings.model_validate({"url": own_redis_server.url})) as fleet:
        units = {f"{name}.service": unit_of(host, tmp_path) for name, host in fleet.hosts.items()}
        with Booted(tmp_path, units) as booted, closing(Ledger(fleet.settings)) as ledger:

            def on(name: str, *words: str) -> str:
                return booted.run(*DROVEWAY, *words, environment=fleet.hosts[name].settings.environment(), cwd=ROOT)

            def main_process(name: str) -> int:
                return int(booted.run("systemctl", "show", "--value", "--property=MainPID", name))

            def alive() -> bool:
                hosts = ledger.fleet().hosts
                return len(hosts) == 2 and all(host.alive == set(Side) for host in hosts.values())

            booted.run("systemctl", "start", "alpha", "beta")
            until("the workers of both hosts", alive, 60)
            shown = booted.run("systemctl", "show", "--property=LimitMEMLOCK,KillMode,OOMPolicy", "alpha").splitlines()
            assert set(shown) == {"LimitMEMLOCK=infinity", "KillMode=process", "OOMPolicy=continue"}

            on("alpha", "guest", "start", "web", "--memory", "64M", "--dirty-rate", "1M")
            request = MigrateRequest(
                migration=new_migration_id(), guest="web", destination="beta", parameters={"max-bandwidth": "5MiB/s"}
            )
            submit(ledger, request)
            admit(ledger, bell_for(fleet.settings))
            until("the move", lambda: _state(ledger, request.migration) == "active", 60)
            before = {name: main_process(name) for name in units}
            booted.run("systemctl", "restart", "alpha")  # in order
            booted.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "beta")  # as a crash
            assert _state(ledger, request.migration) == "active"
            *_, record = watch(ledger, request.migration)
            assert record.state == "completed", record.message
            assert {name for name in units if main_process(name) in (0, before[name])} == set()

            booted.run("systemctl", "stop", "beta")
            assert main_process("beta") == 0
            time.sleep(1)
            assert "corrupt" in on("beta", "guest", "check", "web", "--json")


@pytest.mark.parametrize("name", ["beat", "exporter"])
def test_a_program_of_ours_works_in_the_sandbox(own_redis_server: RedisServer, tmp_path: Path, name: str) -> None:
    """Numpy, cryptography, pydantic, redis-py and the record's scripts: what beat and exporter are made of."""
    own_redis_server.directory.chmod(0o755)
    own_redis_server.socket.chmod(0o777)
    text = (ROOT / "ops" / "systemd" / f"droveway-{name}.service").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("Wants=", "After=", "WantedBy=", "Restart"))]
    once = ("; ".join(["import numpy, cryptography.x509", *_ASKS])).replace('"', "'")
    command = f'ExecStart={sys.executable} -c "{once}"'
    url = f"Environment=DROVEWAY_REDIS__URL={own_redis_server.url}\nWorkingDirectory={ROOT}"
    replaced = {
        f"ExecStart=/opt/droveway/current/bin/droveway {name}": command,
        "User=droveway": "User=nobody",
        f"Environment=DROVEWAY_CONFIG=/etc/droveway/{name}.toml": url,
        "PrivateTmp=yes": "",  # the server's socket is in /tmp
        f"WorkingDirectory=/var/lib/droveway-{name}": "",
        "Type=exec": "Type=oneshot",
        "[Unit]": "[Unit]\nDefaultDependencies=no",
    }
    unit = "\n".join(replaced.get(line, line) for line in kept) + "\n"
    assert "CapabilityBoundingSet=\n" in unit
    with Booted(tmp_path, {"sandboxed.service": unit}) as booted:
        booted.run("systemctl", "start", "sandboxed")


#: Reads and runs a script, as both do.
_ASKS = (
    "from config.settings import load_settings",
    "from tasks.ledger.ledger import Ledger",
    "ledger = Ledger(load_settings())",
    "ledger.fleet()",
    "ledger.prune()",
)


def _state(ledger: Ledger, migration: str) -> str:
    record = ledger.find(migration)
    return record.state if record else "unknown"
