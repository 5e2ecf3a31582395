"""What a page of the memory guest holds, and what it means when it holds something else.

Words of a page (u64, native order): 0 the guest's identity, 1 page index, 2 sequence number (how often this page was
written), 3… body; every body word depends on all three. Checking compares each word with what it must be, which is
stronger than a checksum would be. Some writes store a page of zeros: a mover that takes a zero page for an untouched
one leaves the old content behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import xxhash

from workers.guests.memory_spec import MemoryGuestSpec, Words
from workers.ranges import PAGE_SIZE

WORDS = PAGE_SIZE // 8
TORN_DEPTH = 8  # generations back in which the words of a torn page are looked for
EXAMPLES = 8


class Damage(StrEnum):
    """What can be wrong with a page."""

    LOST = "lost"  # zeros where content was written
    STALE = "stale"  # an older generation of this page
    NEWER = "newer"  # written after the device state was saved
    MISPLACED = "misplaced"  # another page of this guest
    TORN = "torn"  # words of several generations
    GARBLED = "garbled"  # words that this guest never wrote here
    STRAY = "stray"  # content where nothing was ever written


class DamagedPage(NamedTuple):
    """One page that is not as it must be; the sequence numbers count writes, `found` is None where none can be read."""

    page: int
    kind: Damage
    expected: int
    found: int | None


@dataclass(slots=True)
class Findings:
    """What checking has found."""

    pages_checked: int = 0
    kinds: dict[Damage, int] = field(default_factory=dict)
    examples: list[DamagedPage] = field(default_factory=list)

    @property
    def corrupt(self) -> int:
        """Damaged pages."""
        return sum(self.kinds.values())

    def note(self, damaged: DamagedPage) -> None:
        """Count one damaged page; the first few are kept as examples."""
        self.kinds[damaged.kind] = self.kinds.get(damaged.kind, 0) + 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(damaged)

    def to_json(self) -> dict[str, Any]:
        """For the report and the device state."""
        return {
            "pages_checked": self.pages_checked,
            "corrupt": self.corrupt,
            "corrupt_kinds": {kind.value: count for kind, count in self.kinds.items()},
            "examples": [example._asdict() for example in self.examples],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Findings:
        """Decode `to_json`. Raises ValueError, TypeError or KeyError on anything else."""
        kinds = {Damage(kind): count_of(number) for kind, number in dict(found["corrupt_kinds"]).items()}
        return cls(count_of(found["pages_checked"]), kinds, [_example(each) for each in found["examples"][:EXAMPLES]])


def _example(raw: dict[str, Any]) -> DamagedPage:
    found = None if raw["found"] is None else count_of(raw["found"])
    return DamagedPage(count_of(raw["page"]), Damage(raw["kind"]), count_of(raw["expected"]), found)


def count_of(value: object) -> int:
    """A number that came from outside, if it can be a count of anything here. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is not a count")
    return value


def mix(words: Words) -> Words:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): ours, as numpy's own streams may change between versions."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Content:
    """Makes the pages of one guest."""

    def __init__(self, spec: MemoryGuestSpec) -> None:
        self.identity = np.uint64(xxhash.xxh3_64_intdigest(f"memory guest {spec.name} {spec.seed}".encode()))
        self._factors = mix(np.arange(WORDS, dtype=np.uint64) ^ self.identity) | np.uint64(1)
        self._zeros_below = np.uint64(spec.zeros * (1 << 53))

    def make(self, out: Words, pages: Words, sequences: Words) -> Words:
        """Write the pages into `out` (shape (≥ n, 512)) and return its first n rows; sequence 0 is a hole."""
        rows = out[: len(pages)]
        keys = mix(mix(sequences ^ self.identity) ^ pages)
        np.multiply(keys[:, None], self._factors[None, :], out=rows)
        rows[:, 0], rows[:, 1], rows[:, 2] = self.identity, pages, sequences
        rows[((keys >> np.uint64(11)) < self._zeros_below) | (sequences == 0)] = 0
        return rows

    def one(self, page: int, sequence: int) -> Words:
        """A single page. Shape (512,)."""
        numbers = np.array([page, sequence], np.uint64)
        return self.make(np.empty((1, WORDS), np.uint64), numbers[:1], numbers[1:]).reshape(WORDS)

    def judge(self, words: Words, page: int, expected: int) -> tuple[Damage, int, int | None]:
        """What happened to a page that is not as expected: kind, sequence number expected, and the one it carries."""
        if not words.any():
            return Damage.LOST, expected, None
        found_page, found = int(words[1]), int(words[2])
        if words[0] == self.identity and np.array_equal(words, self.one(found_page, found)):
            if found_page != page:
                return Damage.MISPLACED, expected, found
            return (Damage.STALE if found < expected else Damage.NEWER), expected, found
        known = np.zeros(WORDS, np.bool_)
        for generation in range(expected, max(-1, expected - TORN_DEPTH), -1):
            known |= words == self.one(page, generation)
        return (Damage.TORN if known.all() else Damage.GARBLED), expected, None
