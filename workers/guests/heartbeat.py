"""How long a guest did not run: the gaps between its ticks, also across a move.

Time is given, never read here, so that the arithmetic can be tried with invented clocks. Within one boot of one machine
CLOCK_BOOTTIME is the same for all processes and is used across a move; between machines it is CLOCK_REALTIME, which is
as good as the two clocks agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from workers.guests.memory_content import count_of

#: About a minute of ticks at 1 kHz.
KEPT = 1 << 16


class Instant(NamedTuple):
    """One moment on both clocks, in nanoseconds, and the boot whose clock `boottime` is."""

    boot_id: str
    boottime: int
    realtime: int


class Heartbeat:
    """Collects the gaps between ticks, in nanoseconds of CLOCK_BOOTTIME."""

    def __init__(self, boottime: int) -> None:
        self._last = boottime
        self._longest = 0
        self._gaps = np.zeros(KEPT, np.int64)
        self._count = 0
        self._moved = False
        self._move_gap: int | None = None

    def tick(self, boottime: int) -> None:
        """The guest runs at this moment."""
        gap = max(0, boottime - self._last)
        self._last = boottime
        self._gaps[self._count % KEPT] = gap
        self._count += 1
        self._longest = max(self._longest, gap)
        if self._moved:
            self._moved, self._move_gap = False, gap

    def restart(self, boottime: int) -> None:
        """Do not count the time since the last tick: the guest was held by its own check, not by a move."""
        self._last = boottime

    def reset(self) -> None:
        """Forget the gaps so far, but for the one across the last move."""
        self._longest = self._count = 0

    def report(self) -> dict[str, Any]:
        """Seconds; `move_gap_seconds` is None for a guest that never moved."""
        gaps = self._gaps[: min(self._count, KEPT)]
        median, high = np.percentile(gaps, (50, 99)).tolist() if len(gaps) else (0, 0)
        return {
            "longest_gap_seconds": self._longest / 1e9,
            "gap_p50_seconds": median / 1e9,
            "gap_p99_seconds": high / 1e9,
            "move_gap_seconds": None if self._move_gap is None else self._move_gap / 1e9,
        }

    def to_state(self, now: Instant) -> dict[str, Any]:
        """The last tick on both clocks, and the longest gap."""
        since = now.boottime - self._last
        return {
            "boot_id": now.boot_id,
            "boottime": self._last,
            "realtime": now.realtime - since,
            "longest": self._longest,
        }

    def load(self, state: dict[str, Any], now: Instant) -> None:
        """Go on after a move: the next tick's gap reaches back to the source's last tick.

        Raises ValueError or KeyError when the state is not one of `to_state`.
        """
        same_clock = state["boot_id"] == now.boot_id
        since = now.boottime - count_of(state["boottime"]) if same_clock else now.realtime - count_of(state["realtime"])
        self._longest = count_of(state["longest"])
        self._last = now.boottime - max(0, since)
        self._moved = True
