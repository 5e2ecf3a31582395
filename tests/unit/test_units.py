"""Sizes, rates and durations mean what people think they mean, or are refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import RequestError
from config.names import check_name, nearest
from config.units import BYTES, BYTES_PER_SECOND, COUNT, MILLISECONDS, SECONDS, Unit


@given(st.sampled_from([BYTES, BYTES_PER_SECOND, MILLISECONDS, SECONDS, COUNT]), st.integers(0, (1 << 64) - 1))
def test_what_is_printed_reads_back_exactly(unit: Unit, value: int) -> None:
    assert unit.parse(unit.format(value)) == value


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (BYTES, "1k", 1 << 10),
        (BYTES, "1.5 GiB", 3 << 29),
        (BYTES, "4T", 1 << 42),
        (BYTES_PER_SECOND, "200M", 200 << 20),
        (BYTES_PER_SECOND, "200MiB/s", 200 << 20),
        (BYTES_PER_SECOND, "25Gbit/s", 3_125_000_000),
        (BYTES_PER_SECOND, "8kbit", 1000),
        (MILLISECONDS, "0.5s", 500),
        (MILLISECONDS, "2m", 120_000),
        (SECONDS, "500ms", Fraction(1, 2)),
        (SECONDS, "30d", 30 * 86_400),
        (COUNT, "8", 8),
    ],
)
def test_suffixes(unit: Unit, text: str, value: int) -> None:
    assert unit.parse(text) == value


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (BYTES, "1GB"),  # 1000³ or 1024³?
        (BYTES_PER_SECOND, "1Gb"),  # bits or bytes?
        (BYTES, "1G/s"),
        (BYTES, "1e9"),
        (BYTES, "-1"),
        (BYTES, "+1"),
        (BYTES, "0x10"),
        (BYTES, "1_000"),
        (BYTES, "1,5G"),
        (BYTES, ""),
        (BYTES, "G"),
        (BYTES, "1G\n2G"),
        (BYTES, "٣"),
        (BYTES, "9" * 21),
        (MILLISECONDS, "1M s"),
        (MILLISECONDS, "inf"),
        (COUNT, "8K"),
    ],
)
def test_what_could_mean_two_things_or_nothing_is_refused_with_an_example(unit: Unit, text: str) -> None:
    with pytest.raises(ValueError, match="is not understood; write it like"):
        unit.parse(text)


@pytest.mark.parametrize("name", ["a", "host-1", "vm.example.org", "0", "a..b", "x" * 63])
def test_names_that_need_quoting_nowhere_are_taken(name: str) -> None:
    assert check_name("guest", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "A", "a_b", "a b", "a/b", "a\n", "a:b", "é", "x" * 64, "x" * 100_000, None, 7, b"a", ["a"]],
)
def test_names_that_could_leave_a_directory_or_a_key_are_refused(name: object) -> None:
    with pytest.raises(RequestError, match="cannot name a guest: use 1 to 63") as caught:
        check_name("guest", name)
    assert len(str(caught.value)) < 300


def test_a_suggestion_is_made_only_when_something_is_near() -> None:
    assert nearest("xbrle", ["xbzrle", "channels"]) == "; did you mean xbzrle?"
    assert nearest("qqqqqq", ["xbzrle", "channels"]) == ""
