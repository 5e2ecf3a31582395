"""An evacuation step by step: it ends, each guest has a fate with a reason, and nothing is asked for twice."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.evacuating import Evacuation, step
from tasks.planning.evacuation import Solver, plan_evacuation
from tasks.planning.job import ENDED, Attempt, Fate, State, migration_id
from tests.clusters import clusters
from tests.job_world import NOW, World

GIB = 1 << 30


def fleet(*guests: Guest, hosts: str = "abc") -> Cluster:
    there = {name: Host(name, 64 * GIB) for name in hosts}
    return Cluster(there, {guest.name: guest for guest in guests})


def guest(name: str, host: str = "a", memory: int = 8) -> Guest:
    return Guest(name, host, memory * GIB)


def evacuation(*hosts: str, **more: object) -> Evacuation:
    return replace(Evacuation("e-1", frozenset(hosts)), **more)  # type: ignore[arg-type]


def test_a_host_is_emptied_and_each_guest_says_where_it_is() -> None:
    found = World(fleet(guest("g1"), guest("g2"), guest("g3", "b")), evacuation("a")).lived()
    assert (found.state, found.reason) == (State.COMPLETED, "all 2 guests have left")
    assert {name: each.fate for name, each in found.guests.items()} == {"g1": Fate.MOVED, "g2": Fate.MOVED}
    assert sorted(each.host for each in found.guests.values()) == ["b", "c"]


def test_an_empty_host_is_empty_at_once() -> None:
    assert step(evacuation("a"), fleet(), [], NOW).state is State.COMPLETED


def test_a_guest_that_fails_is_tried_elsewhere_and_given_up_once_its_attempts_are_spent() -> None:
    world = World(fleet(guest("g1"), hosts="abcd"), evacuation("a"), lambda attempt: "stalled")
    found = world.lived()
    assert (found.state, found.guests["g1"].fate, found.guests["g1"].reason) == (State.FAILED, Fate.FAILED, "stalled")
    assert sorted(each.destination for each in world.attempts.values()) == ["b", "c", "d"]


def test_the_only_host_that_takes_it_is_tried_again() -> None:
    world = World(fleet(guest("g1"), hosts="ab"), evacuation("a"), lambda each: "peer" if each.number == 1 else "")
    assert world.lived().state is State.COMPLETED
    assert [each.destination for each in world.attempts.values()] == ["b", "b"]


def test_what_nobody_began_to_move_costs_no_attempt() -> None:
    world = World(fleet(guest("g1")), evacuation("a"), lambda each: "cordoned" if each.number <= 5 else "")
    assert world.lived().state is State.COMPLETED


def test_some_that_stay_make_it_partial_and_each_of_them_says_why() -> None:
    pinned = replace(guest("kept"), stays="a licence")
    found = World(fleet(guest("g1"), pinned), evacuation("a")).lived()
    assert (found.state, found.reason) == (State.PARTIAL, "nothing more can be moved; 1 of 2 guests stay")
    assert (found.guests["kept"].fate, found.guests["kept"].reason) == (
        Fate.REFUSED,
        "pinned: kept stays on a: a licence",
    )


def test_a_guest_that_was_stopped_meanwhile_is_gone_and_nobody_waits_for_it() -> None:
    world = World(fleet(guest("g1"), guest("g2")), evacuation("a", guests=frozenset({"g0"})))
    found = world.lived()
    assert found.state is State.COMPLETED
    assert found.guests["g0"].fate is Fate.GONE


def test_a_guest_that_is_still_coming_keeps_it_from_being_called_empty() -> None:
    coming = replace(guest("late", "b"), moving_to="a")
    found = step(evacuation("a"), fleet(coming), [], NOW)
    assert (found.state, found.guests["late"].fate) == (State.RUNNING, Fate.MOVING)


def test_a_cancel_asks_for_nothing_more_ends_its_own_moves_and_not_those_of_others() -> None:
    world = World(fleet(guest("g1"), guest("g2"), replace(guest("theirs"), moving_to="b")), evacuation("a"))
    assert world.step().asks
    world.asked = replace(world.asked, cancelled=True)
    found = world.step()
    assert (found.state, found.asks) == (State.ENDING, ())
    assert "theirs" not in found.cancels
    assert set(found.cancels) == {each.guest for each in world.attempts.values()}
    world.fails = lambda attempt: "cancelled"
    while any(each.open for each in world.attempts.values()):
        world.end_one()
    world.cluster = world.cluster.placed([guest("theirs", "b")])
    assert world.step().state is State.CANCELLED


def test_past_its_deadline_what_moves_goes_on_and_the_rest_stays() -> None:
    world = World(fleet(*(guest(f"g{number}") for number in range(6))), evacuation("a", most_at_once=1))
    world.step()
    world.asked = replace(world.asked, deadline=NOW)
    assert world.step().state is State.ENDING
    world.end_one()
    found = world.step()
    assert (found.state, found.reason) == (State.PARTIAL, "its deadline has passed; 5 of 6 guests stay")


def test_past_its_deadline_a_move_that_waits_for_a_slot_is_taken_back_and_not_begun() -> None:
    moving = [replace(guest(name), moving_to="b") for name in ("g1", "g2")]
    had = [Attempt("g1", "b", 1, open=True), Attempt("g2", "b", 1, open=True, queued=True)]
    assert step(evacuation("a", deadline=NOW + 1), fleet(*moving), had, NOW).cancels == ()
    assert step(evacuation("a", deadline=NOW), fleet(*moving), had, NOW).cancels == ("g2",)


def test_no_more_are_under_way_at_once_than_was_asked_for() -> None:
    world = World(fleet(*(guest(f"g{number}", memory=4) for number in range(9))), evacuation("a", most_at_once=2))
    while world.step().state not in ENDED:
        assert sum(each.open for each in world.attempts.values()) <= 2
        world.end_one()
    assert len(world.attempts) == 9


def test_a_guest_that_shall_make_room_and_cannot_is_not_asked_for_without_end() -> None:
    cluster = Cluster(
        {"a": Host("a", 64 * GIB), "b": Host("b", 32 * GIB), "c": Host("c", 32 * GIB)},
        {each.name: each for each in (guest("big", "a", 24), guest("little", "b", 10), guest("other", "c", 20))},
    )
    world = World(cluster, evacuation("a"), lambda attempt: "stalled")
    assert world.lived().state is State.FAILED
    assert len(world.attempts) <= 3 * len(cluster.guests)


@pytest.mark.parametrize(("solver", "state"), [(Solver.GREEDY, State.PARTIAL), (Solver.CP_SAT, State.COMPLETED)])
def test_a_nearly_full_fleet_is_emptied_step_by_step_where_a_solver_looks_for_places(
    solver: Solver, state: State
) -> None:
    """Each step plans anew, with the moves of the one before under way: it must come back to the same plan."""
    cluster = simulate("hosts=16,guests=160,seed=1,fill=0.88")
    world = World(cluster, evacuation("host-01", solver=solver))
    assert world.lived().state is state
    if state is State.COMPLETED:
        leaving = len(cluster.residents["host-01"])
        assert leaving < len(world.attempts) <= leaving + 12


def test_the_id_of_a_move_depends_on_what_it_is_and_not_on_who_asks() -> None:
    ids = {migration_id(job, name, number) for job in ("e-1", "e-2") for name in ("g", "h") for number in (1, 2)}
    assert len(ids) == 8
    assert migration_id("e-1", "g", 1) == migration_id("e-1", "g", 1)


def test_the_first_attempt_goes_where_a_plan_of_before_says() -> None:
    for planned in "bcd":
        world = World(fleet(guest("g1"), hosts="abcd"), evacuation("a", planned={"g1": planned}))
        assert world.lived().guests["g1"].host == planned


def test_where_the_plan_is_refused_now_the_guest_goes_elsewhere_and_says_so() -> None:
    cluster = fleet(guest("g1"), guest("g2"))
    cluster = cluster.changed([replace(cluster.hosts["b"], cordoned="a leak")])
    world = World(cluster, evacuation("a", planned={"g1": "b", "g2": "c"}))
    first = world.step()
    assert first.guests["g1"].reason == "planned anew, the plan said b: cordoned: b is cordoned: a leak"
    assert world.step().guests["g1"].reason == "it is on its way to c; the plan said b, which was refused then"
    found = world.lived()
    assert found.state is State.COMPLETED
    assert found.guests["g1"].reason == "it is on c; the plan said b, which was refused then"
    assert found.guests["g2"].reason == "it is on c"


def test_the_plan_counts_for_the_first_attempt_only() -> None:
    world = World(
        fleet(guest("g1")), evacuation("a", planned={"g1": "b"}), lambda each: "peer" if each.number == 1 else ""
    )
    assert world.lived().state is State.COMPLETED
    assert [each.destination for each in world.attempts.values()] == ["b", "c"]


def test_a_whole_plan_of_before_is_followed_move_by_move() -> None:
    cluster = simulate("hosts=12,guests=200,seed=5,groups=8")
    hosts = sorted(cluster.hosts)[:2]
    moves = {move.guest: move.destination for move in plan_evacuation(cluster, hosts).moves}
    world = World(cluster, evacuation(*hosts, planned=moves))
    found = world.lived()
    assert found.state is State.COMPLETED
    assert {each.guest: each.destination for each in world.attempts.values()} == moves
    assert not any("plan said" in each.reason for each in found.guests.values())


def test_each_guest_says_which_of_the_emptied_hosts_it_left() -> None:
    found = World(
        fleet(guest("g1", "a"), guest("g2", "b"), guest("g3", "c"), hosts="abcd"), evacuation("a", "b")
    ).lived()
    assert {name: each.home for name, each in found.guests.items()} == {"g1": "a", "g2": "b"}


@settings(max_examples=80)
@given(clusters(), st.data())
def test_every_evacuation_ends_with_a_fate_for_every_guest(cluster: Cluster, data: st.DataObject) -> None:
    still = cluster.placed(replace(each, moving_to="") for each in cluster.guests.values())
    hosts = data.draw(st.sets(st.sampled_from(sorted(still.hosts)), min_size=1))
    random = Random(data.draw(st.integers(0, 99)))
    world = World(still, evacuation(*hosts), lambda attempt: "stalled" if random.random() < 0.4 else "")
    found = world.lived(patient=not any(host.stale for host in still.hosts.values()))
    there = {name for name, each in still.guests.items() if each.host in hosts}
    assert there <= found.guests.keys()
    left = {name for name, each in world.cluster.guests.items() if each.host in hosts}
    assert (found.state is State.COMPLETED) == (not left)
    staying = (Fate.FAILED, Fate.REFUSED, Fate.WAITING)
    assert {name for name, each in found.guests.items() if each.fate in staying} == left
    assert all(each.reason for each in found.guests.values() if each.fate in (Fate.FAILED, Fate.REFUSED))
    assert max((each.number for each in world.attempts.values()), default=0) <= 3


def test_a_hundred_guests_of_two_hosts_leave_while_one_move_in_five_fails() -> None:
    random = Random(1)
    cluster = simulate("hosts=20,guests=400,seed=4,groups=20,uplinks=2")
    hosts = sorted(cluster.hosts)[:2]
    world = World(cluster, evacuation(*hosts, attempts=6), lambda each: "peer" if random.random() < 0.2 else "")
    assert world.lived().state is State.COMPLETED
    assert not any(each.host in hosts for each in world.cluster.guests.values())


@pytest.mark.parametrize("stale", [True, False])
def test_a_host_that_falls_silent_is_waited_for_and_the_reason_is_said(stale: bool) -> None:
    """Its workers may only be starting again: an evacuation that ended here would have to be asked for anew."""
    cluster = fleet(guest("g1"))
    silent = cluster.changed([replace(cluster.hosts["a"], stale=True)])
    if not stale:
        silent = replace(cluster, hosts={name: host for name, host in cluster.hosts.items() if name != "a"})
    found = step(evacuation("a"), silent, [], NOW)
    assert (found.state, found.asks, found.guests["g1"].fate) == (State.RUNNING, (), Fate.WAITING)
    assert "nobody" in found.guests["g1"].reason
    late = step(evacuation("a", deadline=NOW), silent, [], NOW)
    assert (late.state, late.reason) == (State.FAILED, "its deadline has passed; 1 of 1 guests stay")


@pytest.mark.parametrize(
    ("queued", "stale", "taken_back"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_move_that_waits_for_a_silent_host_is_taken_back_and_one_at_work_is_not(
    queued: bool, stale: bool, taken_back: bool
) -> None:
    cluster = fleet(replace(guest("g1"), moving_to="b"))
    cluster = cluster.changed([replace(cluster.hosts["b"], stale=stale)])
    had = [Attempt("g1", "b", 1, open=True, queued=queued)]
    assert step(evacuation("a"), cluster, had, NOW).cancels == (("g1",) if taken_back else ())
