"""What becomes of a test whose machine lacks what it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip at a desk; fail where everything is required, so that a gap there cannot look like a success."""
    if os.environ.get("DROVEWAY_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and DROVEWAY_REQUIRE_ALL=1 allows no skips", pytrace=False)
    pytest.skip(what)
