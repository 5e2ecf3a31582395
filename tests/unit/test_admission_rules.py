"""Each rule that refuses a request says so under its own word; reconcile finds each trouble, and only troubles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config.capabilities import SUPPORTED
from config.errors import RefusedError, RequestError
from tasks.admission import judge
from tasks.messages import MigrateRequest
from tasks.reconcile import ABANDON_AFTER, RING_AGAIN, Action, examine
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, MigrationRecord, Pin, SideRecord
from tasks.steps import SILENCE
from workers.pairing.contract import Side

GIB = 1 << 30
EVERYTHING = frozenset(capability.value for capability in SUPPORTED)


def host(name: str, **changes: Any) -> HostRecord:
    free = dict.fromkeys(Side, 0)
    plain = HostRecord(
        name, "::1", "1.0", 4 * GIB, 0, 0, None, EVERYTHING, ("tcp",), (), dict.fromkeys(Side, 1), free, free,
        frozenset(Side),
    )  # fmt: skip
    return replace(plain, **changes)


def fleet(*hosts: HostRecord, **guest: Any) -> Fleet:
    known = {each.host: each for each in (host("alpha"), host("beta"), *hosts)}
    return Fleet(known, {"web": replace(GuestRecord("web", "alpha", GIB, 4, None), **guest)})


def pinned(kept: Kept, name: str) -> Fleet:
    return replace(fleet(), pins={(kept, name): Pin(kept, name, "under test", 1.0)})


def asked(**changes: Any) -> MigrateRequest:
    return MigrateRequest(**{"migration": "m-1", "guest": "web", "destination": "beta", **changes})


def test_a_sound_request_becomes_a_submission() -> None:
    submission = judge(asked(capabilities={"x-rdma-pin-all": True}, parameters={"downtime-limit": "100ms"}), fleet())
    assert (submission.source, submission.destination, submission.memory) == ("alpha", "beta", GIB)
    assert submission.capabilities["rdma-pin-all"] is True
    assert submission.parameters["downtime-limit"] == 100


@pytest.mark.parametrize(
    ("request_", "there", "reason", "said"),
    [
        (asked(guest="wed"), fleet(), "unknown-guest", "did you mean web"),
        (asked(source="beta"), fleet(), "guest-moved", "is on alpha"),
        (asked(destination="alpha"), fleet(), "same-host", "on alpha already"),
        (asked(destination="bete"), fleet(), "unknown-host", "did you mean beta"),
        (asked(), fleet(host("beta", alive=frozenset({Side.SOURCE}))), "no-worker", "destination worker"),
        (asked(), fleet(host("alpha", alive=frozenset({Side.DESTINATION}))), "no-worker", "source worker"),
        (asked(), fleet(active="m-7"), "busy", "m-7"),
        (asked(), fleet(host("beta", capabilities=frozenset({"zero-pages"}))), "capability", "verify-ram"),
        (asked(), fleet(host("beta", resident=2 * GIB, reserved=2 * GIB - 1)), "host-memory", "has 1 left"),
        (asked(), fleet(host("beta", memory=0, resident=GIB)), "host-memory", "has 0 left"),
        (asked(), pinned(Kept.GUEST, "web"), "pinned", "guest web is pinned: under test"),
        (asked(), pinned(Kept.HOST, "alpha"), "pinned", "host alpha is pinned: under test"),
        (asked(), pinned(Kept.HOST, "beta"), "pinned", "host beta is pinned: under test"),
        (asked(), pinned(Kept.CORDON, "beta"), "cordoned", "beta takes no guests: under test"),
    ],
)
def test_each_rule_refuses_under_its_own_word(request_: MigrateRequest, there: Fleet, reason: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said) as caught:
        judge(request_, there)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("kept", "name"), [(Kept.CORDON, "alpha"), (Kept.GUEST, "mail"), (Kept.HOST, "gamma")])
def test_a_pin_keeps_nothing_but_what_it_names_and_a_cordon_lets_guests_leave(kept: Kept, name: str) -> None:
    assert judge(asked(), pinned(kept, name)).destination == "beta"


@pytest.mark.parametrize("low", ["alpha", "beta"])
def test_pin_all_is_refused_where_the_limit_is_too_low_and_only_then(low: str) -> None:
    there = fleet(host(low, memlock=GIB - 1))
    with pytest.raises(RefusedError, match=low) as caught:
        judge(asked(capabilities={"rdma-pin-all": True}), there)
    assert caught.value.reason == "memory-lock"
    assert judge(asked(), there).guest == "web"
    assert judge(asked(capabilities={"rdma-pin-all": True}), fleet(host(low, memlock=GIB))).guest == "web"


def test_what_a_destination_lacks_harmlessly_is_left_to_the_agreement() -> None:
    there = fleet(host("beta", capabilities=EVERYTHING - {"zero-pages"}))
    assert judge(asked(), there).capabilities["zero-pages"] is True


def test_unknown_options_are_the_requests_own_fault() -> None:
    with pytest.raises(RequestError, match="did you mean rdma-pin-all"):
        judge(asked(capabilities={"rdma-pin-al": True}), fleet())


def test_the_same_request_again_is_not_busy_with_itself() -> None:
    assert judge(asked(), fleet(active="m-1")).migration == "m-1"


# --- reconcile --------------------------------------------------------------------------------------------------------

NOW = 10_000.0


def side(name: str, **changes: Any) -> SideRecord:
    return replace(SideRecord(name, NOW - 50, NOW + 10, None, None), **changes)


def record(**changes: Any) -> MigrationRecord:
    plain = MigrationRecord(
        "m-1", "web", "active", GIB, {}, {}, side("alpha"), side("beta"), NOW - 60, 5, NOW - 55, NOW - 55
    )
    return replace(plain, **changes)


def found(one: MigrationRecord, there: Fleet | None = None) -> list[tuple[Action, Side | None]]:
    return [(finding.action, finding.side) for finding in examine([one], there or fleet(), NOW)]


def test_a_migration_that_goes_well_is_no_finding() -> None:
    assert found(record()) == []


def test_a_queued_one_says_what_it_waits_for() -> None:
    queued = record(state="queued", epoch=None, admitted=None, rung=None, waiting="every source slot of alpha is taken")
    assert [finding.reason for finding in examine([queued], fleet(), NOW)] == [
        "waits: every source slot of alpha is taken"
    ]


def test_an_unanswered_doorbell_is_rung_again_but_not_at_once() -> None:
    unclaimed = record(destination=side("beta", claimed=None, lease=None))
    assert found(unclaimed) == [(Action.RING, Side.DESTINATION)]
    assert found(replace(unclaimed, rung=NOW - RING_AGAIN + 1)) == []


def test_nobody_is_rung_where_no_worker_is_alive() -> None:
    unclaimed = record(destination=side("beta", claimed=None, lease=None))
    there = fleet(host("beta", alive=frozenset()))
    assert found(unclaimed, there) == [(Action.NONE, Side.DESTINATION)]


def test_a_restored_record_rings_nobody_who_may_have_ended() -> None:
    assert found(record(destination=side("beta", claimed=None, lease=None), restored=True)) == []


def test_a_source_that_never_came_is_given_up() -> None:
    late = record(source=side("alpha", claimed=None, lease=None), admitted=NOW - ABANDON_AFTER - 1)
    assert (Action.ABANDON, Side.SOURCE) in found(late)


def test_whoever_stopped_renewing_is_asked_never_overruled() -> None:
    assert found(record(source=side("alpha", lease=NOW - 1))) == [(Action.ASK, Side.SOURCE)]


def test_two_dead_hosts_keep_their_share_of_a_shared_link_for_as_long_as_a_reboot_takes() -> None:
    silent = {name: side(name, lease=NOW - SILENCE - 1) for name in ("alpha", "beta")}
    lost = record(source=silent["alpha"], destination=silent["beta"], granted=NOW - 900, crosses=frozenset({"rack"}))
    assert (Action.FREE, None) in found(lost)
    for change in (
        {"source": side("alpha", lease=NOW - SILENCE + 1)},
        {"destination": side("beta")},
        {"crosses": frozenset()},
        {"destination": side("beta", lease=None, outcome="failed")},
    ):
        assert (Action.FREE, None) not in found(replace(lost, **change))
    never_came = replace(lost, destination=side("beta", claimed=None, lease=None))
    assert (Action.FREE, None) in found(never_came)
    assert (Action.FREE, None) not in found(replace(never_came, granted=NOW - 100))


def test_an_unresolved_side_is_asked_even_while_its_worker_renews() -> None:
    unresolved = side("alpha", progress={"outcome": "unresolved"})
    assert found(record(source=unresolved)) == [(Action.ASK, Side.SOURCE)]


def test_what_ended_gives_back_what_nobody_renews() -> None:
    over = record(state="failed", source=side("alpha", outcome="failed", lease=None), destination=side("beta"))
    assert found(over) == []
    lapsed = replace(over, destination=side("beta", lease=NOW - 1))
    assert found(lapsed) == [(Action.RELEASE, Side.DESTINATION), (Action.ASK, Side.DESTINATION)]
