"""Sizes, rates and times for people: three digits that matter, and the unit. Pure."""

from __future__ import annotations

import math

_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
NOTHING = "-"


def size(value: float | None) -> str:
    """Bytes, in powers of 1024 as everywhere else."""
    if value is None:
        return NOTHING
    for factor, unit in _BINARY:
        if abs(value) >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:.0f} B"


def byte_rate(value: float | None) -> str:
    """Bytes a second, as a guest writes."""
    return NOTHING if value is None else f"{size(value)}/s"


def bit_rate(value: float | None) -> str:
    """Bytes a second as a link's rate: powers of 1000, as links are sold."""
    if value is None:
        return NOTHING
    bits = value * 8
    return f"{_three(bits / 1e9)} Gb/s" if bits >= 1e8 else f"{_three(bits / 1e6)} Mb/s"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 1:
        return f"{_three(value * 1e3)} ms"
    if value < 120:
        return f"{_three(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def instant(value: float | None) -> str:
    """A point on an axis of seconds, to the millisecond: what lies close together must be told apart."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 120:
        return f"{value:.3f} s"
    minutes, rest = divmod(round(value, 3), 60)
    return f"{minutes:.0f} min {rest:06.3f} s"


def _three(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"
