"""Fixtures of a session that end with the last test that asks for them: what they run would take the processors from
all tests after it."""

from __future__ import annotations

from pathlib import Path

import pytest


def asked_for(fixture: str, folder: Path, nextitem: pytest.Item | None) -> bool:
    """Whether `nextitem` or a test after it asks for this fixture of `folder`, itself or through another one."""
    if nextitem is None:
        return False
    items = nextitem.session.items
    left = (each for each in items[items.index(nextitem) :] if folder in each.path.parents)
    return any(fixture in getattr(each, "fixturenames", ()) for each in left)
