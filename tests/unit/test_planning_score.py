"""The score is 0 for a cluster that is as good as can be, and what a move would change is what it does change."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.placement import Placement
from tasks.planning.score import ROWS, Shift, changes, changes_of, imbalance, score, score_of
from tests.clusters import clusters


def of(*hosts: Host, guests: tuple[Guest, ...] = ()) -> Cluster:
    return Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in guests})


def figures(cluster: Cluster) -> dict[str, float]:
    return {row.name: row.value for row in score(cluster).rows}


def test_an_even_cluster_scores_nothing_whatever_the_size_of_its_hosts() -> None:
    hosts = (Host("alpha", 100, cpus=4), Host("beta", 200, cpus=8))
    guests = (Guest("web", "alpha", 10, load=1), Guest("db", "beta", 20, load=2))
    assert score(of(*hosts, guests=guests)).total == pytest.approx(0, abs=1e-12)


def test_an_empty_cluster_scores_nothing() -> None:
    assert score(Cluster()).total == 0
    assert score(of(Host("alpha", 100))).total == 0


def test_imbalance_is_deviation_by_mean() -> None:
    assert imbalance(np.array([0.5, 0.5])) == 0
    assert imbalance(np.array([0.0, 1.0])) == 1
    assert imbalance(np.array([0.0, 0.2])) == 1


def test_each_row_counts_what_its_name_says() -> None:
    hosts = (
        Host("alpha", 100, cpus=4, uplink="rack-1"),
        Host("beta", 100, cpus=4, uplink="rack-1"),
        Host("gamma", 100, cpus=4, cordoned="repairs"),
        Host("delta", 100, stale=True),
    )
    guests = (
        Guest("a", "alpha", 30, load=6, groups=frozenset("x")),
        Guest("b", "beta", 10, load=2, groups=frozenset("x")),
        Guest("c", "gamma", 10),
        Guest("d", "delta", 90, load=9),
    )
    assert figures(of(*hosts, guests=guests)) == {
        "memory-spread": pytest.approx(0.5),
        "load-spread": pytest.approx(0.5),
        "cpu-contention": pytest.approx(0.5 / 4),
        "on-cordoned": pytest.approx(1 / 4),
        "group-uplinks": pytest.approx(1 / 2),
    }


def test_a_score_is_plain_data_for_json() -> None:
    said = json.loads(json.dumps(score(of(Host("alpha", 100))).to_json()))
    assert said["total"] == 0
    assert [row["name"] for row in said["rows"]] == [row.name for row in ROWS]


def test_every_weight_has_its_reason() -> None:
    assert [row.name for row in ROWS if not row.reason or row.weight <= 0] == []


@settings(max_examples=60, derandomize=True, deadline=None)
@given(clusters())
def test_what_a_move_would_change_is_what_it_changes(cluster: Cluster) -> None:
    before = score(cluster)
    placement = Placement(cluster)
    # 1e-7: the root of a variance near 0 has half of the digits.
    for guest in (each for each in cluster.guests.values() if not each.moving_to and each.host in cluster.hosts):
        shift = Shift(
            placement.row[guest.host], np.array([placement.guest_row[guest.name]]), np.arange(len(placement.hosts))
        )
        for row, host in enumerate(placement.hosts):
            after = score(cluster.placed([replace(guest, host=host)]))
            for each, then, now in zip(ROWS, after.rows, before.rows, strict=True):
                change = np.broadcast_to(each.change(placement, shift), (1, len(placement.hosts)))[0, row]
                assert change == pytest.approx(then.value - now.value, abs=1e-7), (each.name, guest.name, host)
            assert changes(placement, guest.name)[row] == pytest.approx(after.total - before.total, abs=1e-7)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(clusters())
def test_what_an_exchange_would_change_is_what_it_changes(cluster: Cluster) -> None:
    before, placement = score(cluster).total, Placement(cluster)
    there = [each for each in cluster.guests.values() if not each.moving_to and each.host in cluster.hosts]
    for host in {each.host for each in there}:
        leaving = [each for each in there if each.host == host]
        back = [each for each in there if each.host != host]
        rows, columns = (np.array([placement.guest_row[each.name] for each in of], dtype=int) for of in (leaving, back))
        found = changes_of(placement, Shift(placement.row[host], rows, placement.at[columns], columns))
        for row, one in enumerate(leaving):
            for column, other in enumerate(back):
                if not one.groups & other.groups:
                    after = score(cluster.placed([replace(one, host=other.host), replace(other, host=host)])).total
                    assert found[row, column] == pytest.approx(after - before, abs=1e-7), (one.name, other.name)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(clusters())
def test_a_placement_that_was_changed_scores_as_the_cluster_so_changed(cluster: Cluster) -> None:
    placement = Placement(cluster)
    for guest in sorted(cluster.guests):
        allowed = placement.candidates(guest).nonzero()[0]
        if len(allowed):
            placement.move(guest, placement.hosts[allowed[0]])
            cluster = cluster.placed([replace(cluster.guests[guest], host=placement.hosts[allowed[0]])])
    assert score_of(placement).total == pytest.approx(score(cluster).total, abs=1e-9)
