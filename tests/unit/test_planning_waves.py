"""A schedule keeps every slot, link and byte at every instant, wastes none of them, and ends near its lower bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.evacuation import plan_evacuation
from tasks.planning.moves import Move, apply
from tasks.planning.placement import Placement
from tasks.planning.waves import Schedule, schedule
from tests.clusters import clusters
from tests.replay import replay


def of(*hosts: Host, guests: tuple[Guest, ...], uplinks: dict[str, int] | None = None) -> Cluster:
    return Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in guests}, uplinks or {})


def host(name: str, memory: int = 100, **changes: object) -> Host:
    return Host(name, memory, bandwidth=changes.pop("bandwidth", 1), **changes)  # type: ignore[arg-type]


def times(found: Schedule) -> dict[str, tuple[int, int, int]]:
    """Start and end in whole seconds (the switch-over's fixed milliseconds fall away), and the wave."""
    return {timed.move.guest: (int(timed.start), int(timed.end), timed.wave) for timed in found.moves}


def test_nothing_to_do_takes_no_time() -> None:
    assert schedule(Cluster(), []) == Schedule((), 0.0, 0.0)


def test_one_source_sends_the_longest_first_and_one_at_a_time() -> None:
    cluster = of(host("alpha"), host("beta"), guests=tuple(Guest(f"g{size}", "alpha", size) for size in (10, 30, 20)))
    found = schedule(cluster, [Move(f"g{size}", "alpha", "beta") for size in (10, 30, 20)])
    assert times(found) == {"g30": (0, 30, 1), "g20": (30, 50, 2), "g10": (50, 60, 3)}
    assert [timed.move.guest for timed in found.moves] == ["g30", "g20", "g10"]
    assert found.makespan == found.lower_bound == pytest.approx(60, abs=0.1)


def test_many_small_moves_take_as_long_as_it_takes_to_begin_them() -> None:
    guests = tuple(Guest(f"g{number}", "alpha", 1) for number in range(4))
    moves = [Move(guest.name, "alpha", "beta") for guest in guests]
    found = schedule(of(host("alpha", bandwidth=100), host("beta", bandwidth=100, overhead=2.0), guests=guests), moves)
    assert found.makespan == found.lower_bound == pytest.approx(4 * 2.0, abs=0.2)


def test_hosts_that_share_nothing_do_not_wait_for_each_other() -> None:
    hosts = [host(name) for name in ("alpha", "beta", "gamma", "delta")]
    cluster = of(*hosts, guests=(Guest("a", "alpha", 10), Guest("b", "gamma", 20)))
    found = schedule(cluster, [Move("a", "alpha", "beta"), Move("b", "gamma", "delta")])
    assert times(found) == {"a": (0, 10, 1), "b": (0, 20, 1)}


def test_a_destination_takes_no_more_streams_than_it_has_slots() -> None:
    guests = tuple(Guest(f"g{number}", f"from-{number}", 10) for number in range(3))
    sources = [host(f"from-{number}") for number in range(3)]
    moves = [Move(guest.name, guest.host, "to") for guest in guests]
    narrow = schedule(of(*sources, host("to", bandwidth=10, inbound=1), guests=guests), moves)
    wide = schedule(of(*sources, host("to", bandwidth=10, inbound=2), guests=guests), moves)
    assert sorted(times(narrow).values()) == [(0, 10, 1), (10, 20, 2), (20, 30, 3)]
    assert sorted(times(wide).values()) == [(0, 10, 1), (0, 10, 1), (10, 20, 2)]


def test_a_stream_has_its_link_to_itself_even_where_a_slot_is_free() -> None:
    cluster = of(
        host("alpha", outbound=4),
        host("beta"),
        host("gamma"),
        guests=(Guest("a", "alpha", 10), Guest("b", "alpha", 10)),
    )
    found = schedule(cluster, [Move("a", "alpha", "beta"), Move("b", "alpha", "gamma")])
    assert times(found) == {"a": (0, 10, 1), "b": (10, 20, 2)}


def test_an_uplink_carries_what_it_can_and_moves_behind_it_do_not_wait_for_it() -> None:
    racks = [host(f"{side}-{number}", uplink=side) for side in ("here", "there") for number in range(4)]
    guests = tuple(Guest(f"g{number}", f"here-{number}", 10) for number in range(4))
    away = [Move(f"g{number}", f"here-{number}", f"there-{number}") for number in range(3)]
    within = Move("g3", "here-3", "here-2")
    found = schedule(of(*racks, guests=guests, uplinks={"here": 2, "there": 5}), [*away, within])
    assert times(found) == {"g0": (0, 10, 1), "g1": (0, 10, 1), "g2": (10, 20, 2), "g3": (0, 10, 1)}
    assert found.lower_bound == pytest.approx(15, abs=0.1)  # 30 bytes over 2 bytes/s: two halves would do it


def test_a_move_waits_for_the_memory_that_another_one_frees() -> None:
    hosts = (host("alpha"), host("beta", 40), host("gamma"))
    cluster = of(*hosts, guests=(Guest("big", "alpha", 30), Guest("small", "beta", 20)))
    found = schedule(cluster, [Move("small", "beta", "gamma"), Move("big", "alpha", "beta")])
    assert times(found) == {"small": (0, 20, 1), "big": (20, 50, 2)}


def test_a_later_move_never_takes_the_memory_that_an_earlier_one_waits_for() -> None:
    # By length alone `late` would start at once and fill beta; then `in` waits for `out`, and `out` for `in`.
    hosts = (host("alpha"), host("beta", 40), host("gamma", 25))
    guests = (Guest("late", "alpha", 25), Guest("in", "gamma", 20), Guest("out", "beta", 10))
    moves = [Move("in", "gamma", "beta"), Move("out", "beta", "gamma"), Move("late", "alpha", "beta")]
    with pytest.raises(ValueError, match="late does not fit on beta when its turn comes"):
        schedule(of(*hosts, guests=guests), moves)
    found = schedule(of(hosts[0], host("beta", 45), hosts[2], guests=guests), moves)
    assert times(found) == {"in": (0, 20, 1), "out": (20, 30, 2), "late": (30, 55, 3)}


def test_a_guest_of_the_same_group_comes_after_the_one_that_it_replaces() -> None:
    group = frozenset({"db"})
    guests = (Guest("db-1", "alpha", 50, groups=group), Guest("db-2", "beta", 10, groups=group))
    cluster = of(host("alpha"), host("beta"), host("gamma"), guests=guests)
    moves = [Move("db-2", "beta", "gamma"), Move("db-1", "alpha", "beta")]
    assert times(schedule(cluster, moves)) == {"db-2": (0, 10, 1), "db-1": (10, 60, 2)}


def test_a_guest_that_moves_twice_arrives_before_it_leaves() -> None:
    cluster = of(host("alpha"), host("beta"), host("gamma"), guests=(Guest("web", "alpha", 10),))
    found = schedule(cluster, [Move("web", "alpha", "beta"), Move("web", "beta", "gamma")])
    assert [(timed.move.destination, int(timed.start), timed.wave) for timed in found.moves] == [
        ("beta", 0, 1),
        ("gamma", 10, 2),
    ]


def test_what_is_on_its_way_already_counts_at_its_destination() -> None:
    guests = (Guest("coming", "gamma", 80, moving_to="beta"), Guest("web", "alpha", 30))
    cluster = of(host("alpha"), host("beta"), host("gamma"), guests=guests)
    with pytest.raises(ValueError, match="web does not fit on beta"):
        schedule(cluster, [Move("web", "alpha", "beta")])


def random_moves(cluster: Cluster, choices: st.DataObject) -> list[Move]:
    """Moves of which each can be made once those before it are; a guest may move twice."""
    found = []
    for _ in range(choices.draw(st.integers(1, 12))):
        placement = Placement(cluster)
        guest = choices.draw(st.sampled_from(sorted(cluster.guests)))
        allowed = [placement.hosts[row] for row in placement.candidates(guest).nonzero()[0]]
        if allowed:
            found.append(Move(guest, cluster.guests[guest].host, choices.draw(st.sampled_from(allowed))))
            after = apply(cluster, found[-1])
            assert isinstance(after, Cluster)
            cluster = after
    return found


@settings(max_examples=150, derandomize=True, deadline=None)
@given(clusters(), st.data())
def test_no_rule_slot_link_or_memory_is_broken_at_any_instant(cluster: Cluster, data: st.DataObject) -> None:
    moves = random_moves(cluster, data)
    found = schedule(cluster, moves)
    assert sorted(map(repr, moves)) == sorted(repr(timed.move) for timed in found.moves)
    ended = cluster
    for move in moves:
        ended = apply(ended, move)  # type: ignore[arg-type, assignment]
    assert replay(cluster, found) == ended
    assert found.lower_bound <= found.makespan * (1 + 1e-9)
    assert found.makespan == max((timed.end for timed in found.moves), default=0)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(clusters(), st.data())
def test_a_wave_begins_when_one_of_the_wave_before_ends(cluster: Cluster, data: st.DataObject) -> None:
    found = schedule(cluster, random_moves(cluster, data))
    for timed in found.moves:
        if timed.wave == 1:
            assert timed.start == 0
        else:
            assert timed.start in {before.end for before in found.moves if before.wave == timed.wave - 1}


def test_what_goes_over_busy_links_is_not_left_for_the_end_where_that_would_take_longer() -> None:
    """By the length of the moves alone this one takes 1.047 times its lower bound."""
    cluster = simulate("hosts=100,guests=2000,seed=1,groups=200,uplinks=4,labels=0.1,fill=0.79,skew=0.2")
    plan = plan_evacuation(cluster, sorted(cluster.hosts)[::5])
    assert len(plan.moves) == 402
    assert plan.schedule.makespan <= 1.01 * plan.schedule.lower_bound


def test_two_thousand_moves_end_within_a_hundredth_of_the_lower_bound() -> None:
    cluster = simulate("hosts=1000,guests=20000,seed=3,uplinks=25,memory=1TiB")
    names = sorted(cluster.hosts)
    moves = [
        Move(guest.name, guest.host, names[(names.index(guest.host) + 37 * (number % 11 + 1)) % 1000])
        for number, guest in enumerate(cluster.guests[name] for name in sorted(cluster.guests)[:2000])
    ]
    found = schedule(cluster, moves)
    assert found.makespan <= 1.01 * found.lower_bound
    assert len(found.moves) == 2000
