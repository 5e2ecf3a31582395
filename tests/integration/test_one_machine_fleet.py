"""The fleet that demo and fault tests stand on: whatever happens to it, nothing of it stays."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.errors import HostError
from config.settings import RedisSettings
from tasks.one_machine import fleet as fleets
from tasks.one_machine.fleet import LocalFleet, fresh_directory, sweep
from tasks.one_machine.redis_server import OwnRedis
from workers.attempt import Attempt, Job
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.process_identity import ProcessIdentity
from workers.pairing.contract import Side

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fleet(redis_url: str) -> Iterator[LocalFleet]:
    with LocalFleet(RedisSettings.model_validate({"url": redis_url}), ram_bytes=4 * MIB) as made:
        yield made


def places(fleet: LocalFleet) -> list[Path]:
    return [fleet.directory, *(host.ram_dir for host in fleet.hosts.values())]


def test_closing_ends_guests_and_movers_that_have_sessions_of_their_own(fleet: LocalFleet) -> None:
    alpha = fleet.hosts["alpha"]
    guest = alpha.guests.start(MemoryGuestSpec("web", MIB))
    job = Job("m-1", "web", 1, Side.SOURCE, "n", "alpha", "beta", MIB, {}, {})
    attempt = Attempt.of(alpha.state_dir, job.ticket)
    attempt.prepare(job)
    # Says who it is, as a mover does, and then takes no notice of anybody.
    script = (
        "import sys, time, json, os; from pathlib import Path; d = Path(sys.argv[1]);"
        "(d / 'pid').write_text(json.dumps({'pid': os.getpid()})); time.sleep(600)"
    )
    mover = attempt.start({}, [sys.executable, "-c", script])
    try:
        assert attempt.alive()
        left = places(fleet)
        fleet.close()
        assert mover.wait(timeout=10) == -signal.SIGKILL
        assert not guest.alive
    finally:
        mover.kill()
        guest.quit()
    assert [path for path in left if path.exists()] == []


def test_closing_twice_is_harmless(fleet: LocalFleet) -> None:
    fleet.close()
    fleet.close()


def test_the_fleet_of_a_killed_process_is_swept_by_the_next(tmp_path: Path) -> None:
    script = (
        "import sys, os, json, time\n"
        "from config.settings import RedisSettings\n"
        "from tasks.one_machine.fleet import LocalFleet, fresh_directory\n"
        "from tasks.one_machine.redis_server import OwnRedis\n"
        "from workers.guests.memory_spec import MemoryGuestSpec\n"
        "d = fresh_directory()\n"
        "redis = OwnRedis(d)\n"
        "fleet = LocalFleet(RedisSettings.model_validate({'url': redis.url}), directory=d)\n"
        "guest = fleet.hosts['alpha'].guests.start(MemoryGuestSpec('web', 1 << 20))\n"
        "print(json.dumps([str(d), guest.pid, redis._process.pid]), flush=True)\n"
        "time.sleep(600)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert maker.stdout is not None
        directory, guest, server = json.loads(maker.stdout.readline())
        started = [found for pid in (guest, server) if (found := ProcessIdentity.of(pid))]
        assert len(started) == 2
        assert Path(directory) not in sweep()  # its maker lives
    finally:
        maker.kill()
        maker.communicate()
    try:
        sweep()
        assert not Path(directory).exists()
        assert [process.pid for process in started if not process.wait(10)] == []
        assert not any((place / Path(directory).name).exists() for place in fleets._RAM_PLACES)
    finally:
        for process in started:
            process.kill()


def test_too_little_shared_memory_is_said_before_anything_is_made(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(fleets, "fresh_directory", lambda: made.append(1))
    with pytest.raises(HostError, match="--shm-size"):
        LocalFleet(RedisSettings.model_validate({"url": redis_url}), ram_bytes=1 << 60)
    assert made == []


def test_hosts_do_not_read_the_settings_of_whoever_runs_them(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DROVEWAY_HOST__STATE_DIR", str(tmp_path))
    with LocalFleet(RedisSettings.model_validate({"url": redis_url})) as fleet:
        assert fleet.hosts["alpha"].settings.host.state_dir == fleet.directory / "alpha"
        assert fleet.settings.redis.url.get_secret_value() == redis_url


def test_our_own_redis_keeps_what_it_answered_and_goes_with_us() -> None:
    directory = fresh_directory()
    redis = OwnRedis(directory)
    try:
        from config.redis import coordination_client

        with coordination_client(RedisSettings.model_validate({"url": redis.url})) as client:
            info = client.info()
            assert info["aof_enabled"] == 1
            assert info["maxmemory_policy"] == "noeviction"
            server = ProcessIdentity.of(int(info["process_id"]))
    finally:
        redis.close()
        redis.close()
    assert server is not None
    assert not server.alive()
    shutil.rmtree(directory)
