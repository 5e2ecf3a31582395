"""Waiting for what must happen, in tests of real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def until(what: str, look: Callable[[], Found | None], seconds: float, every: float = 0.02) -> Found:
    """The first thing that `look` finds, asked again after `every` seconds; fails naming `what` when nothing comes."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(every)
    return found
