"""Fixtures of a session that end with the last test that asks for them: what they run would take the processors from
all tests after it."""

from __future__ import annotations

import pytest


def asked_for(fixture: str, nextitem: pytest.Item | None) -> bool:
    """Whether `nextitem` or a test after it asks for this fixture, itself or through another one."""
    if nextitem is None:
        return False
    items = nextitem.session.items
    return any(fixture in getattr(each, "fixturenames", ()) for each in items[items.index(nextitem) :])
