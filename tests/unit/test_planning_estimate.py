"""What a move will take is the sum of its rounds, and a guest that writes too fast is said to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.estimate import MAX_ROUNDS, crossed, estimate, path_bandwidth, path_overhead

GIB = 1 << 30
FIXED = 0.015


def test_an_idle_guest_takes_its_memory_by_the_bandwidth() -> None:
    found = estimate(Guest("web", "alpha", 10_000), 1000)
    assert (found.seconds, found.downtime) == (pytest.approx(10 + FIXED), FIXED)
    assert (found.bytes, found.rounds, found.converges, found.reason) == (10_000, 1, True, "")


def test_rounds_shrink_by_the_part_of_the_bandwidth_that_is_written_anew() -> None:
    # 8000 in 8 s, then 2000 in 2 s, 500 in 0.5 s; 125 are left: 0.125 s, within the limit.
    found = estimate(Guest("web", "alpha", 8000, dirty_rate=250), 1000)
    assert found.rounds == 3
    assert found.bytes == 8000 + 2000 + 500 + 125
    assert found.downtime == pytest.approx(0.125 + FIXED)
    assert found.seconds == pytest.approx(10.625 + FIXED)
    assert found.converges


def test_a_smaller_downtime_limit_takes_more_rounds_and_gives_less_downtime() -> None:
    guest = Guest("web", "alpha", 8000, dirty_rate=250)
    short, long = estimate(guest, 1000, downtime_limit=0.05), estimate(guest, 1000, downtime_limit=3)
    assert (short.rounds, long.rounds) == (4, 1)
    assert short.downtime < long.downtime == pytest.approx(2 + FIXED)


def test_no_round_is_longer_than_the_working_set() -> None:
    found = estimate(Guest("web", "alpha", 8000, dirty_rate=900, working_set=400), 1000, downtime_limit=0.3)
    # 8000, then 400, 360, 324; 291 are left.
    assert (found.rounds, found.bytes) == (4, 8000 + 400 + 360 + 324 + 291)


def test_a_guest_that_writes_as_fast_as_its_path_carries_does_not_converge() -> None:
    found = estimate(Guest("web", "alpha", 8000, dirty_rate=1000, working_set=2000), 1000)
    assert not found.converges
    assert found.reason == (
        "web writes 1000 bytes/s, its path carries 1000: 2000 bytes are left after 30 rounds, 2.0 s"
    )
    assert found.downtime == pytest.approx(2 + FIXED)
    assert found.bytes == 8000 + MAX_ROUNDS * 2000


def test_a_guest_that_writes_nearly_as_fast_is_cut_off_by_the_rounds() -> None:
    found = estimate(Guest("web", "alpha", 8000, dirty_rate=990), 1000)
    assert not found.converges
    assert found.reason.startswith("web writes 990 bytes/s, nearly the 1000 that its path carries: ")
    assert found.rounds == MAX_ROUNDS


def test_a_guest_that_writes_fast_in_little_memory_converges() -> None:
    found = estimate(Guest("web", "alpha", 8000, dirty_rate=5000, working_set=200), 1000)
    assert (found.converges, found.rounds, found.downtime) == (True, 1, pytest.approx(0.2 + FIXED))


@settings(max_examples=100, derandomize=True)
@given(st.integers(1, 64 * GIB), st.integers(0, 4 * GIB), st.integers(0, 64 * GIB), st.integers(1, 25 * GIB))
def test_what_converges_fits_the_limit_and_everything_is_sent_once_at_least(
    memory: int, dirty: int, working_set: int, bandwidth: int
) -> None:
    found = estimate(Guest("web", "alpha", memory, dirty_rate=dirty, working_set=working_set), bandwidth)
    assert found.bytes >= memory
    assert found.seconds == pytest.approx(found.bytes / bandwidth + FIXED)
    assert found.converges == (found.downtime <= 0.3 + FIXED + 1e-9)
    assert found.converges == (found.reason == "")
    assert found.rounds <= MAX_ROUNDS


# --- the path ---------------------------------------------------------------------------------------------------------

HOSTS = (
    Host("alpha", 1, bandwidth=10, uplink="rack-1"),
    Host("beta", 1, bandwidth=8, uplink="rack-1"),
    Host("gamma", 1, bandwidth=9, uplink="rack-2"),
    Host("delta", 1, bandwidth=9),
    Host("epsilon", 1, bandwidth=9, uplink="unmeasured"),
)
CLUSTER = Cluster({host.name: host for host in HOSTS}, {}, {"rack-1": 6, "rack-2": 4})


@pytest.mark.parametrize(
    ("source", "destination", "uplinks", "bandwidth"),
    [
        ("alpha", "beta", (), 8),
        ("alpha", "gamma", ("rack-1", "rack-2"), 4),
        ("gamma", "alpha", ("rack-2", "rack-1"), 4),
        ("alpha", "delta", ("rack-1",), 6),
        ("delta", "gamma", ("rack-2",), 4),
        ("delta", "epsilon", (), 9),
    ],
)
def test_a_path_is_as_wide_as_its_narrowest_link(
    source: str, destination: str, uplinks: tuple[str, ...], bandwidth: int
) -> None:
    assert crossed(CLUSTER, source, destination) == uplinks
    assert path_bandwidth(CLUSTER, source, destination) == bandwidth


def test_a_move_takes_as_long_to_begin_as_its_slower_host_lately_needed() -> None:
    ends = [Host("alpha", 1, overhead=1.5), Host("beta", 1, overhead=0.5), Host("gamma", 1)]
    cluster = Cluster({host.name: host for host in ends})
    assert path_overhead(cluster, "beta", "alpha") == 1.5
    assert path_overhead(cluster, "gamma", "beta") == 0.5
    plain, begun = (estimate(Guest("web", "alpha", 10_000, 100), 1000, overhead=each) for each in (0.0, 1.5))
    assert begun.seconds == pytest.approx(plain.seconds + 1.5)
    assert (begun.downtime, begun.bytes, begun.rounds) == (plain.downtime, plain.bytes, plain.rounds)


def test_a_stream_takes_what_was_measured_where_that_is_less_than_the_link() -> None:
    ends = [Host("alpha", 1, bandwidth=10, stream=6), Host("beta", 1, bandwidth=8, stream=9), Host("gamma", 1)]
    cluster = Cluster({host.name: host for host in ends})
    assert path_bandwidth(cluster, "alpha", "beta") == 6
    assert path_bandwidth(cluster, "beta", "gamma") == 8
