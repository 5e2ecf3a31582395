"""Spans of time on one scale, in percent: what a page draws as bars. Pure."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Strip:
    """A span on the page: where its bar begins and how wide it is, in percent of the scale."""

    span: Span
    left: float
    width: float


def strips(spans: Iterable[Span]) -> tuple[Strip, ...]:
    """Each span on the scale that all of them share."""
    found = list(spans)
    whole = max((span.start + span.seconds for span in found), default=0.0) or 1.0
    return tuple(
        Strip(
            span,
            round(100 * min(span.start / whole, 1 - _THINNEST / 100), 3),
            round(max(100 * span.seconds / whole, _THINNEST), 3),
        )
        for span in found
    )


def part(value: float | None, most: float) -> float:
    """`value` in percent of `most`; 0 where there is nothing to compare."""
    return round(100 * value / most, 3) if value and most > 0 else 0.0
