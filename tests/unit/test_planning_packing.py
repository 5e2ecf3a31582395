"""Packing with a solver: it never places fewer than one guest after the other does, and breaks no rule on its way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.evacuation import Plan, Solver, cordon, plan_evacuation
from tasks.planning.moves import Move, apply
from tasks.planning.rules import Refusal
from tests.clusters import HOSTS, clusters
from tests.replay import replay


def of(*hosts: Host, guests: tuple[Guest, ...]) -> Cluster:
    return Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in guests})


def planned(cluster: Cluster, hosts: set[str], **more: Any) -> Plan:
    return plan_evacuation(cluster, sorted(hosts & cluster.hosts.keys()), solver=Solver.CP_SAT, **more)


def placed(plan: Plan) -> int:
    """Guests of the evacuated hosts that have a place, or have one once what is under way has ended."""
    waiting = sum(each.rule == "moving" and "there is room" in each.why for _, each in plan.refused)
    return waiting + sum(move.source in plan.hosts for move in plan.moves)


ALPHA, BETA, GAMMA = Host("alpha", 100), Host("beta", 100), Host("gamma", 100)
#: Two have to be moved out of the way of one.
TIGHT = (
    Guest("big", "alpha", 90),
    Guest("b-1", "beta", 20),
    Guest("b-2", "beta", 20),
    Guest("c", "gamma", 40, stays="a licence"),
)


def test_two_are_moved_out_of_the_way_of_one() -> None:
    plan = planned(of(ALPHA, BETA, GAMMA, guests=TIGHT), {"alpha"})
    assert plan.moves == (Move("b-1", "beta", "gamma"), Move("b-2", "beta", "gamma"), Move("big", "alpha", "beta"))
    assert plan.refused == ()


def test_no_more_are_moved_than_it_takes_however_uneven_that_leaves_the_hosts() -> None:
    uneven = tuple(Guest(f"d-{number}", "delta", 15) for number in range(6))
    plan = planned(of(ALPHA, BETA, GAMMA, Host("delta", 100), guests=(*TIGHT, *uneven)), {"alpha"})
    assert (len(plan.moves), plan.refused) == (3, ())


def test_nobody_is_moved_out_of_the_way_when_that_is_not_wanted() -> None:
    plan = planned(of(ALPHA, BETA, GAMMA, guests=TIGHT), {"alpha"}, make_room=False)
    assert (plan.moves, [guest for guest, _ in plan.refused]) == ((), ["big"])


def test_where_everybody_has_a_place_the_plan_is_the_one_without_a_solver() -> None:
    cluster = simulate("hosts=20,guests=200,seed=3,fill=0.5")
    assert planned(cluster, {"host-03"}) == plan_evacuation(cluster, ["host-03"])


def test_a_host_to_be_avoided_is_avoided_where_as_many_have_a_place_without() -> None:
    guests = (*TIGHT, Guest("little", "alpha", 10))
    cluster = of(ALPHA, BETA, GAMMA, Host("delta", 20), guests=guests)
    for avoided, other in (("delta", "gamma"), ("gamma", "delta")):
        plan = planned(cluster, {"alpha"}, avoid={"little": frozenset({avoided, "beta"})})
        assert {move.guest: move.destination for move in plan.moves}["little"] == other


def test_who_fits_once_a_move_under_way_has_ended_waits_for_it_and_nobody_else_is_moved() -> None:
    """Planned anew at every step, an evacuation would else move others for room that is about to be there."""
    on_its_way = (TIGHT[0], replace(TIGHT[1], moving_to="gamma"), *TIGHT[2:])
    plan = planned(of(ALPHA, BETA, GAMMA, Host("delta", 30), guests=on_its_way), {"alpha"})
    assert [move.guest for move in plan.moves] == ["b-2"]
    why = "there is room for it once moves that are under way have ended"
    assert plan.refused == (("big", Refusal("moving", why)),)


def test_two_that_would_have_to_change_places_are_left_where_no_order_lets_them() -> None:
    """Afterwards all would fit; on the way there nobody can be the first."""
    hosts = (ALPHA, replace(BETA, memory=24), replace(GAMMA, memory=26))
    guests = (
        Guest("new", "alpha", 8),
        Guest("b-16", "beta", 16),
        Guest("b-2", "beta", 2, stays="a licence"),
        Guest("c-18", "gamma", 18),
    )
    plan = planned(of(*hosts, guests=guests), {"alpha"})
    assert plan.refused == ()
    assert [move.guest for move in plan.moves] == ["new"]
    large = tuple(replace(guest, memory=10) if guest.name == "new" else guest for guest in guests)
    plan = planned(of(*hosts, guests=large), {"alpha"})
    assert ([guest for guest, _ in plan.refused], plan.moves) == (["new"], ())
    # Three others that can be moved in any order are better than these two that cannot.
    aside = tuple(Guest(f"d-{number}", "delta", 3) for number in range(3))
    crowd = (*large, *aside, Guest("d-8", "delta", 8, stays="a licence"))
    plan = planned(of(*hosts, Host("delta", 20), guests=crowd), {"alpha"})
    assert [move.guest for move in plan.moves] == ["d-0", "d-1", "d-2", "new"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_host_of_a_nearly_full_fleet_is_emptied(seed: int) -> None:
    cluster = simulate(f"hosts=16,guests=160,seed={seed},fill=0.88")
    greedy = plan_evacuation(cluster, ["host-01"])
    plan = planned(cluster, {"host-01"})
    assert len(greedy.refused) > 0
    assert plan.refused == ()
    assert replay(cordon(cluster, plan.hosts), plan.schedule) == plan.predicted


evacuated = st.sets(st.sampled_from(HOSTS), min_size=1, max_size=2)
promised = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


@st.composite
def tight(draw: st.DrawFn) -> tuple[Cluster, set[str]]:
    """Fleets in which one guest after the other does not do."""
    cluster, hosts = draw(clusters()), draw(evacuated)
    there = sorted(hosts & cluster.hosts.keys())
    guests = [draw(st.integers(2, 12)) for _ in range(12)]
    more = {
        f"more-{number}": Guest(
            f"more-{number}",
            draw(st.sampled_from(sorted(cluster.hosts))),
            memory,
            groups=draw(st.frozensets(st.sampled_from(["db", "web"]), max_size=1)),
        )
        for number, memory in enumerate(guests)
    }
    return replace(cluster, guests={**cluster.guests, **more}), set(there)


@promised
@given(tight())
def test_no_plan_breaks_a_rule_and_none_places_fewer_than_without_a_solver(asked: tuple[Cluster, set[str]]) -> None:
    cluster, hosts = asked
    plan = planned(cluster, hosts)
    closed = cordon(cluster, plan.hosts)
    assert replay(closed, plan.schedule) == plan.predicted
    assert reduce(apply, plan.moves, closed) == plan.predicted  # type: ignore[arg-type]
    assert len({move.guest for move in plan.moves}) == len(plan.moves)
    greedy = plan_evacuation(cluster, sorted(hosts))
    assert (placed(plan), -len(plan.moves)) >= (placed(greedy), -len(greedy.moves))
    concerned = {guest.name for guest in cluster.guests.values() if {guest.host, guest.moving_to} & set(plan.hosts)}
    moved = {move.guest for move in plan.moves}
    assert concerned == (moved & concerned) | dict(plan.refused).keys()
    assert not moved & dict(plan.refused).keys()


@promised
@given(tight(), st.randoms(use_true_random=False))
def test_the_order_in_which_hosts_and_guests_are_listed_changes_nothing(
    asked: tuple[Cluster, set[str]], random: Any
) -> None:
    def shuffled(mapping: Any) -> dict[str, Any]:
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    cluster, hosts = asked
    again = Cluster(shuffled(cluster.hosts), shuffled(cluster.guests), shuffled(cluster.uplinks), cluster.taken)
    assert planned(again, hosts) == planned(cluster, hosts)


def test_the_order_in_which_this_interpreter_keeps_sets_changes_nothing() -> None:
    program = (
        "from tasks.inventory.simulated import simulate; from tasks.planning.evacuation import *;"
        "cluster = simulate('hosts=16,guests=160,groups=30,labels=0.3,seed=2,fill=0.88');"
        "plan = plan_evacuation(cluster, ['host-01'], solver=Solver.CP_SAT);"
        "assert len(plan.moves) > len(cluster.residents['host-01']); print(plan.moves, plan.schedule, plan.after)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_without_the_solver_installed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(ImportError):
        planned(of(ALPHA, BETA, GAMMA, guests=TIGHT), {"alpha"})
