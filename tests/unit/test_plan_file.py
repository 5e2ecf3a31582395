"""Kept plans: what is printed is read again as it was, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import RequestError
from tasks.cli.rendering.plans import plan_json, rebalance_json
from tasks.inventory.simulated import simulate
from tasks.plan_file import MAX_BYTES, read_evacuation, read_rebalance
from tasks.planning.evacuation import plan_evacuation
from tasks.planning.rebalancing import Policy, plan_rebalance

CLUSTER = simulate("hosts=6,guests=60,seed=3,groups=4")
HOST = min(CLUSTER.hosts)
EVACUATION: dict[str, Any] = json.loads(json.dumps(plan_json(plan_evacuation(CLUSTER, [HOST]))))


def test_a_plan_of_an_evacuation_is_read_as_it_was_printed() -> None:
    plan = plan_evacuation(CLUSTER, [HOST])
    read = read_evacuation(json.dumps(plan_json(plan)).encode(), [HOST])
    assert read.hosts == (HOST,)
    assert [each.move for each in read.moves] == [timed.move for timed in plan.schedule.moves]
    assert read.moves
    assert read_evacuation(json.dumps(plan_json(plan)).encode(), []) == read


def test_a_plan_of_a_rebalancing_is_read_as_it_was_printed() -> None:
    plan = plan_rebalance(CLUSTER, Policy(threshold=0.02, target=0.01), CLUSTER.taken)
    read = read_rebalance(json.dumps(rebalance_json(plan)).encode())
    assert [each.move for each in read.moves] == [timed.move for timed in plan.schedule.moves]
    assert (read.imbalance_before, read.imbalance_after) == (plan.imbalance_before, plan.imbalance_after)
    assert read.moves


def changed(**fields: Any) -> bytes:
    return json.dumps(EVACUATION | fields).encode()


def with_move(**fields: Any) -> bytes:
    first, *others = EVACUATION["moves"]
    return changed(moves=[first | fields, *others])


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "no JSON"),
        (b"{" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "is a list"),
        (b"{}", "of version None"),
        (changed(version=2), "of version 2"),
        (changed(version=True), "of version True"),
        (changed(version="1"), "of version '1'"),
        (changed(colour="red"), "wrong at colour"),
        (changed(hosts=[]), "wrong at hosts"),
        (changed(hosts=["../etc"]), "cannot name a host"),
        (changed(hosts="alpha"), "wrong at hosts"),
        (changed(makespan_seconds=-1), "wrong at makespan_seconds"),
        (changed(moves=EVACUATION["moves"] + EVACUATION["moves"][:1]), "is moved twice"),
        (changed(imbalance_before=0.1), "droveway rebalance"),
        (with_move(destination=EVACUATION["moves"][0]["source"]), "to itself"),
        (with_move(destination=HOST, source="elsewhere"), "which it empties"),
        (with_move(wave="1"), "wrong at moves.0.wave"),
        (with_move(guest=None), "wrong at moves.0.guest"),
        (b" " * (MAX_BYTES + 1), "more than 16 MiB"),
    ],
)
def test_anything_else_is_refused_with_the_place(document: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_evacuation(document, [])


def test_a_field_that_is_missing_is_named() -> None:
    less = {name: value for name, value in EVACUATION.items() if name != "refused"}
    with pytest.raises(RequestError, match="wrong at refused"):
        read_evacuation(json.dumps(less).encode(), [])


def test_a_plan_for_other_hosts_than_named_is_refused() -> None:
    with pytest.raises(RequestError, match=f"the plan empties {HOST}, not alpha"):
        read_evacuation(changed(), ["alpha"])


def test_a_plan_of_an_evacuation_is_none_of_a_rebalancing() -> None:
    with pytest.raises(RequestError, match="is it one for `droveway evacuate`"):
        read_rebalance(changed())


def _encoded(document: object) -> bytes:
    return json.dumps(document).encode()


@settings(max_examples=200)
@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_document_is_more_than_an_error(document: bytes) -> None:
    with pytest.raises(RequestError):
        read_rebalance(document)
