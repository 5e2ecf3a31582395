"""A relocation step by step: it ends, sends nobody elsewhere than asked, and asks for no move that a rule refuses."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.job import ENDED, Attempt, Fate, State
from tasks.planning.moves import Move, begin
from tasks.planning.relocating import Relocation, step
from tasks.planning.rules import Refusal
from tests.clusters import clusters
from tests.job_world import NOW, World

GIB = 1 << 30


def fleet(*guests: Guest, hosts: str = "abc", **more: object) -> Cluster:
    there = {name: Host(name, 64 * GIB, **more) for name in hosts}  # type: ignore[arg-type]
    return Cluster(there, {guest.name: guest for guest in guests})


def guest(name: str, host: str = "a", memory: int = 8) -> Guest:
    return Guest(name, host, memory * GIB)


def relocation(*moves: str, **more: object) -> Relocation:
    """Each "guest source destination"."""
    return replace(Relocation("r-1", tuple(Move(*move.split()) for move in moves)), **more)  # type: ignore[arg-type]


def test_each_guest_gets_to_where_it_was_to_be() -> None:
    world = World(fleet(guest("g1"), guest("g2"), guest("g3", "b")), relocation("g1 a b", "g2 a c"))
    found = world.lived()
    assert (found.state, found.reason) == (State.COMPLETED, "all 2 guests are where they were to be")
    assert {name: each.host for name, each in world.cluster.guests.items()} == {"g1": "b", "g2": "c", "g3": "b"}
    assert found.guests.keys() == {"g1", "g2"}


def test_who_is_there_already_and_who_is_gone_is_not_asked_for() -> None:
    found = step(relocation("g1 a b", "g2 a b"), fleet(guest("g1", "b")), [], NOW)
    assert (found.state, found.asks) == (State.COMPLETED, ())
    assert {name: each.fate for name, each in found.guests.items()} == {"g1": Fate.MOVED, "g2": Fate.GONE}


def test_a_guest_that_somebody_moved_meanwhile_is_left_there() -> None:
    found = step(relocation("g1 a b"), fleet(guest("g1", "c")), [], NOW)
    assert (found.state, found.asks, found.guests["g1"].fate) == (State.FAILED, (), Fate.REFUSED)
    assert found.guests["g1"].reason == "guest-moved: g1 is on c, no longer on a"


def test_a_guest_that_was_moved_for_it_and_moved_on_since_is_not_fetched_back() -> None:
    had = [Attempt("g1", "b", 1, open=False, completed=True)]
    found = step(relocation("g1 a b"), fleet(guest("g1", "a")), had, NOW)
    assert (found.state, found.asks) == (State.COMPLETED, ())
    assert found.guests["g1"].reason == "it was moved to b, and is on a since"


def test_a_move_that_fails_is_tried_again_on_the_same_host_and_given_up_after_three() -> None:
    world = World(fleet(guest("g1")), relocation("g1 a b"), lambda attempt: "stalled")
    found = world.lived()
    assert (found.state, found.guests["g1"].fate, found.guests["g1"].reason) == (State.FAILED, Fate.FAILED, "stalled")
    assert [each.destination for each in world.attempts.values()] == ["b", "b", "b"]


def test_what_a_rule_refuses_stays_with_the_reason_and_the_others_go() -> None:
    pinned = replace(guest("kept"), stays="a licence")
    found = World(fleet(guest("g1"), pinned), relocation("kept a b", "g1 a b")).lived()
    assert (found.state, found.reason) == (State.PARTIAL, "nothing more can be moved; 1 of 2 guests stay")
    assert found.guests["kept"].reason == "pinned: kept stays on a: a licence"


def test_room_that_somebody_leaves_is_waited_for_and_kept_for_who_comes_first() -> None:
    """g2 leaves b for c, so that g1 fits there; g3, which would fit now, comes after."""
    cluster = fleet(guest("g1", "a", 40), guest("g2", "b", 40), guest("g3", "a", 20))
    world = World(cluster, relocation("g2 b c", "g1 a b", "g3 a b"))
    found = world.step()
    assert [ask.move.guest for ask in found.asks] == ["g2"]
    assert found.guests["g1"].reason.startswith("no-memory:")
    assert found.guests["g3"].reason == "g1 goes to b first, once there is room"
    assert world.lived().state is State.COMPLETED


def test_room_that_somebody_else_is_on_the_way_to_is_taken() -> None:
    theirs = replace(guest("theirs", "c", 40), moving_to="b")
    found = step(relocation("g1 a b"), fleet(guest("g1", "a", 40), theirs), [], NOW)
    assert (found.asks, found.guests["g1"].fate) == ((), Fate.REFUSED)
    assert found.guests["g1"].reason.startswith("no-memory:")


def test_room_that_nobody_leaves_is_not_waited_for() -> None:
    cluster = fleet(guest("g1", "a", 40), guest("g2", "b", 40))
    found = step(relocation("g1 a b"), cluster, [], NOW)
    assert (found.state, found.guests["g1"].fate) == (State.FAILED, Fate.REFUSED)


def test_two_that_change_places_without_room_between_them_are_both_refused() -> None:
    cluster = fleet(guest("g1", "a", 60), guest("g2", "b", 60), hosts="ab")
    assert World(cluster, relocation("g1 a b", "g2 b a")).lived().state is State.FAILED


def test_a_guest_of_the_same_group_that_leaves_is_waited_for() -> None:
    db1, db2 = (replace(guest(name, host), groups=frozenset({"db"})) for name, host in (("db1", "a"), ("db2", "b")))
    world = World(fleet(db1, db2), relocation("db2 b c", "db1 a b"))
    assert [ask.move.guest for ask in world.step().asks] == ["db2"]
    assert world.lived().state is State.COMPLETED


@pytest.mark.parametrize("stale", [True, False])
def test_a_host_that_falls_silent_is_waited_for(stale: bool) -> None:
    cluster = fleet(guest("g1"))
    silent = cluster.changed([replace(cluster.hosts["b"], stale=True)])
    if not stale:
        silent = replace(cluster, hosts={name: host for name, host in cluster.hosts.items() if name != "b"})
    found = step(relocation("g1 a b"), silent, [], NOW)
    assert (found.state, found.asks, found.guests["g1"].fate) == (State.RUNNING, (), Fate.WAITING)
    late = step(relocation("g1 a b", deadline=NOW), silent, [], NOW)
    assert (late.state, late.reason) == (State.FAILED, "its deadline has passed; 1 of 1 guests stay")


def test_what_waits_for_a_host_that_fell_silent_is_taken_back_and_asked_for_again_when_it_speaks() -> None:
    cluster = fleet(replace(guest("g1"), moving_to="b"))
    silent = cluster.changed([replace(cluster.hosts["b"], stale=True)])
    had = [Attempt("g1", "b", 1, open=True, queued=True)]
    assert step(relocation("g1 a b"), silent, had, NOW).cancels == ("g1",)
    ended = [Attempt("g1", "b", 1, open=False, reason="cancelled")]
    (ask,) = step(relocation("g1 a b"), fleet(guest("g1")), ended, NOW).asks
    assert (ask.number, ask.move.destination) == (2, "b")


def test_no_more_are_under_way_at_once_than_was_asked_for() -> None:
    moves = [f"g{number} a {'bc'[number % 2]}" for number in range(9)]
    world = World(fleet(*(guest(f"g{number}", memory=4) for number in range(9))), relocation(*moves, most_at_once=2))
    while world.step().state not in ENDED:
        assert sum(each.open for each in world.attempts.values()) <= 2
        world.end_one()
    assert len(world.attempts) == 9


def test_no_host_is_given_more_than_its_slots_take_in_two_waves() -> None:
    guests = [guest(f"g{number}", "abcdef"[number % 6], memory=2) for number in range(12)]
    asked = relocation(*(f"{each.name} {each.host} z" for each in guests))
    found = step(asked, fleet(*guests, hosts="abcdefz", inbound=2), [], NOW)
    assert [ask.move.guest for ask in found.asks] == ["g0", "g1", "g2", "g3"]
    had = [Attempt("g0", "z", 1, open=True), Attempt("g1", "z", 1, open=True)]
    assert len(step(asked, fleet(*guests, hosts="abcdefz", inbound=2), had, NOW).asks) == 2


def test_past_its_deadline_what_is_queued_is_taken_back() -> None:
    moving = [replace(guest(name), moving_to="b") for name in ("g1", "g2")]
    had = [Attempt("g1", "b", 1, open=True), Attempt("g2", "b", 1, open=True, queued=True)]
    for deadline, cancels in ((NOW + 1, ()), (NOW, ("g2",))):
        assert step(relocation("g1 a b", "g2 a b", deadline=deadline), fleet(*moving), had, NOW).cancels == cancels


def test_it_gives_way_to_an_evacuation_what_waits_is_refused_and_what_is_queued_taken_back() -> None:
    moving = [replace(guest(name), moving_to="b") for name in ("g1", "g2")]
    had = [Attempt("g1", "b", 1, open=True), Attempt("g2", "b", 1, open=True, queued=True)]
    asked = relocation("g1 a b", "g2 a b", "g3 a b", gave_way="e-1")
    found = step(asked, fleet(*moving, guest("g3")), had, NOW)
    assert (found.state, found.asks, found.cancels) == (State.ENDING, (), ("g2",))
    assert found.guests["g3"].reason == "evacuating: e-1 needs the slots"
    ended = [replace(had[0], open=False, completed=True), replace(had[1], open=False, reason="cancelled")]
    found = step(asked, fleet(guest("g1", "b"), guest("g2"), guest("g3")), ended, NOW)
    assert (found.state, found.reason) == (
        State.PARTIAL,
        "it gave way to e-1, which needs the slots; 2 of 3 guests stay",
    )
    assert {found.guests[name].fate for name in ("g2", "g3")} == {Fate.REFUSED}


def test_one_that_gave_way_before_anybody_was_moved_was_cancelled_and_has_not_failed() -> None:
    found = step(relocation("g1 a b", gave_way="e-1"), fleet(guest("g1")), [], NOW)
    assert (found.state, found.guests["g1"].fate) == (State.CANCELLED, Fate.REFUSED)


def test_a_cancel_ends_its_own_moves() -> None:
    world = World(fleet(guest("g1"), guest("g2")), relocation("g1 a b", "g2 a c"))
    assert len(world.step().asks) == 2
    world.asked = replace(world.asked, cancelled=True)
    found = world.step()
    assert (found.state, found.cancels) == (State.ENDING, ("g1", "g2"))
    world.fails = lambda attempt: "cancelled"
    world.end_one()
    world.end_one()
    assert world.step().state is State.CANCELLED


@settings(max_examples=150)
@given(clusters(), st.data())
def test_every_relocation_ends_asks_only_for_what_the_rules_allow_and_sends_nobody_elsewhere(
    cluster: Cluster, data: st.DataObject
) -> None:
    random = Random(data.draw(st.integers(0, 99)))
    hosts = sorted(cluster.hosts)
    names = data.draw(st.lists(st.sampled_from(sorted(cluster.guests)), min_size=1, unique=True))
    moves = []
    for name in names:
        one = cluster.guests[name]
        source = one.host if data.draw(st.integers(0, 9)) else data.draw(st.sampled_from(hosts))
        moves.append(Move(name, source, data.draw(st.sampled_from(hosts))))
    asked = Relocation("r-1", tuple(moves), most_at_once=data.draw(st.integers(0, 2)))
    world = World(cluster, asked, lambda attempt: "stalled" if random.random() < 0.3 else "")
    wanted = {move.guest: move.destination for move in moves}
    for _ in range(1000):
        now = world.cluster
        found = world.step()
        for ask in found.asks:
            begun = begin(now, ask.move)
            assert not isinstance(begun, Refusal), "what a rule refuses was asked for"
            now = begun
            assert ask.move.destination == wanted[ask.move.guest]
        assert found.guests.keys() == wanted.keys()
        if found.state in ENDED:
            break
        if any(each.open for each in world.attempts.values()):
            world.end_one()
            continue
        # What is left waits for others' moves, or for hosts that are silent: the former end now, the latter never do.
        if any(each.moving_to for each in world.cluster.guests.values()):
            world.cluster = world.cluster.placed(
                replace(each, moving_to="") for each in world.cluster.guests.values() if each.moving_to
            )
            continue
        assert any(host.stale for host in world.cluster.hosts.values()) or any(
            each.host == "nowhere" for each in world.cluster.guests.values()
        ), f"it waits for nothing: {found}"
        world.asked = replace(world.asked, deadline=NOW)
    assert found.state in ENDED
    assert max((each.number for each in world.attempts.values()), default=0) <= 3
    assert all(each.reason for each in found.guests.values() if each.fate in (Fate.FAILED, Fate.REFUSED))
    arrived = {name for name, each in found.guests.items() if each.fate is Fate.MOVED}
    assert all(world.cluster.guests[name].host == wanted[name] for name in arrived)
    assert (found.state is State.COMPLETED) == (len(arrived) == len(wanted))
