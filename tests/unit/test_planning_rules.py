"""Each hard rule refuses under its own word and with its figures; the columns of a planner say the same."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings

from config.errors import RefusedError
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.placement import Placement
from tasks.planning.rules import RULES, Refusal, held, judge, memory_left
from tests.clusters import clusters
from workers.wire import spoken


def there(*guests: Guest, web: Any = (), alpha: Any = (), beta: Any = ()) -> Cluster:
    hosts = (Host("alpha", 100, **dict(alpha)), Host("beta", 100, **dict(beta)))
    placed = (replace(Guest("web", "alpha", 10), **dict(web)), *guests)
    return Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in placed})


def test_a_move_that_breaks_no_rule_is_not_refused() -> None:
    assert judge(there(), "web", "beta") is None


@pytest.mark.parametrize(
    ("cluster", "guest", "host", "rule", "why"),
    [
        (there(), "wed", "beta", "unknown-guest", "there is no guest wed"),
        (there(), "web", "bete", "unknown-host", "there is no host bete"),
        (there(web={"host": "gone"}), "web", "beta", "unknown-host", "web is on gone, of which nothing is known"),
        (there(), "web", "alpha", "same-host", "web is on alpha already"),
        (there(web={"stays": "vfio"}), "web", "beta", "pinned", "web stays on alpha: vfio"),
        (there(web={"stays": ""}), "web", "beta", "pinned", "web stays on alpha: no reason is given"),
        (there(web={"moving_to": "gamma"}), "web", "beta", "moving", "web is on its way to gamma already"),
        (there(alpha={"stale": True}), "web", "beta", "stale", "nobody has spoken for alpha in time"),
        (there(beta={"stale": True}), "web", "beta", "stale", "nobody has spoken for beta in time"),
        (there(beta={"cordoned": "repairs"}), "web", "beta", "cordoned", "beta is cordoned: repairs"),
        (
            there(alpha={"wire": 7}, beta={"wire": 5}),
            *("web", "beta", "version"),
            "alpha speaks wire version 7, beta 5: hosts must be at most one apart; upgrade beta first",
        ),
        (
            there(alpha={"wire": 5}, beta={"wire": 7}),
            *("web", "beta", "version"),
            "alpha speaks wire version 5, beta 7: hosts must be at most one apart; upgrade alpha first",
        ),
        (
            there(alpha={"transports": frozenset({"verbs", "rdma"})}, beta={"transports": frozenset({"tcp"})}),
            *("web", "beta", "transport", "alpha has rdma, verbs, beta has tcp: nothing carries memory between them"),
        ),
        (
            there(web={"cpu_model": "new"}, beta={"cpu_models": frozenset({"old"})}),
            *("web", "beta", "cpu-model", "web has the CPU model new, which beta does not know"),
        ),
        (
            there(web={"needs": frozenset({"b=1", "a=1"})}, beta={"labels": frozenset({"a=2"})}),
            *("web", "beta", "labels", "web needs a=1, b=1, which beta lacks"),
        ),
        (
            there(Guest("db", "beta", 1, groups=frozenset({"x"})), web={"groups": frozenset({"x", "y"})}),
            *("web", "beta", "anti-affinity", "db of the same group x is on beta"),
        ),
        (
            there(Guest("db", "gamma", 1, groups=frozenset({"x"}), moving_to="beta"), web={"groups": frozenset("x")}),
            *("web", "beta", "anti-affinity", "db of the same group x is on its way to beta"),
        ),
        (there(Guest("db", "beta", 91)), "web", "beta", "no-memory", "web needs 10 bytes, beta has 9 left"),
        (there(Guest("db", "beta", 191)), "web", "beta", "no-memory", "web needs 10 bytes, beta has 0 left"),
        (
            there(Guest("db", "gamma", 91, moving_to="beta")),
            *("web", "beta", "no-memory", "web needs 10 bytes, beta has 9 left"),
        ),
        (
            there(Guest("db", "beta", 91, moving_to="alpha")),
            *("web", "beta", "no-memory", "web needs 10 bytes, beta has 9 left"),
        ),
    ],
)
def test_each_rule_refuses_under_its_own_word(cluster: Cluster, guest: str, host: str, rule: str, why: str) -> None:
    assert judge(cluster, guest, host) == Refusal(rule, why)


def test_the_first_rule_of_the_table_speaks_when_several_refuse() -> None:
    rules = list(RULES)
    worst = there(
        Guest("db", "beta", 95, groups=frozenset("x")),
        web={"stays": "vfio", "moving_to": "gamma", "cpu_model": "new", "needs": frozenset({"a=1"})}
        | {"groups": frozenset("x")},
        alpha={"transports": frozenset({"verbs"}), "wire": 5},
        beta={"stale": True, "cordoned": "repairs", "cpu_models": frozenset({"old"}), "transports": frozenset({"tcp"})}
        | {"wire": 7},
    )
    mended: list[dict[str, Any]] = [{"stays": None}, {"moving_to": ""}]
    said = [judge(worst, "web", "beta")]
    for change in mended:
        worst = worst.placed([replace(worst.guests["web"], **change)])
        said.append(judge(worst, "web", "beta"))
    changes: list[dict[str, Any]] = [{"stale": False}, {"cordoned": None}, {"wire": 6}, {"transports": frozenset()}]
    for host_change in (*changes, {"cpu_models": frozenset()}, {"labels": {"a=1"}}):
        worst = worst.changed([replace(worst.hosts["beta"], **host_change)])
        said.append(judge(worst, "web", "beta"))
    worst = worst.placed([replace(worst.guests["web"], groups=frozenset())])
    said.append(judge(worst, "web", "beta"))
    assert [refusal.rule for refusal in said if refusal] == rules[rules.index("pinned") :]


def test_exactly_the_memory_left_is_enough() -> None:
    full = there(Guest("db", "beta", 90))
    assert memory_left(full, "beta") == 10
    assert judge(full, "web", "beta") is None


def test_a_cpu_model_that_nobody_knows_refuses_nothing() -> None:
    assert judge(there(web={"cpu_model": "new"}), "web", "beta") is None
    assert judge(there(beta={"cpu_models": frozenset({"old"})}), "web", "beta") is None


def test_transports_that_are_not_known_of_one_side_refuse_nothing_and_one_in_common_is_enough() -> None:
    both, tcp = {"transports": frozenset({"verbs", "tcp"})}, {"transports": frozenset({"tcp"})}
    for alpha, beta in (({}, tcp), (tcp, {}), (tcp, both), (both, tcp)):
        assert judge(there(alpha=alpha, beta=beta), "web", "beta") is None


def test_a_plan_takes_for_too_far_apart_what_the_workers_refuse_and_nothing_of_which_a_version_is_not_known() -> None:
    for source, destination in product(range(1, 8), repeat=2):
        planned = judge(there(alpha={"wire": source}, beta={"wire": destination}), "web", "beta")
        if planned is None:
            spoken("alpha", source, "beta", destination)
            continue
        with pytest.raises(RefusedError, match=re.escape(planned.why)) as refused:
            spoken("alpha", source, "beta", destination)
        assert refused.value.reason == planned.rule == "version"
    for alpha, beta in (({"wire": 9}, {}), ({}, {"wire": 9})):
        assert judge(there(alpha=alpha, beta=beta), "web", "beta") is None


def test_what_holds_a_guest_is_said_without_a_destination() -> None:
    assert held(there(), "web") is None
    assert held(there(beta={"cordoned": "repairs", "stale": True}), "web") is None
    assert held(there(alpha={"stale": True}), "web") == Refusal("stale", "nobody has spoken for alpha in time")
    assert held(there(web={"stays": "vfio"}), "web") == Refusal("pinned", "web stays on alpha: vfio")
    assert held(there(), "wed") == Refusal("unknown-guest", "there is no guest wed")


# --- the columns ------------------------------------------------------------------------------------------------------


@settings(max_examples=80, derandomize=True, deadline=None)
@given(clusters())
def test_the_columns_allow_exactly_what_the_rules_allow(cluster: Cluster) -> None:
    placement = Placement(cluster)
    for guest in cluster.guests:
        allowed = [host for host in placement.hosts if judge(cluster, guest, host) is None]
        assert [placement.hosts[row] for row in placement.candidates(guest).nonzero()[0]] == allowed


@settings(max_examples=40, derandomize=True, deadline=None)
@given(clusters())
def test_the_columns_still_agree_after_every_move(cluster: Cluster) -> None:
    placement = Placement(cluster)
    for guest in sorted(cluster.guests):
        allowed = placement.candidates(guest).nonzero()[0]
        if not len(allowed):
            continue
        host = placement.hosts[allowed[-1]]
        placement.move(guest, host)
        cluster = cluster.placed([replace(cluster.guests[guest], host=host)])
        for other in cluster.guests:
            judged = [name for name in placement.hosts if judge(cluster, other, name) is None]
            assert [placement.hosts[row] for row in placement.candidates(other).nonzero()[0]] == judged
        assert placement.left.tolist() == [memory_left(cluster, name) for name in placement.hosts]


def check_why_nowhere(placement: Placement, cluster: Cluster) -> None:
    """Of whoever can go nowhere it says what the rules say of `cluster`, which is what `placement` has come to."""
    for guest in cluster.guests:
        if placement.candidates(guest).any() or held(cluster, guest):
            continue
        said = placement.why_nowhere(guest)
        judged = [refusal for host in cluster.hosts if (refusal := judge(cluster, guest, host))]
        counts = Counter(refusal.rule for refusal in judged if refusal.rule != "same-host")
        assert said.rule == (max(counts, key=list(RULES).index) if counts else "same-host")
        for refusal in judged:
            if refusal.rule != "same-host":
                few = counts[refusal.rule] <= 3
                assert (refusal.why if few else f"{refusal.rule} on {counts[refusal.rule]} hosts") in said.why


@settings(max_examples=80, derandomize=True, deadline=None)
@given(clusters())
def test_why_nowhere_says_what_the_rules_say_also_after_moves(cluster: Cluster) -> None:
    placement = Placement(cluster)
    check_why_nowhere(placement, cluster)
    for guest in sorted(cluster.guests):
        if holding := held(cluster, guest):
            assert placement.why_nowhere(guest) == holding
            continue
        allowed = placement.candidates(guest).nonzero()[0]
        if len(allowed):
            host = placement.hosts[allowed[0]]
            placement.move(guest, host)
            cluster = cluster.placed([replace(cluster.guests[guest], host=host)])
    check_why_nowhere(placement, cluster)


@pytest.mark.parametrize(
    ("full", "said"),
    [
        (3, "; ".join(f"web needs 50 bytes, full-{each} has 1{each} left" for each in range(3))),
        (4, "no-memory on 4 hosts: it needs 50 bytes, the roomiest of them has 13 left"),
    ],
)
def test_why_nowhere_begins_with_the_nearest_and_names_a_few_hosts_or_counts_many(full: int, said: str) -> None:
    hosts = [Host("alpha", 100), *(Host(f"full-{number}", 10 + number) for number in range(full))]
    hosts += [Host("shut", 100, cordoned="repairs"), Host("near", 100)]
    guests = [Guest("web", "alpha", 50, groups=frozenset("x")), Guest("db", "near", 1, groups=frozenset("x"))]
    cluster = Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in guests})
    assert Placement(cluster).why_nowhere("web") == Refusal(
        "no-memory", f"{said}; db of the same group x is on near; shut is cordoned: repairs"
    )


def test_a_cluster_of_one_host_says_that_there_is_no_other() -> None:
    alone = Cluster({"alpha": Host("alpha", 100)}, {"web": Guest("web", "alpha", 10)})
    assert Placement(alone).why_nowhere("web") == Refusal("same-host", "there is no host beside alpha")
