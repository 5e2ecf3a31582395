"""How many cores a guest keeps busy: its process's time on them between two looks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: Seconds between two looks below which the clock's own grain (10 ms) says more than the guest does.
_TELLING = 1.0


class Loads:
    """Remembers the last look at each process. For one thread."""

    def __init__(self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        #: pid → (when it began, in ticks; when looked at; seconds on a core then; load found)
        self._seen: dict[int, tuple[str, float, float, float]] = {}

    def look(self, pids: Iterable[int]) -> dict[int, float]:
        """Cores in use by each process that is there, 0 at the first look."""
        now, found = self._clock(), {}
        for pid in pids:
            try:
                # The name, in brackets, may hold anything: fields are counted from behind it.
                fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            begun, spent = fields[19], (int(fields[11]) + int(fields[12])) / _TICKS
            before = self._seen.get(pid)
            if before is None or before[0] != begun:
                found[pid] = (begun, now, spent, 0.0)
            elif now - before[1] < _TELLING:
                found[pid] = before
            else:
                found[pid] = (begun, now, spent, max(0.0, spent - before[2]) / (now - before[1]))
        self._seen = found
        return {pid: load for pid, (_, _, _, load) in found.items()}
