"""Real migrations of a guest that writes, to and fro between two hosts of one machine, rdma-pin-all off and on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from config.settings import RedisSettings
from tasks.cli.following import ending, follow
from tasks.cli.guest import announce
from tasks.cli.invocation import bell_for
from tasks.cli.migrate import begin, request_for
from tasks.cli.rendering.facts import Facts
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet, fresh_directory
from tasks.one_machine.redis_server import OwnRedis
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec

_GUEST = "g1"
#: An emulated processor is slow: 4 MiB/s are what the guest's Python and the tracking of its writes can keep up.
_SPEC = MemoryGuestSpec(_GUEST, memory=64 << 20, dirty_rate=4 << 20, check_rate=4 << 20)
_START_SECONDS = 600.0
#: The ways and the settings change places, so that neither way is always the one with rdma-pin-all on.
_WAYS = (("alpha", "beta", "off"), ("beta", "alpha", "on"), ("alpha", "beta", "on"), ("beta", "alpha", "off"))


def moves(count: int) -> Iterator[dict[str, Any]]:
    """`count` moves each, one after the other: what each measured. RuntimeError when the guest finds a page wrong."""
    with _fleet() as fleet, closing(Ledger(fleet.settings)) as ledger:
        bell = bell_for(fleet.settings)
        guest = fleet.hosts["alpha"].guests.start(_SPEC)
        announce(ledger, fleet.hosts["alpha"].settings, guest)
        guest.wait_filled(_START_SECONDS)
        for number in range(2 * count):
            source, destination, pinned = _WAYS[number % len(_WAYS)]
            _guest(fleet, source).reset_gap()
            request = request_for(_GUEST, destination, (f"rdma-pin-all={pinned}",), ("transport=verbs",))
            begin(ledger, bell, request)
            record = follow(ledger, request.migration, None)
            if error := ending(record):
                raise RuntimeError(f"move {number} failed: {error}")
            moved = _guest(fleet, destination)
            gap = moved.query_oracle()["longest_gap_seconds"]
            check = moved.query_oracle(full=True)["full_check"]
            if check["corrupt"]:
                raise RuntimeError(f"the guest found {check['corrupt']} pages that are not as it wrote them")
            seconds = Facts.of(record).seconds
            yield {
                "way": f"{source} to {destination}",
                "pin_all": pinned == "on",
                "downtime": seconds["downtime"],
                "felt": gap,
                "total": seconds["total"],
            }


@contextmanager
def _fleet() -> Iterator[LocalFleet]:
    directory = fresh_directory()
    try:
        with closing(OwnRedis(directory)) as redis:
            settings = RedisSettings.model_validate({"url": redis.url})
            overrides = {"host.address": "10.9.1.1"}
            with LocalFleet(settings, directory=directory, ram_bytes=2 * _SPEC.memory, overrides=overrides) as fleet:
                try:
                    fleet.start(_START_SECONDS)
                    yield fleet
                except Exception as error:
                    logs = [log.read_text("utf-8", "replace")[-3000:] for log in fleet.logs()]
                    raise RuntimeError(f"{error}\n" + "\n---\n".join(logs)) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _guest(fleet: LocalFleet, host: str) -> MemoryGuest:
    guest = fleet.hosts[host].guests.open(_GUEST)
    assert isinstance(guest, MemoryGuest)
    return guest
