"""The check between a peer's write and guest memory."""

from __future__ import annotations

import numpy as np
import pytest

from config.errors import RemoteAccessError
from workers.ranges import PageRange
from workers.transports.contract import RemoteRegion
from workers.transports.regions import Regions

TOP = (1 << 63) - 1


def check(regions: Regions, *rows: tuple[int, int, int]) -> None:
    """Rows of (address, length, key)."""
    address, length, key = np.array(rows, np.int64).reshape(-1, 3).T
    regions.check(address, length, key)


@pytest.fixture
def regions() -> Regions:
    return Regions()


@pytest.fixture
def region(regions: Regions) -> RemoteRegion:
    return regions.add([PageRange(4096, 8192)])[0]


def test_a_region_may_be_filled_to_its_edges(regions: Regions, region: RemoteRegion) -> None:
    check(regions, (4096, 4096, region.key), (4096, 1, region.key), (8191, 1, region.key))


@pytest.mark.parametrize(
    ("address", "length"),
    [(4095, 1), (4095, 2), (8192, 1), (8191, 2), (0, 12288), (-4096, 8192), (TOP, TOP), (6000, 0)],
)
def test_a_byte_over_either_edge_is_refused(regions: Regions, region: RemoteRegion, address: int, length: int) -> None:
    with pytest.raises(RemoteAccessError, match=f"{region.key:#x}"):
        check(regions, (4096, 4096, region.key), (address, length, region.key))


def test_an_address_whose_end_would_wrap_round_is_refused(regions: Regions) -> None:
    (region,) = regions.add([PageRange(0, 1 << 40)])
    with pytest.raises(RemoteAccessError):
        check(regions, (TOP - 10, 4096, region.key))


def test_a_key_that_was_never_given_out_is_told_from_one_withdrawn(regions: Regions, region: RemoteRegion) -> None:
    with pytest.raises(RemoteAccessError, match="never given out"):
        check(regions, (4096, 1, region.key ^ 1))
    regions.remove([region])
    with pytest.raises(RemoteAccessError, match="deregistered"):
        check(regions, (4096, 1, region.key))


def test_withdrawing_one_leaves_the_others(regions: Regions, region: RemoteRegion) -> None:
    others = regions.add(PageRange(start, start + 4096) for start in range(1 << 20, 2 << 20, 8192))
    regions.remove([region, others[3]])
    check(regions, *((other.start, 4096, other.key) for other in others if other is not others[3]))


def test_withdrawing_twice_or_what_never_was_is_harmless(regions: Regions, region: RemoteRegion) -> None:
    regions.remove([region, region, RemoteRegion(0, 1, 0, 5)])
    assert regions.add([PageRange(0, 1)])[0].key != region.key


def test_a_key_drawn_again_or_zero_is_not_given_out(
    regions: Regions, region: RemoteRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions.remove([region])
    draws = iter([0, region.key, 77])
    monkeypatch.setattr("workers.transports.regions.secrets.randbits", lambda bits: next(draws))
    assert regions.add([PageRange(0, 4096)])[0].key == 77
