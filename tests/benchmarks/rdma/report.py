"""From measurements to ratios, bars and the README's table. Pure.

Ratios are taken within a round, whose contestants ran one after the other, and their median is what counts: from one
round to the next the machine may become twice as fast, because of what else it does.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.rdma.contestants import MEMORY, PIN_BUDGET
from workers.transports.verbs.work_requests import LENGTH

_CHUNK_BITS = (1 << 20) * 8
_LABELS = {
    "qemu-dynamic": "QEMU `rdma`",
    "qemu-pin-all": "QEMU `rdma`, `rdma-pin-all`",
    "qemu-tcp": "QEMU `tcp`",
    "dynamic": "Droveway `verbs`",
    "pin-all": "Droveway `verbs`, `rdma-pin-all`",
    "windowed": f"Droveway `verbs`, `pin-budget={PIN_BUDGET >> 20}M`",
    "tcp": "Droveway `tcp`",
    "dynamic-verified": "Droveway `verbs`, `verify-ram`",
    "half-dynamic": "half-used guest, Droveway `verbs`",
    "half-pin-all": "half-used guest, Droveway `verbs`, `rdma-pin-all`",
}
#: Contestant, against which, at most this part of its time.
_BARS = (
    ("pin-all", "qemu-pin-all", 0.85),
    ("dynamic", "qemu-dynamic", 0.5),
    ("dynamic", "pin-all", 1.0),
    ("half-dynamic", "dynamic", 0.6),
    ("half-pin-all", "pin-all", 0.6),
)
_SHUFFLES = 10_000


@dataclass(frozen=True, slots=True)
class Spread:
    """Some measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise and what was measured; `str` is the line that says whether it was kept."""

    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"bar: {self.name} {self.value:.3f} <= {self.limit:.3f} {'met' if self.met else 'short'}"


Results = Mapping[str, Any]
"""As tests/benchmarks/results/rdma.json holds them: machine, runs, pinned, posting, moves."""


def seconds(results: Results, contestant: str) -> dict[int, float]:
    """What it took in each round that counts."""
    return {run["round"]: run["seconds"] for run in results["runs"] if run["contestant"] == contestant and run["round"]}


def ratio(results: Results, contestant: str, other: str) -> Spread:
    """Its time by the other's, round by round."""
    mine, theirs = seconds(results, contestant), seconds(results, other)
    return Spread.of([mine[number] / theirs[number] for number in mine.keys() & theirs.keys()])


def peak(results: Results, contestant: str) -> tuple[int, int]:
    """The most bytes that its source and its destination were seen to have pinned."""
    series = results["pinned"][contestant]
    return max(row[1] for row in series), max(row[2] for row in series)


def bars(results: Results) -> list[Bar]:
    """One for every promise that these results say something about."""
    found = []
    if results["runs"]:
        found += [Bar(f"{one}/{other}", ratio(results, one, other).median, limit) for one, other, limit in _BARS]
        found.append(Bar("windowed-pinned/pin-budget", max(peak(results, "windowed")) / PIN_BUDGET, 1.0))
    if results["moves"]:
        off, on = downtimes(results)
        found.append(Bar("downtime-pin-all/off-folded", folded(off, on), noise(off, on)))
    return found


def downtimes(results: Results) -> tuple[list[float], list[float]]:
    """Seconds of each move without and with rdma-pin-all."""
    moves = results["moves"]
    off, on = ([move["downtime"] for move in moves if move["pin_all"] is pinned] for pinned in (False, True))
    return off, on


def folded(off: Sequence[float], on: Sequence[float]) -> float:
    """How far apart the two medians are as a factor of at least 1, whichever is larger: neither way may they differ."""
    factor = median(on) / median(off)
    return max(factor, 1 / factor)


def noise(off: Sequence[float], on: Sequence[float]) -> float:
    """What `folded` comes to in 95 of 100 cases when the setting makes no difference.

    If it makes none, it is chance which of these downtimes stand on which side. So they are dealt out anew, 10,000
    times (a permutation test, with a fixed seed). More moves make the limit tighter, a restless machine wider.
    """
    shuffled = random.Random(1)
    pool = [*off, *on]
    factors = []
    for _ in range(_SHUFFLES):
        shuffled.shuffle(pool)
        factors.append(folded(pool[: len(off)], pool[len(off) :]))
    return sorted(factors)[_SHUFFLES * 95 // 100]


def gigabits(microseconds: float) -> float:
    """What one thread could post in Gb/s, at 1 MiB a request."""
    return _CHUNK_BITS / microseconds / 1e3


def table(results: Results) -> str:
    """The README's table, in Markdown."""
    machine, rounds = results["machine"], len(seconds(results, "dynamic"))
    loads = Spread.of([run["host_load"] for run in results["runs"] if run["round"]])
    machine_words = (
        f"({machine['cpus']} processors, Linux {machine['kernel']}, soft-RoCE, QEMU {machine['qemu']}, "
        f"rdma-core {machine['rdma-core']})"
    )
    lines = [
        _paragraph(
            f"{MEMORY >> 20} MiB of random memory, a destination that has none of it yet, both in one emulated machine "
            f"{machine_words}; {rounds} interleaved rounds, host load {loads.low:.0f} to {loads.high:.0f} "
            f"(`make bench-rdma`, {results['date']}):"
        ),
        "",
        "| | seconds, median | range | MiB/s | pinned at most: source, destination |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(results, name) for name in _LABELS]
    return "\n".join([*lines, "", _notes(results)])


def _row(results: Results, name: str) -> str:
    taken = Spread.of(list(seconds(results, name).values()))
    pinned = ""
    if name in results["pinned"]:
        pinned = ", ".join(f"{size / (1 << 20):.0f} MiB" for size in peak(results, name))
    rate = (MEMORY >> 20) / taken.median
    return f"| {_LABELS[name]} | {taken.median:.2f} | {taken.low:.2f}-{taken.high:.2f} | {rate:.0f} | {pinned} |"


def _notes(results: Results) -> str:
    posting = results["posting"]
    native, emulated = posting["native"], posting["post"]
    text = (
        f"Filling a request of a list of {LENGTH} takes {native:.2f} µs natively, which alone would allow "
        f"{gigabits(native):,.0f} Gb/s at 1 MiB a request. In the emulated machine it takes {posting['fill']:.1f}, and "
        f"{emulated:.0f} with posting, soft-RoCE's own work included: {gigabits(emulated):,.0f} Gb/s."
    )
    if results["moves"]:
        off, on = (Spread.of(side) for side in downtimes(results))
        text += (
            f" Downtime of a guest under write load over `verbs`, {len(results['moves']) // 2} moves each: "
            f"{on.median * 1e3:.0f} ms with `rdma-pin-all` ({on.low * 1e3:.0f}-{on.high * 1e3:.0f}), "
            f"{off.median * 1e3:.0f} without ({off.low * 1e3:.0f}-{off.high * 1e3:.0f})."
        )
    return _paragraph(text)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
