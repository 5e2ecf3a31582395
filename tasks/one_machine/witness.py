"""The small Linux machine that tests, benchmarks and the demo move: what it boots, and what its witness says.

Its only program, ops/vm/witness.c, works on memory, checks it, and says on the console every few milliseconds how far
it is. `make lab` prepares kernel and initrd in `.lab` of this checkout.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import HostError
from workers.guests.qemu.console import Heard
from workers.guests.qemu.guest import BINARY
from workers.guests.qemu.spec import QemuGuestSpec

_LAB = Path(__file__).resolve().parents[2] / ".lab"
_SAID = re.compile(r"tick=(\d+) bad=(\d+) written=(\d+) checked=(\d+)")


@dataclass(frozen=True, slots=True)
class Tick:
    """One line of the witness. `at`, `place`: see `Heard`; `bad`, `written`, `checked`: pages so far."""

    at: float
    place: int
    number: int
    bad: int
    written: int
    checked: int


def ticks(heard: Iterable[Heard]) -> Iterator[Tick]:
    """What the witness said; other lines of the console are left out."""
    for each in heard:
        if found := _SAID.fullmatch(each.line):
            yield Tick(each.at, each.place, *map(int, found.groups()))


def longest_gap(found: list[Tick]) -> float:
    """Seconds between the two neighbours that lie farthest apart; 0 of fewer than two."""
    return max((after.at - before.at for before, after in itertools.pairwise(found)), default=0.0)


def machine(name: str, memory: int, *, work: int, rate: int, tick: int, words: int = 512, **more: Any) -> QemuGuestSpec:
    """An emulated machine of `memory` bytes whose witness fills `work` of them and writes `rate` bytes/s.

    It speaks every `tick` milliseconds, and of each page that it writes it changes `words` of the 512 words. Raises
    HostError when there is no QEMU, or nothing for it to boot.
    """
    kernel, initrd = _LAB / "linux", _LAB / "vm-initrd"
    if shutil.which(BINARY) is None:
        raise HostError(f"there is no {BINARY} on PATH: install it (Debian: apt install qemu-system-x86)")
    if not (kernel.exists() and initrd.exists()):
        raise HostError(f"there is nothing for a virtual machine to boot in {_LAB}: run `make lab` in a checkout once")
    append = f"console=ttyS0 quiet mib={work >> 20} rate={rate / (1 << 20):g} tick={tick} words={words}"
    shape = {"name": name, "memory": memory, "accel": "tcg", "kernel": str(kernel), "initrd": str(initrd)}
    return QemuGuestSpec.from_json(shape | {"append": append} | more)
