"""Who can come back to a host: those that left it, if the rules allow it once the host is open again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.moves import Move, apply
from tasks.planning.returning import plan_return
from tasks.planning.rules import Refusal
from tests.clusters import clusters

GIB = 1 << 30


def fleet(*guests: Guest) -> Cluster:
    hosts = {name: Host(name, 16 * GIB) for name in "abc"}
    hosts["a"] = replace(hosts["a"], cordoned="a new board")
    return Cluster(hosts, {guest.name: guest for guest in guests})


def test_they_come_back_to_the_closed_host_the_biggest_first() -> None:
    cluster = fleet(Guest("little", "b", GIB), Guest("big", "c", 4 * GIB), Guest("other", "b", GIB))
    found = plan_return(cluster, ["a"], {"little": "a", "big": "a"})
    assert found.moves == (Move("big", "c", "a"), Move("little", "b", "a"))
    assert (found.refused, len(found.schedule.moves)) == ((), 2)


def test_who_is_gone_back_or_on_the_way_back_is_left_out() -> None:
    cluster = fleet(Guest("back", "a", GIB), Guest("coming", "b", GIB, moving_to="a"))
    assert plan_return(cluster, ["a"], {"gone": "a", "back": "a", "coming": "a"}).wanted == ()


def test_who_cannot_come_says_why_and_is_wanted_all_the_same() -> None:
    kept, big = Guest("kept", "b", GIB, stays="a licence"), Guest("big", "b", 20 * GIB)
    found = plan_return(fleet(kept, big, Guest("ok", "c", GIB)), ["a"], dict.fromkeys(("kept", "big", "ok"), "a"))
    assert [(move.guest, refusal.rule) for move, refusal in found.refused] == [("big", "no-memory"), ("kept", "pinned")]
    assert [move.guest for move in found.wanted] == ["ok", "big", "kept"]


def test_there_is_room_for_the_biggest_and_the_others_say_what_is_missing() -> None:
    cluster = fleet(Guest("g1", "b", 10 * GIB), Guest("g2", "c", 8 * GIB), Guest("g3", "c", 4 * GIB))
    found = plan_return(cluster, ["a"], dict.fromkeys(("g1", "g2", "g3"), "a"))
    assert [move.guest for move in found.moves] == ["g1", "g3"]
    assert [(move.guest, refusal.rule) for move, refusal in found.refused] == [("g2", "no-memory")]


def test_each_goes_to_the_host_that_it_left() -> None:
    cluster = fleet(Guest("g1", "c", GIB), Guest("g2", "c", GIB))
    assert plan_return(cluster, ["a", "b"], {"g1": "a", "g2": "b"}).moves == (
        Move("g1", "c", "a"),
        Move("g2", "c", "b"),
    )


def test_one_that_is_moved_elsewhere_now_is_fetched_from_there() -> None:
    found = plan_return(fleet(Guest("g1", "b", GIB, moving_to="c")), ["a"], {"g1": "a"})
    assert [(move, refusal.rule) for move, refusal in found.refused] == [(Move("g1", "c", "a"), "moving")]


@given(clusters(), st.data())
def test_its_moves_can_be_made_one_after_the_other(cluster: Cluster, data: st.DataObject) -> None:
    hosts = data.draw(st.sets(st.sampled_from(sorted(cluster.hosts)), min_size=1))
    names = data.draw(st.sets(st.sampled_from(sorted(cluster.guests))))
    homes = {name: data.draw(st.sampled_from(sorted(hosts))) for name in sorted(names)}
    found = plan_return(cluster, hosts, homes)
    now = cluster.changed(replace(cluster.hosts[name], cordoned=None) for name in hosts)
    for move in found.moves:
        made = apply(now, move)
        assert not isinstance(made, Refusal)
        now = made
    assert len({move.guest for move in found.wanted}) == len(found.wanted)
