"""The fleet's metrics of made-up readings: what is counted, what is bounded, what is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config.errors import UnreachableError
from tasks.exporter.collector import FleetCollector
from tasks.exporter.figures import samples
from tasks.exporter.outlook import MOST_HOSTS, Outlook, outlook
from tasks.exporter.reading import Reading
from tasks.inventory.live import cluster
from tasks.jobs import JobRecord, Kind, Order
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import Fate, Standing, State
from tasks.planning.rebalancing import Policy, plan_rebalance
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, MigrationRecord, Pin, SideRecord
from workers.metrics import names
from workers.metrics.names import Metric
from workers.pairing.contract import Side

GIB = 1 << 30
NOW = 1_700_000_000.0


def host(name: str, **changes: Any) -> HostRecord:
    none = dict.fromkeys(Side, 0)
    made = HostRecord(
        name,
        "::1",
        "0.1.0",
        16 * GIB,
        0,
        0,
        None,
        frozenset(),
        (),
        (),
        dict.fromkeys(Side, 1),
        none,
        none,
        frozenset(Side),
    )
    return replace(made, **changes)


def move(state: str = "active", *, rounds: tuple[dict[str, Any], ...] = (), **changes: Any) -> MigrationRecord:
    def side(name: str) -> SideRecord:
        return SideRecord(name, None, None, None, {"rounds": rounds, "outcome": changes.get("outcome")})

    made = MigrationRecord("m-1", "web", state, 2 * GIB, {}, {}, side("alpha"), side("beta"), NOW - 500)
    return replace(made, **{key: value for key, value in changes.items() if key != "outcome"})


POLICIES = {"nightly": Policy(target=0.03), "gentle": Policy(target=0.05, most_moves=1)}


def told(reading: Reading, ahead: Outlook | None = None) -> dict[Metric, Any]:
    return samples(reading, cluster(reading.fleet, reading.open, reading.now), POLICIES, ahead)  # type: ignore[return-value]


def test_migrations_are_counted_by_state_and_by_what_they_wait_for() -> None:
    waits = {
        "no source worker is alive on alpha": "worker",
        "every source slot of alpha is taken": "slot",
        "prepared; every destination slot of beta is taken": "slot",
        "prepared; the shared link rack-1 is full": "link",
        "beta has 12 bytes free, 4096 are needed": "memory",
        "the moon is in the wrong house": "other",
    }
    moves = [move("queued", waiting=words) for words in waits]
    found = told(Reading(NOW, open=(*moves, move("active"), move("completed"), move("sleeping"))))
    assert found[names.WAITING] == {("slot",): 2, ("memory",): 1, ("link",): 1, ("worker",): 1, ("other",): 1}
    counted = found[names.OPEN_MIGRATIONS]
    assert (counted["queued",], counted["active",], counted["other",], counted["setup",]) == (6, 1, 1, 0)
    assert set(counted) == {(state,) for state in names.OPEN_STATES}, "what has ended is not open"


def test_a_guest_that_waits_in_handover_is_told() -> None:
    found = told(Reading(NOW, open=(move("device", outcome="unresolved"), move())))
    assert found[names.UNRESOLVED] == {(): 1}


def test_the_budget_is_that_of_the_guests_size_and_only_of_who_sends() -> None:
    asked = {"completion-timeout-per-gib": 100, "progress-timeout": 60}
    half = move(granted=NOW - 100, parameters=asked)  # 2 GiB: 200 s
    assert told(Reading(NOW, open=(half,)))[names.BUDGET_USED] == {(): 0.5}
    for other in (
        move(parameters=asked),
        move("device", granted=NOW - 1000, parameters=asked),
        move("queued", parameters=asked),
        move(granted=NOW - 1000, parameters={**asked, "completion-timeout-per-gib": 0}),
        move(granted=NOW - 1000, parameters={"of-another-release": 3}),
    ):
        assert told(Reading(NOW, open=(other,)))[names.BUDGET_USED] == {(): 0.0}


def test_progress_is_a_new_lowest_amount_left_and_nothing_else() -> None:
    asked = {"progress-timeout": 60}
    rounds = tuple({"dirty": left, "at": at} for left, at in ((500, 10.0), (100, 20.0), (300, 40.0), (99, 50.0)))
    stuck = move(granted=NOW - 50, rounds=rounds, parameters=asked)  # 99 is no 2 % below 100: the last was at 20 s
    assert told(Reading(NOW, open=(stuck,)))[names.NO_PROGRESS][()] == pytest.approx(0.5)
    better = move(granted=NOW - 50, rounds=(*rounds, {"dirty": 50, "at": 50.0}), parameters=asked)
    assert told(Reading(NOW, open=(better,)))[names.NO_PROGRESS] == {(): 0.0}
    in_bulk = move(granted=NOW - 50, parameters=asked)
    assert told(Reading(NOW, open=(in_bulk,)))[names.NO_PROGRESS] == {(): 0.0}


def test_hosts_have_slots_and_memory_and_a_silent_one_is_down() -> None:
    alpha = host(
        "alpha",
        resident=6 * GIB,
        reserved=12 * GIB,
        busy={Side.SOURCE: 1, Side.DESTINATION: 0},
        admitted={Side.SOURCE: 3, Side.DESTINATION: 0},
        alive=frozenset({Side.SOURCE}),
    )
    web = GuestRecord("web", "gone", GIB, 1, None)
    pins = {(Kept.CORDON, "alpha"): Pin(Kept.CORDON, "alpha", "firmware", NOW)}
    found = told(Reading(NOW, Fleet({"alpha": alpha}, {"web": web}, pins), frozenset({"alpha", "heard-of"})))
    slots = found[names.SLOTS]
    assert [slots["alpha", "source", state] for state in ("sending", "preparing", "free")] == [1, 2, 0]
    memory = found[names.HOST_MEMORY]
    assert memory["alpha", "free"] == 0, "promised beyond what is offered is no memory, but not less than none"
    assert memory["alpha", "resident"] + memory["alpha", "reserved"] == 18 * GIB
    up = found[names.HOST_UP]
    assert (up["alpha", "source"], up["alpha", "destination"]) == (1, 0)
    assert (up["gone", "source"], up["heard-of", "destination"]) == (0, 0)
    assert found[names.HOST_GUESTS] == {("alpha",): 0, ("gone",): 1, ("heard-of",): 0}
    assert found[names.HOST_CORDONED]["alpha",] == 1
    assert found[names.VERSIONS] == {("0.1.0",): 1}


def evacuation(fates: dict[str, Fate], deadline: float | None, created: float = NOW - 100) -> JobRecord:
    asked = Evacuation("e-1", frozenset({"alpha"}), deadline=deadline)
    guests = {name: Standing(fate, "", "alpha") for name, fate in fates.items()}
    return JobRecord(Order(Kind.EVACUATION, asked, "why"), State.RUNNING, "", created, None, guests, {})


def test_an_evacuation_has_an_eta_at_its_own_pace_and_is_gone_with_its_end() -> None:
    guests = {name: GuestRecord(name, "alpha", 4 * GIB, 1, None) for name in "abcd"}
    fleet = Fleet({"alpha": host("alpha", bandwidth=GIB)}, guests)
    fates = {"a": Fate.MOVED, "b": Fate.MOVING, "c": Fate.WAITING, "d": Fate.REFUSED}
    found = told(Reading(NOW, fleet, open_jobs=(evacuation(fates, NOW + 50),)))
    assert found[names.EVACUATION_ETA] == {("e-1",): 200.0}, "4 GiB in 100 s, 8 to go, and nobody waits for the refused"
    assert found[names.EVACUATION_DEADLINE] == {("e-1",): 50.0}
    assert found[names.EVACUATION_GUESTS]["e-1", "refused"] == 1
    assert set(found[names.EVACUATION_GUESTS]) == {("e-1", fate) for fate in names.FATES}
    at_first = told(Reading(NOW, fleet, open_jobs=(evacuation({"a": Fate.WAITING}, None),)))
    assert at_first[names.EVACUATION_ETA] == {("e-1",): 4.0}, "what its link carries"
    assert at_first[names.EVACUATION_DEADLINE] == {}
    ended = replace(evacuation(fates, None), state=State.COMPLETED)
    over = told(Reading(NOW, fleet, open_jobs=(ended,)))
    assert over[names.EVACUATION_GUESTS] == over[names.EVACUATION_ETA] == {}


def test_every_label_is_of_its_closed_list_and_none_is_a_guests() -> None:
    alpha = host("alpha")
    reading = Reading(
        NOW,
        Fleet({"alpha": alpha}, {"web": GuestRecord("web", "alpha", GIB, 1, None)}),
        frozenset({"alpha"}),
        (move(), move("queued", waiting="for web")),
        (evacuation({"web": Fate.MOVING}, NOW),),
        {("evacuation", "running"): 1, ("revolution", "running"): 2},
        {"web": 3},
        {"appendonly": True},
    )
    found = told(reading, Outlook({"nightly": 0.1}, {"no-room": 1, "bad-mood": 4}))
    assert found.keys() == set(names.FLEET) - {names.REDIS_UP, names.READ_SECONDS}
    for metric, values in found.items():
        for labels in values:
            assert len(labels) == len(metric.labels), metric.name
            for value, (name, known) in zip(labels, metric.labels, strict=True):
                assert value in known if known else name in ("host", "evacuation", "version", "policy"), (
                    metric.name,
                    value,
                )
    assert found[names.MOST_MOVED] == {(): 3}
    assert found[names.IMBALANCE_TARGET] == {("nightly",): 0.03, ("gentle",): 0.05}
    assert found[names.GAIN] == {("nightly",): 0.1}


# --- what is planned --------------------------------------------------------------------------------------------------


def uneven() -> Cluster:
    hosts = [Host("a", 8 * GIB), Host("b", 8 * GIB), Host("small", GIB // 2)]
    guests = [Guest(f"g{number}", "a", GIB) for number in range(6)]
    guests += [
        Guest("pinned", "a", GIB, stays="licence"),
        Guest("picky", "b", GIB, needs=frozenset({"gpu=yes"})),
        Guest("big", "b", 2 * GIB),
        Guest("lost", "nowhere", GIB),
        Guest("going", "a", GIB // 4, moving_to="small"),
    ]
    return Cluster({each.name: each for each in hosts}, {each.name: each for each in guests}, taken=NOW)


def test_the_outlook_is_what_rebalancing_would_gain_and_who_could_not_leave() -> None:
    found = outlook(uneven(), POLICIES)
    assert found is not None
    plans = {name: plan_rebalance(uneven(), policy, NOW) for name, policy in POLICIES.items()}
    assert all(plan.moves for plan in plans.values())
    gains = {name: plan.imbalance_before - plan.imbalance_after for name, plan in plans.items()}
    assert found.gain == pytest.approx(gains)
    assert gains["nightly"] > gains["gentle"]
    assert found.not_evacuable == {"pinned": 1, "no-host": 1, "no-room": 1, "stale": 1}


def test_a_fleet_that_is_too_large_is_not_planned() -> None:
    hosts = {name: Host(name, GIB) for name in map(str, range(MOST_HOSTS + 1))}
    assert outlook(Cluster(hosts), POLICIES) is None


# --- between Prometheus and Redis -------------------------------------------------------------------------------------


def test_redis_is_read_once_an_interval_and_nothing_old_is_shown_when_it_is_away() -> None:
    clock, readings = [0.0], [0]

    def read() -> Reading:
        readings[0] += 1
        if clock[0] > 100:
            raise UnreachableError("Redis is away")
        return Reading(NOW, Fleet({"alpha": host("alpha")}), frozenset({"alpha"}))

    collector = FleetCollector(read, 5.0, {}, lambda: clock[0])
    list(collector.describe())
    assert readings[0] == 0, "registering reads nothing"
    for second in (0.0, 1.0, 4.9):
        clock[0] = second
        assert any(family.name == names.HOST_UP.name for family in collector.collect())
    assert readings[0] == 1
    clock[0] = 5.0
    list(collector.collect())
    assert readings[0] == 2
    clock[0] = 101.0
    away = {family.name: family.samples[0].value for family in collector.collect()}
    assert away[names.REDIS_UP.name] == 0
    assert away.keys() == {names.BUILD.name, names.REDIS_UP.name, names.READ_SECONDS.name}


def test_without_a_policy_it_is_told_what_a_rebalancing_by_hand_goes_by() -> None:
    collector = FleetCollector(lambda: Reading(NOW), 5.0, {}, lambda: 0.0)
    target = next(family for family in collector.collect() if family.name == names.IMBALANCE_TARGET.name)
    assert [(each.labels, each.value) for each in target.samples] == [({"policy": "default"}, Policy().target)]
