"""A move is judged, begun and finished; nothing of the cluster that it started from changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.moves import Move, apply, begin, finish
from tasks.planning.rules import Refusal, judge, memory_left
from tests.clusters import clusters

MOVE = Move("web", "alpha", "beta")


def there(*hosts: Host, web: Guest = Guest("web", "alpha", 30)) -> Cluster:  # noqa: B008 - it is immutable
    known = hosts or (Host("alpha", 100), Host("beta", 100))
    return Cluster({host.name: host for host in known}, {"web": web})


def test_while_it_moves_a_guest_counts_on_both_hosts() -> None:
    begun = begin(there(), MOVE)
    assert isinstance(begun, Cluster)
    assert (memory_left(begun, "alpha"), memory_left(begun, "beta")) == (70, 70)
    ended = finish(begun, MOVE)
    assert (memory_left(ended, "alpha"), memory_left(ended, "beta")) == (100, 70)
    assert ended.guests["web"] == Guest("web", "beta", 30)


def test_the_cluster_that_it_started_from_is_as_it_was() -> None:
    before = there()
    assert isinstance(apply(before, MOVE), Cluster)
    assert before == there()


def test_a_move_that_breaks_a_rule_is_refused_by_that_rule() -> None:
    full = there(Host("alpha", 100), Host("beta", 29))
    assert apply(full, MOVE) == Refusal("no-memory", "web needs 30 bytes, beta has 29 left")


def test_a_guest_that_somebody_else_moved_meanwhile_is_not_moved_from_where_it_no_longer_is() -> None:
    elsewhere = there(Host("alpha", 100), Host("beta", 100), Host("gamma", 100), web=Guest("web", "gamma", 30))
    assert apply(elsewhere, MOVE) == Refusal("guest-moved", "web is on gamma, no longer on alpha")


def test_a_plan_of_yesterday_that_was_made_already_says_so() -> None:
    assert apply(there(web=Guest("web", "beta", 30)), MOVE) == Refusal("same-host", "web is on beta already")


def test_what_has_begun_does_not_begin_again() -> None:
    begun = begin(there(), MOVE)
    assert isinstance(begun, Cluster)
    again = apply(begun, MOVE)
    assert again == Refusal("moving", "web is on its way to beta already")


@pytest.mark.parametrize("field", ["stale", "cordoned"])
def test_a_host_that_was_taken_out_after_the_plan_gets_nothing(field: str) -> None:
    out = replace(Host("beta", 100), **{field: "repairs" if field == "cordoned" else True})
    refused = apply(there(Host("alpha", 100), out), MOVE)
    assert isinstance(refused, Refusal)
    assert refused.rule == field


@settings(max_examples=60, derandomize=True, deadline=None)
@given(clusters())
def test_a_move_is_made_exactly_when_the_rules_allow_it_and_moves_nobody_else(cluster: Cluster) -> None:
    for guest in cluster.guests.values():
        for host in cluster.hosts:
            made = apply(cluster, Move(guest.name, guest.host, host))
            refusal = judge(cluster, guest.name, host)
            if refusal:
                assert made == refusal
            else:
                assert made == cluster.placed([replace(guest, host=host)])
