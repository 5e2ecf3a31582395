"""One line gives one cluster, the same everywhere, and nothing in it breaks a rule before anything is planned."""

from __future__ import annotations

import hashlib

import pytest

from config.errors import RequestError
from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster
from tasks.planning.rules import memory_left
from tasks.planning.score import score


def digest(cluster: Cluster) -> str:
    said = repr([(guest.name, guest.host, guest.memory, guest.load) for guest in cluster.guests.values()])
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def figures(line: str) -> dict[str, float]:
    return {row.name: row.value for row in score(simulate(line)).rows}


def test_the_same_line_gives_the_same_cluster_and_another_seed_another() -> None:
    line = "hosts=10,guests=100,seed=7,groups=5,uplinks=2,labels=0.2"
    assert simulate(line) == simulate(line)
    assert digest(simulate(line)) != digest(simulate(line.replace("seed=7", "seed=8")))


def test_an_empty_line_is_a_hundred_hosts_of_twenty_guests() -> None:
    found = simulate("")
    assert (len(found.hosts), len(found.guests)) == (100, 2000)
    assert found == simulate(" hosts = 100 , guests=2000,")


def test_memory_is_filled_as_far_as_asked() -> None:
    found = simulate("hosts=20,guests=400,memory=64GiB,fill=0.6")
    assert {host.memory for host in found.hosts.values()} == {64 << 30}
    assert sum(guest.memory for guest in found.guests.values()) / (20 * (64 << 30)) == pytest.approx(0.6, abs=0.01)


def test_load_is_the_part_of_the_cores_that_was_asked_for() -> None:
    found = simulate("hosts=20,guests=400,cpus=32,load=0.25")
    assert sum(guest.load for guest in found.guests.values()) / (20 * 32) == pytest.approx(0.25, abs=0.01)


def test_skew_makes_hosts_unlike() -> None:
    level, skewed, more = (figures(f"hosts=50,guests=1000,skew={skew}")["memory-spread"] for skew in (0, 0.4, 0.9))
    assert level < 0.02
    assert 0.15 < skewed < 0.3 < more


@pytest.mark.parametrize("line", ["fill=0.9,skew=1", "hosts=7,guests=100,groups=30,fill=0.9,skew=0.5,labels=0.4"])
def test_no_rule_is_broken_before_anything_is_planned(line: str) -> None:
    found = simulate(line)
    assert [name for name in found.hosts if memory_left(found, name) < 0] == []
    for names in found.residents.values():
        groups = [group for name in names for group in found.guests[name].groups]
        assert len(groups) == len(set(groups))
    for guest in found.guests.values():
        assert guest.needs <= found.hosts[guest.host].labels


def test_groups_are_of_three_guests() -> None:
    found = simulate("hosts=20,guests=400,groups=40")
    sizes: dict[str, int] = {}
    for guest in found.guests.values():
        for group in guest.groups:
            sizes[group] = sizes.get(group, 0) + 1
    assert (len(sizes), set(sizes.values())) == (40, {3})


def test_racks_hold_neighbours_and_their_uplinks_carry_four_of_them() -> None:
    found = simulate("hosts=20,guests=40,uplinks=4,bandwidth=25Gbit/s")
    assert found.uplinks == {f"rack-{number}": 4 * 3_125_000_000 for number in (1, 2, 3, 4)}
    assert [found.hosts[f"host-{number:02}"].uplink for number in (1, 5, 6, 20)] == [
        "rack-1",
        "rack-1",
        "rack-2",
        "rack-4",
    ]


def test_only_busy_guests_write() -> None:
    found = simulate("guests=1000,busy=0.3")
    writing = [guest for guest in found.guests.values() if guest.dirty_rate]
    assert 250 < len(writing) < 350
    assert {guest.working_set for guest in found.guests.values() if not guest.dirty_rate} == {0}
    assert all(0 < guest.working_set < guest.memory for guest in writing)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("host=10", "has no 'host'; did you mean hosts"),
        ("colour=red", r"has no 'colour' \(it has hosts, guests, seed, memory, .*labels\); write it like hosts=100"),
        ("hosts", "hosts= of a simulated cluster is not understood: '' is not understood; write it like 8"),
        ("hosts=0", "hosts=0 of a simulated cluster is not within 1 and 100000"),
        ("fill=1.2", "fill=1.2 of a simulated cluster is not within 0 and 0.97"),
        ("fill=half", "fill=half of a simulated cluster is not understood"),
        ("skew=nan", "skew=nan of a simulated cluster is not within 0 and 1"),
        ("memory=1GB", "memory=1GB of a simulated cluster is not understood"),
        ("hosts=3,guests=11,fill=0.97", "fits on no host any more; ask for more guests"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_what_to_write(line: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        simulate(line)
