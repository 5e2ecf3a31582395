"""Spans of time on one scale, in percent: what a page draws as bars. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: A bar that is shorter than this would not be seen.
_THINNEST = 0.4


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time. `start` and `seconds` in seconds from whatever the scale begins with."""

    row: str
    what: str
    start: float
    seconds: float
    #: How it is drawn: a phase, or how an attempt ended.
    kind: str
    #: Start and seconds of each, where it lies in several pieces; `seconds` is their sum then.
    pieces: tuple[tuple[float, float], ...] = ()

    @property
    def bars(self) -> tuple[tuple[float, float], ...]:
        """Start and seconds of what is drawn of it: nothing that cannot be, whatever a damaged record says."""
        pieces = self.pieces or ((self.start, self.seconds),)
        return tuple(piece for piece in pieces if all(map(math.isfinite, piece)))


@dataclass(frozen=True, slots=True)
class Bar:
    """Where it begins and how wide it is, in percent of the scale."""

    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Strip:
    """A span on the page."""

    span: Span
    bars: tuple[Bar, ...]


def strips(spans: Iterable[Span]) -> tuple[Strip, ...]:
    """Each span on the scale that all of them share."""
    found = list(spans)
    whole = max((start + seconds for span in found for start, seconds in span.bars), default=0.0) or 1.0
    return tuple(
        Strip(span, tuple(_bar(start / whole, seconds / whole) for start, seconds in span.bars)) for span in found
    )


def _bar(start: float, width: float) -> Bar:
    """Of parts of the scale; whole on it, though two clocks may disagree on which was first."""
    left = min(max(100 * start, 0.0), 100 - _THINNEST)
    return Bar(round(left, 3), round(max(100 * width, _THINNEST), 3))


def part(value: float | None, most: float) -> float:
    """`value` in percent of `most`; 0 where there is nothing to compare."""
    return round(100 * value / most, 3) if value and most > 0 else 0.0
