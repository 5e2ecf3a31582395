"""Hosts of different releases: workers and movers of another one run from a tree of their own."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import RefusedError
from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.report.migration import page_of
from tasks.cli.rendering.timeline import phases
from tasks.evacuate import begin
from tasks.inventory.live import cluster
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import plan_evacuation
from tasks.planning.job import Fate
from tasks.records import MigrationRecord
from tasks.requests import admit, submit, watch
from tasks.steps import snapshot
from tests.until import until
from workers.guests.memory_spec import MemoryGuestSpec
from workers.wire import UNSAID, WIRE

ROOT = Path(__file__).parents[2]
#: The last commit whose hosts did not say what they speak.
BEFORE = "f51cddc"


def release(directory: Path, wire: int) -> Path:
    """This program, but that it says of itself that it speaks `wire`."""
    for folder in ("config", "tasks", "workers"):
        shutil.copytree(ROOT / folder, directory / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = directory / "workers" / "wire.py"
    text, count = re.subn(r"^WIRE = \d+$", f"WIRE = {wire}", source.read_text(), flags=re.MULTILINE)
    assert count == 1
    source.write_text(text)
    return directory


@pytest.fixture
def fleet(redis_url: str) -> Iterator[LocalFleet]:
    with LocalFleet(RedisSettings.model_validate({"url": redis_url, "prefix": f"m{secrets.token_hex(4)}:"})) as made:
        yield made


def move(fleet: LocalFleet, destination: str) -> MigrationRecord:
    request = MigrateRequest(migration=new_migration_id(), guest="web", destination=destination)
    with closing(Ledger(fleet.settings)) as ledger:
        submit(ledger, request)
        admit(ledger, bell_for(fleet.settings))
        *_, record = watch(ledger, request.migration)
        return record


def start_guest(fleet: LocalFleet) -> None:
    alpha = fleet.hosts["alpha"]
    started = alpha.guests.start(MemoryGuestSpec("web", 16 << 20, 5 << 20))
    started.wait_filled(30)
    with closing(Ledger(fleet.settings)) as ledger:
        announce(ledger, alpha.settings, started)


def to_and_fro(fleet: LocalFleet, wire: int) -> list[MigrationRecord]:
    fleet.start()
    start_guest(fleet)
    records = []
    for destination in ("beta", "alpha"):
        record = move(fleet, destination)
        assert record.state == "completed", record.message
        told = [side.progress["choices"] for side in (record.source, record.destination) if side.progress]
        assert {choices["wire"] for choices in told if "wire" in choices} == {wire}
        oracle = fleet.hosts[destination].guests.open("web").query_oracle(full=True)  # type: ignore[attr-defined]
        assert oracle["corrupt"] == 0
        records.append(record)
    return records


def test_a_release_and_the_one_before_move_guests_both_ways(fleet: LocalFleet, tmp_path: Path) -> None:
    fleet.hosts["beta"].program = release(tmp_path, WIRE - 1)
    to_and_fro(fleet, WIRE - 1)


def test_hosts_of_before_the_number_was_offered_move_guests_both_ways(fleet: LocalFleet, tmp_path: Path) -> None:
    if WIRE > UNSAID + 1:
        pytest.skip("they are more than one release away by now")
    archive = subprocess.run(
        ["git", "archive", BEFORE, "config", "tasks", "workers"], check=False, cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        pytest.skip(f"this checkout has no {BEFORE}")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    assert not (tmp_path / "workers" / "wire.py").exists()
    fleet.hosts["beta"].program = tmp_path
    for record in to_and_fro(fleet, UNSAID):
        # They measured only how long phases took; this release still lays them out, beside its own.
        began = {each.began is not None for each in phases(record) if record.side(each.side).host == "beta"}
        assert began == {False}
        assert {each.began is not None for each in phases(record)} == {False, True}
        (line,) = page_of(Facts.of(record))["timelines"]
        assert "Of beta, whose mover was of an older release" in line["note"]
        kinds = {(each.span.row, each.span.kind) for each in line["strips"]}
        hosts = record.source.host, record.destination.host
        assert {(f"source, {hosts[0]}", "bulk"), (f"destination, {hosts[1]}", "rounds")} <= kinds


def assert_planned_nowhere(fleet: LocalFleet, said: str) -> None:
    """A plan says so too, and costs the guest no attempt; nor does a job that is to empty the host."""
    with closing(Ledger(fleet.settings)) as ledger:
        planned = plan_evacuation(cluster(ledger.fleet(), ledger.open(), ledger.now()), ["alpha"])
        assert planned.moves == ()
        ((guest, refusal),) = planned.refused
        assert (guest, refusal.rule, said.startswith(refusal.why)) == ("web", "version", True)
        begin(ledger, Evacuation("e-skew", frozenset({"alpha"})), "tests")
        until("the end of the job", lambda: snapshot(ledger, "e-skew").ended, 30)
        (standing,) = snapshot(ledger, "e-skew").guests.values()
        assert (standing.fate, standing.attempts, standing.reason) == (Fate.REFUSED, 0, f"version: {refusal.why}")


@pytest.mark.parametrize("wire", [WIRE - 2, WIRE + 2])
def test_two_apart_are_refused_before_the_guest_is_touched(fleet: LocalFleet, tmp_path: Path, wire: int) -> None:
    fleet.hosts["beta"].program = release(tmp_path, wire)
    fleet.start()
    start_guest(fleet)
    older = "alpha" if wire > WIRE else "beta"
    with pytest.raises(RefusedError, match=f"upgrade {older} first") as refused:
        move(fleet, "beta")
    assert refused.value.reason == "version"
    assert_planned_nowhere(fleet, str(refused.value))
    with closing(Ledger(fleet.settings)) as ledger:
        assert {name: host.wire for name, host in ledger.fleet().hosts.items()} == {"alpha": WIRE, "beta": wire}
        assert ledger.history() == []
    assert fleet.hosts["alpha"].guests.open("web").status() == "running"
    assert fleet.hosts["alpha"].attempts() == []
