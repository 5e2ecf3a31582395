"""What the tests of single commands share."""

from __future__ import annotations

import pytest

from tests.integration.console import Console, fleet_in
from tests.redis_server import RedisServer


@pytest.fixture
def console(
    own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """The command, with a fleet of its own."""
    for name, value in fleet_in(own_redis_server).environment().items():
        monkeypatch.setenv(name, value)
    return Console(capsys)
