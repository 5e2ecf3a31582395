"""Which registration policy, and why: what the task set wins, then what both hosts may lock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import RefusedError
from workers.registration.choose import Choice, Facts, choose

MIB, GIB = 1 << 20, 1 << 30
#: A guest of 4 GiB, half of it used, between hosts that lock as they like; the task set nothing.
FREE = Facts(4 * GIB, 2 * GIB, None, None, pin_all=False, pin_budget=0, locks=True)
#: The same where registering locks nothing: over tcp, or with devices that fault memory in.
UNLOCKED = replace(FREE, locks=False)

limit = st.none() | st.integers(0, 1 << 45)
any_facts = st.builds(
    Facts,
    memory=st.just(1 << 40),
    touched=st.integers(0, 1 << 40),
    source_limit=limit,
    destination_limit=limit,
    pin_all=st.just(False),
    pin_budget=st.just(0) | st.integers(64 * MIB, 1 << 46),
    locks=st.just(True),
)


def refused(given: Facts) -> str:
    with pytest.raises(RefusedError) as caught:
        choose(given)
    assert caught.value.reason == "memory-lock"
    return str(caught.value)


def test_dynamic_where_nothing_limits_it() -> None:
    choice = choose(FREE)
    assert (choice.policy, choice.window, choice.recommended) == ("dynamic", 0, "dynamic")
    assert choice.reason == "both hosts may lock memory without a limit, the guest has 4096 MiB"
    assert choice.to_json() == {"policy": "dynamic", "policy-reason": choice.reason}


@pytest.mark.parametrize("side", ["source", "destination"])
def test_windowed_within_what_the_tighter_host_may_lock(side: str) -> None:
    limits = {"source_limit": 3 * GIB, "destination_limit": 3 * GIB} | {f"{side}_limit": GIB}
    choice = choose(replace(FREE, **limits))
    assert (choice.policy, choice.window, choice.recommended) == ("windowed", GIB - MIB, "windowed")
    assert choice.reason == (
        f"the {side} host may keep 1023 MiB locked, the guest has 4096 MiB, of which 2048 MiB hold data"
    )


def test_what_the_guest_may_touch_on_the_way_counts_as_well() -> None:
    """All that it touched so far would fit; dynamic would fail in the middle once it touches the rest."""
    assert choose(replace(FREE, source_limit=3 * GIB)).policy == "windowed"
    assert choose(replace(FREE, source_limit=5 * GIB)).policy == "dynamic"


def test_pin_all_is_taken_only_when_asked_for_and_recommended_where_its_wait_is_short() -> None:
    small = replace(FREE, touched=100 * MIB)
    assert choose(small).policy == "dynamic"
    assert choose(small).to_json()["recommended"] == (
        "pin-all: 100 MiB are locked within 1 s, and no round waits for registration after that"
    )
    assert choose(replace(small, pin_all=True)).to_json() == {
        "policy": "pin-all",
        "policy-reason": "rdma-pin-all is on",
    }


def test_pin_all_of_much_is_told_what_it_costs() -> None:
    assert choose(replace(FREE, pin_all=True)).to_json()["recommended"] == (
        "dynamic: it locks 2048 MiB beside the writes, not 5.3 to 11.3 s before"
    )


def test_pin_all_against_a_limit_is_told_of_the_window() -> None:
    choice = choose(replace(FREE, pin_all=True, destination_limit=3 * GIB))
    assert (choice.policy, choice.recommended) == ("pin-all", "windowed")


def test_a_budget_is_the_window_and_what_the_device_locks_for_itself() -> None:
    choice = choose(replace(FREE, pin_budget=GIB))
    assert (choice.policy, choice.window, choice.reason) == ("windowed", GIB - MIB, "pin-budget is 1024 MiB")
    assert choice.to_json()["recommended"] == "dynamic: all of the guest's 4096 MiB may be locked"


def test_a_budget_that_the_guest_fits_into_costs_nothing() -> None:
    assert "recommended" not in choose(replace(FREE, pin_budget=3 * GIB)).to_json()


def test_a_budget_is_lowered_to_what_can_be_locked() -> None:
    choice = choose(replace(FREE, pin_budget=GIB, destination_limit=512 * MIB))
    assert (choice.policy, choice.window) == ("windowed", 511 * MIB)
    assert choice.reason == "pin-budget is 1024 MiB, of which 511 MiB can be locked"


def test_the_usual_limit_of_8_mib_is_enough_and_less_than_5_is_not() -> None:
    assert choose(replace(FREE, source_limit=8 * MIB)).window == 7 * MIB
    assert choose(replace(FREE, source_limit=5 * MIB)).window == 4 * MIB
    said = refused(replace(FREE, source_limit=5 * MIB - 1))
    assert said.startswith("the source host may lock 5242879 bytes, and moving a guest takes 5242880")
    assert "LimitMEMLOCK" in said
    assert refused(replace(FREE, destination_limit=0, pin_budget=GIB)).startswith("the destination host")


def test_where_nothing_is_locked_no_limit_binds() -> None:
    choice = choose(replace(UNLOCKED, source_limit=0, destination_limit=4096))
    assert (choice.policy, choice.window, choice.recommended) == ("dynamic", 0, "dynamic")
    assert choice.reason == "registering locks nothing here, so no limit binds; the guest has 4096 MiB"


def test_where_nothing_is_locked_a_budget_bounds_what_is_registered_all_the_same() -> None:
    choice = choose(replace(UNLOCKED, pin_budget=GIB, source_limit=0))
    assert (choice.policy, choice.window) == ("windowed", GIB), "no limit lowers it, and no queue is locked beside it"
    assert choice.reason == "pin-budget is 1024 MiB; registered memory is not locked here"
    assert choice.recommended == "dynamic"


def test_pin_all_locks_wherever_it_is_asked_for_so_limits_bind_it_and_it_is_told_that_nothing_needs_it() -> None:
    choice = choose(replace(UNLOCKED, pin_all=True))
    assert (choice.policy, choice.to_json()["recommended"]) == (
        "pin-all",
        "dynamic: no device needs memory locked here",
    )
    refused(replace(UNLOCKED, pin_all=True, source_limit=5 * MIB - 1))


@given(any_facts)
def test_no_choice_locks_more_than_either_host_may_or_the_task_allows(given: Facts) -> None:
    lockable = [limit for limit in (given.source_limit, given.destination_limit) if limit is not None]
    try:
        choice = choose(given)
    except RefusedError:
        assert min(lockable) < 5 * MIB
        return
    most = choice.window if choice.policy == "windowed" else given.memory
    assert all(most <= limit for limit in lockable)
    assert not given.pin_budget or most <= given.pin_budget
    assert choice.policy != "pin-all"
    assert choice.reason
    assert choice.recommendation
    assert isinstance(choice, Choice)
