"""The shape of a memory guest: what a task, a command or a source may ask for, and which pages it comes to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from config.errors import RequestError
from config.names import check_groups, check_labels
from workers.ranges import PAGE_SIZE

Words = npt.NDArray[np.uint64]

PATTERNS = ("random", "sequential", "hot")
#: Used memory lies in this many stretches with holes between them, so that a mover meets more than one.
STRIPES = 16

#: What a guest that was started before these fields were there does not have.
_LATER = {"anti_affinity", "needs"}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class MemoryGuestSpec:
    """The shape of a memory guest.

    Shapes: `memory` bytes, a multiple of 4096; `dirty_rate` and `check_rate` bytes a second; `used` is the part of the
    memory that is ever touched (0 < used ≤ 1), `zeros` the part of the writes that store a page of zeros
    (0 ≤ zeros < 1). `hot` sends nine writes of ten to a tenth of the used pages. No two guests with a word of
    `anti_affinity` in common are planned onto one host; `needs` are labels that its host must have. Raises RequestError
    on anything else.
    """

    name: str
    memory: int
    dirty_rate: int = 0
    pattern: str = "random"
    used: float = 0.8
    zeros: float = 0.05
    check_rate: int = 50_000_000
    seed: int = 0
    anti_affinity: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "anti_affinity", check_groups(self.anti_affinity))
        object.__setattr__(self, "needs", check_labels(self.needs))
        for part, (good, want) in self._judged().items():
            if not good:
                raise RequestError(f"a memory guest's {part} must be {want}, not {getattr(self, part)!r}")

    def _judged(self) -> dict[str, tuple[bool, str]]:
        def whole(value: object, low: int, high: int = 1 << 60) -> bool:
            return type(value) is int and low <= value < high

        def part(value: object) -> bool:
            return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]

        named = isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None
        pages = whole(self.memory, PAGE_SIZE) and self.memory % PAGE_SIZE == 0
        return {
            "name": (named, "up to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit"),
            "memory": (pages, f"a positive multiple of {PAGE_SIZE} bytes"),
            "dirty_rate": (whole(self.dirty_rate, 0), "0 or more bytes a second"),
            "pattern": (self.pattern in PATTERNS, " or ".join(PATTERNS)),
            "used": (part(self.used) and self.used > 0, "above 0 and at most 1"),
            "zeros": (part(self.zeros) and self.zeros < 1, "at least 0 and below 1"),
            "check_rate": (whole(self.check_rate, 0), "0 or more bytes a second"),
            "seed": (whole(self.seed, 0), "0 or more"),
        }

    @classmethod
    def from_json(cls, shape: object) -> MemoryGuestSpec:
        """Decode `to_json`. Raises RequestError on a missing or unknown key and on a bad value."""
        known = {part.name for part in fields(cls)}
        if not isinstance(shape, dict) or not known - _LATER <= set(shape) <= known:
            raise RequestError(f"a memory guest's shape must have exactly the keys {', '.join(sorted(known))}")
        return cls(**shape)

    def to_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self) | {"anti_affinity": list(self.anti_affinity), "needs": list(self.needs)}

    @property
    def used_bytes(self) -> int:
        """Memory that the guest will touch."""
        return Layout.of(self).used * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the used pages lie: the first `run` pages of each `stripe`, all counted in pages."""

    stripe: int
    run: int
    used: int

    @classmethod
    def of(cls, spec: MemoryGuestSpec) -> Layout:
        """Spread the used part of the memory over the stripes."""
        pages = spec.memory // PAGE_SIZE
        stripe = max(1, pages // STRIPES)
        run = max(1, round(stripe * spec.used))
        return cls(stripe, run, pages // stripe * run)

    def page(self, logical: Words) -> Words:
        """Page index in guest memory of the used pages numbered `logical`."""
        return logical // np.uint64(self.run) * np.uint64(self.stripe) + logical % np.uint64(self.run)
