"""What Redis knows becomes a cluster: nothing that would keep a plan from going wrong is lost on the way."""

from __future__ import annotations

from dataclasses import replace

from tasks.inventory.live import cluster
from tasks.planning.cluster import Guest, Host
from tasks.planning.rules import judge
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, MigrationRecord, Pin, SideRecord
from workers.pairing.contract import Side
from workers.wire import UNSAID, WIRE

GIB = 1 << 30


def host(name: str, uplink_bandwidth: int = 0) -> HostRecord:
    return HostRecord(
        name, "::1", "1", 64 * GIB, 8 * GIB, 0, None, frozenset(), ("tcp",), (), {Side.SOURCE: 2, Side.DESTINATION: 3},
        dict.fromkeys(Side, 0), dict.fromkeys(Side, 0), frozenset(Side), 16.0, 5_000_000_000,
        "rack1" if uplink_bandwidth else "", uplink_bandwidth, frozenset({"zone=1"}),
    )  # fmt: skip


def move(guest: str, destination: str, state: str) -> MigrationRecord:
    source, there = (SideRecord(name, None, None, None, None) for name in ("alpha", destination))
    return MigrationRecord("m-1", guest, state, GIB, {}, {}, source, there, 1.0)


WEB = GuestRecord("web", "alpha", 8 * GIB, 3, None, 1.5, frozenset({"db"}), frozenset({"zone=1"}), 1e8, 77.0)


def test_everything_that_a_plan_needs_is_there() -> None:
    found = cluster(Fleet({"alpha": host("alpha")}, {"web": WEB}), [], 100.0)
    kinds, labels = frozenset({"tcp"}), frozenset({"zone=1"})
    alpha = Host("alpha", 64 * GIB, 16.0, 5_000_000_000, 2, 3, labels=labels, transports=kinds, wire=UNSAID)
    assert found.hosts == {"alpha": alpha}
    assert found.guests == {
        "web": Guest(
            "web", "alpha", 8 * GIB, 1.5, 100_000_000, groups=frozenset({"db"}), needs=frozenset({"zone=1"}), moved=77.0
        )
    }
    assert found.taken == 100.0


def test_a_guest_counts_where_it_is_going_also_while_it_waits_for_a_slot_and_not_once_it_has_ended() -> None:
    fleet = Fleet({name: host(name) for name in ("alpha", "beta")}, {"web": WEB})
    for state, there in (("queued", "beta"), ("active", "beta"), ("failed", "")):
        assert cluster(fleet, [move("web", "beta", state)], 1.0).guests["web"].moving_to == there


def test_what_operators_keep_where_it_is_stays_in_the_plan_as_well() -> None:
    fleet = Fleet({name: host(name) for name in ("alpha", "beta")}, {"web": WEB, "db": replace(WEB, guest="db")})
    pins = {
        Kept.GUEST: ("web", {"web"}, set()),
        Kept.HOST: ("alpha", {"web", "db"}, {"alpha"}),
        Kept.CORDON: ("beta", set(), {"beta"}),
    }
    for kept, (name, staying, closed) in pins.items():
        found = cluster(replace(fleet, pins={(kept, name): Pin(kept, name, "tests", 1.0)}), [], 1.0)
        assert {each.name for each in found.guests.values() if each.stays == "tests"} == staying
        assert {each.name for each in found.hosts.values() if each.cordoned == "tests"} == closed


def test_a_host_that_fell_silent_is_stale_and_so_is_one_with_half_of_its_workers() -> None:
    half = replace(host("beta"), alive=frozenset({Side.SOURCE}))
    found = cluster(Fleet({"beta": half}, {"web": WEB}), [], 1.0)
    assert {name: (each.stale, each.memory) for name, each in found.hosts.items()} == {
        "alpha": (True, 0),
        "beta": (True, 64 * GIB),
    }


def test_a_destination_that_fell_silent_is_there_and_stale() -> None:
    found = cluster(Fleet({"alpha": host("alpha")}, {"web": WEB}), [move("web", "beta", "active")], 1.0)
    assert found.hosts["beta"].stale


def test_a_plan_knows_what_hosts_speak_and_of_one_that_does_not_say_so_what_such_a_host_speaks() -> None:
    hosts = {"alpha": replace(host("alpha"), wire=WIRE), "beta": host("beta"), "gamma": replace(host("gamma"), wire=99)}
    found = cluster(Fleet(hosts, {"web": WEB}), [], 1.0)
    assert {name: each.wire for name, each in found.hosts.items()} == {"alpha": WIRE, "beta": UNSAID, "gamma": 99}
    refusal = judge(found, "web", "gamma")
    assert refusal is not None
    assert refusal.rule == "version"


def test_of_the_cpu_models_that_hosts_know_those_are_kept_that_some_guest_has() -> None:
    known = {"alpha": {"old", "new", "other"}, "beta": {"old", "other"}, "gamma": {"other", "yet-another"}}
    hosts = {name: replace(host(name), cpu_models=frozenset(models)) for name, models in known.items()}
    guests = {name: replace(WEB, guest=name, cpu_model=name) for name in ("old", "new")}
    found = cluster(Fleet(hosts, guests), [], 1.0)
    assert {name: set(each.cpu_models) for name, each in found.hosts.items()} == {
        "alpha": {"old", "new"},
        "beta": {"old"},
        "gamma": {"other", "yet-another"},
    }
    for guest in guests:
        for name, models in known.items():
            refusal = judge(found, guest, name)
            assert (refusal is not None and refusal.rule == "cpu-model") == (guest not in models)
    unknown = cluster(Fleet(hosts, {"web": WEB}), [], 1.0)
    assert {each.cpu_models for each in unknown.hosts.values()} == {frozenset()}


def test_of_two_rates_said_of_one_uplink_the_lower_one_is_believed() -> None:
    fleet = Fleet({"alpha": host("alpha", 40), "beta": host("beta", 30), "gamma": host("gamma", 50)})
    assert cluster(fleet, [], 1.0).uplinks == {"rack1": 30}
