"""The fleet that virtual machines are moved in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer
from tests.vm.fleet import VmFleet


@pytest.fixture
def vms(own_redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[VmFleet]:
    made = VmFleet(own_redis_server, getattr(request, "param", {}))
    with made.fleet as fleet:
        fleet.start()
        yield made
        made.end()
