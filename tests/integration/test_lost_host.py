"""A host that is lost for good is taken out of the record as the runbook says, by its own words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from config.settings import RedisSettings
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.records import Kept
from tests.redis_server import RedisServer
from tests.until import until
from workers.guests.memory_spec import MemoryGuestSpec

RUNBOOK = Path(__file__).parents[2] / "ops" / "runbooks" / "worker-missing.md"


def words(tmp_path: Path) -> str:
    """The runbook's commands, with directories of the test's own."""
    _, _, text = RUNBOOK.read_text().partition("A host that is lost for good")
    lines = "\n".join(re.findall(r"^ {4}(.*)$", text, re.MULTILINE))
    assert lines.count("lost-alpha") == 2
    return lines.replace("/dev/shm/lost-alpha", str(tmp_path / "ram")).replace(
        "/tmp/lost-alpha", str(tmp_path / "state")
    )


@pytest.mark.timeout(180)
def test_the_guests_of_a_lost_host_leave_the_record(own_redis_server: RedisServer, tmp_path: Path) -> None:
    settings = RedisSettings.model_validate({"url": own_redis_server.url})
    quick = {"worker.lease": 2, "worker.reconcile_interval": 1}
    with LocalFleet(settings, ram_bytes=64 << 20, overrides=quick) as fleet:
        fleet.start()
        alpha = fleet.hosts["alpha"]
        started = alpha.guests.start(MemoryGuestSpec("web", 16 << 20))
        with closing(Ledger(fleet.settings)) as ledger:
            announce(ledger, alpha.settings, started)
            alpha.kill()
            until("the end of its leases", lambda: "alpha" not in ledger.fleet().hosts, 30)
            assert ledger.fleet().guests["web"].host == "alpha"

            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, **fleet.settings.environment(), "PATH": path}
            del environment["DROVEWAY_HOST__NAME"]
            speaker = subprocess.Popen(["bash", "-ec", words(tmp_path)], env=environment, start_new_session=True)
            try:
                until("that its guest is forgotten", lambda: not ledger.fleet().guests, 60)
                assert (Kept.CORDON, "alpha") in ledger.fleet().pins
            finally:
                os.killpg(speaker.pid, signal.SIGTERM)
                speaker.wait(30)
            until("that it is forgotten", lambda: ledger.hosts() == ["beta"], 60)
