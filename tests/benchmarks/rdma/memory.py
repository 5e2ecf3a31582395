"""Guests' memory for the contestants, and what of it they keep pinned."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tests.benchmarks.rdma.contestants import MEMORY, STRETCH
from workers.ranges import PAGE_SIZE

_BLOCK = 8 << 20


def make_guest(path: Path, *, half: bool) -> Path:
    """A RAM file of random bytes, no two pages alike; with `half`, every other stretch of it a hole."""
    random = np.random.default_rng(1).integers(1, 1 << 63, _BLOCK // 8, np.uint64).reshape(-1, PAGE_SIZE // 8)
    with path.open("wb") as file:
        for start in range(0, MEMORY, _BLOCK):
            if not half or start // STRETCH % 2 == 0:
                file.seek(start)
                # Making all of it anew takes a minute on an emulated processor.
                random[:, 1] = np.arange(len(random), dtype=np.uint64) + np.uint64(start // PAGE_SIZE)
                file.write(random.data)
        file.truncate(MEMORY)
    return path


def make_cold(path: Path) -> Path:
    """A RAM file of which no page exists."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(MEMORY)
    return path


def same(one: Path, other: Path) -> bool:
    """Whether they hold the same. Read, not mapped: reading a hole through a mapping would fill it."""
    mine, theirs = bytearray(_BLOCK), bytearray(_BLOCK)
    with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
        while size := left.readinto(mine):
            if right.readinto(theirs) != size or mine != theirs:
                return False
        return not right.read(1)


def allocated(path: Path) -> int:
    """Bytes of it that exist."""
    return path.stat().st_blocks * 512


class Pinned:
    """VmPin of two processes over time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        #: Rows of (seconds, the source's bytes, the destination's), each as soon as one was seen to differ.
        self.series: list[tuple[float, int, int]] = []

    def look(self, source: int, destination: int) -> None:
        """Note what these processes have pinned now."""
        now = _vm_pin(source), _vm_pin(destination)
        if not self.series or self.series[-1][1:] != now:
            self.series.append((round(time.monotonic() - self._began, 3), *now))


def _vm_pin(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmPin:"):
            return int(line.split()[1]) << 10
    return 0
