"""Who competes in `make bench-vm`, and with which machine. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Bytes of every machine, and those of them that its witness works on: the rest is its kernel's, mostly untouched.
#: The 8 KiB more keep QEMU's migration of an emulated machine from losing writes (workers/guests/qemu/own_settings.py).
MEMORY = (2 << 30) + (8 << 10)
WORK = 1600 << 20
#: Milliseconds: how long the guest may be paused, the same for all.
DOWNTIME_LIMIT = 300
#: Milliseconds between two words of the witness on the console: the resolution of the downtime that the guest felt.
TICK = 2
#: Of the 512 words of a page these are written: an emulated processor that fills whole pages writes 100 MiB/s at most.
WORDS = 64
#: Connections of the data path, ours and QEMU's.
CHANNELS = 4
#: Seconds after which a move that does not end is given up.
PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Case:
    """What the guest does meanwhile. `rate` in bytes/s."""

    name: str
    rate: int

    @property
    def words(self) -> str:
        """For people."""
        return f"writes {self.rate / 1e6:.0f} MB/s" if self.rate else "idle"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of moving it. `verified`: the product's verify-ram, its default; QEMU has nothing like it."""

    name: str
    program: Literal["qemu", "droveway"]
    verified: bool = False


CASES = {case.name: case for case in (Case("idle", 0), Case("dirty", 500_000_000))}
#: In the order in which they run, backwards in every other round: whom a bar compares are neighbours.
CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("qemu", "qemu"),
        Contestant("droveway", "droveway"),
        Contestant("droveway-verified", "droveway", verified=True),
    )
}
