"""Sizes, rates and durations as people write them: `1G`, `10Gbit/s`, `100ms`. Pure.

A size's letters mean powers of 1024, as in QEMU; bit rates mean powers of 1000, as links are sold. `GB` and `Gb` are
refused, because half of their readers mean something else by them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

#: Twenty digits hold every 64-bit number; without a bound, a megabyte of digits would be an attack on int().
_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*([a-z/]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unit:
    """What one number counts, and the words in which people may write it.

    `factors` says how many of the base unit a suffix stands for (lower case; `""` for a bare number); `shown` are the
    suffixes used for printing, the largest first; `examples` is what an error message offers.
    """

    name: str
    factors: Mapping[str, Fraction | int]
    shown: tuple[str, ...]
    examples: str

    def parse(self, text: str) -> Fraction:
        """How many of the base unit `text` stands for, exactly. Raises ValueError with a sentence fragment."""
        match = _QUANTITY.fullmatch(text.strip())
        factor = self.factors.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ValueError(f"{text!r:.40} is not understood; write it like {self.examples}")
        return Fraction(match[1]) * factor

    def whole(self, text: str) -> int:
        """As `parse`, of what must be a whole number. Raises ValueError with a sentence fragment."""
        exact = self.parse(text)
        if exact.denominator != 1:
            of = f" of {self.name}" if self.name else ""
            raise ValueError(f"{text!r:.40} is not a whole number{of}")
        return exact.numerator

    def format(self, value: int) -> str:
        """`value` in the largest unit that divides it, so that parsing gives back exactly `value`."""
        if value:
            for suffix in self.shown:
                factor = self.factors[suffix.lower()]
                if value % factor == 0:
                    return f"{value // factor}{suffix}"
        return str(value)


def _powers(base: int, suffixes: Mapping[str, int]) -> dict[str, int]:
    return {suffix: base**power for suffix, power in suffixes.items()}


_BYTES = {
    "": 1,
    **_powers(1024, {"k": 1, "m": 2, "g": 3, "t": 4}),
    **_powers(1024, {"kib": 1, "mib": 2, "gib": 3, "tib": 4}),
}
_BITS = {f"{prefix}bit": Fraction(1000**power, 8) for power, prefix in enumerate(("", "k", "m", "g", "t"))}
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}

BYTES = Unit("bytes", _BYTES, ("TiB", "GiB", "MiB", "KiB"), "1G, 512MiB or a number of bytes (powers of 1024)")
BYTES_PER_SECOND = Unit(
    "bytes/s",
    {**_BYTES, **{f"{suffix}/s": factor for suffix, factor in _BYTES.items() if suffix}}
    | {**_BITS, **{f"{suffix}/s": factor for suffix, factor in _BITS.items()}},
    ("TiB/s", "GiB/s", "MiB/s", "KiB/s"),
    "1G, 512MiB/s, 10Gbit/s or a number of bytes per second",
)
MILLISECONDS = Unit(
    "ms",
    {"": 1, **{suffix: seconds * 1000 for suffix, seconds in _SECONDS.items()}},
    ("s", "ms"),
    "100ms, 2s, 5m or a number of milliseconds",
)
SECONDS = Unit("s", {"": 1, **_SECONDS}, ("d", "h", "m", "s"), "30s, 5m, 1h or a number of seconds")
COUNT = Unit("", {"": 1}, (), "8")
