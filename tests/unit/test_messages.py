"""A message is refused in one sentence, or is exactly what it says; and it goes to the right queue."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import MessageError
from tasks.bell import MessageBell
from tasks.messages import MAX_BODY, DestinationDoorbell, MigrateRequest, Reconcile, SourceDoorbell, new_migration_id
from tasks.queues import CONTROL_QUEUE, host_queue, queues_for, served_by
from workers.pairing.contract import Side

NOW = 1_800_000_000.0


def request(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "migration": "m-1", "guest": "web", "destination": "beta", **changes}


def doorbell(**changes: Any) -> dict[str, Any]:
    body = {"version": 1, "migration": "m-1", "guest": "web", "epoch": 3, "source": "alpha", "destination": "beta"}
    return {**body, "side": "source", "expires": NOW + 10, **changes}


def test_what_is_sent_is_what_is_read() -> None:
    asked = MigrateRequest(
        migration="m-1", guest="web", destination="beta", capabilities={"rdma-pin-all": True}, expires=NOW
    )
    assert MigrateRequest.read(asked.to_json(), NOW) == asked
    rung = SourceDoorbell.read(doorbell(), NOW)
    assert SourceDoorbell.read(rung.to_json(), NOW) == rung


@pytest.mark.parametrize("version", [0, 2, None, "1", True, 1.0])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(MessageError, match="version"):
        MigrateRequest.read(request(version=version), NOW)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"guest": "../../etc/passwd"}, "guest"),
        ({"guest": "web:handover"}, "guest"),
        ({"guest": 7}, "guest"),
        ({"destination": ""}, "destination"),
        ({"migration": "m/1"}, "migration"),
        ({"migration": ""}, "migration"),
        ({"migration": None}, "migration"),
        ({"expires": "soon"}, "expires"),
        ({"expires": float("inf")}, "expires"),
        ({"command": "rm -rf /"}, "command"),
    ],
)
def test_a_malformed_request_is_refused_and_its_key_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageError, match=named):
        MigrateRequest.read(request(**change), NOW)


@pytest.mark.parametrize("change", [{"epoch": 0}, {"epoch": "3"}, {"epoch": 1 << 60}, {"side": "destination"}])
def test_a_doorbell_must_be_of_its_own_side_and_a_possible_epoch(change: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match=next(iter(change))):
        SourceDoorbell.read(doorbell(**change), NOW)


def test_a_doorbell_replayed_under_the_other_tasks_name_is_refused() -> None:
    with pytest.raises(MessageError, match="side"):
        DestinationDoorbell.read(doorbell(), NOW)


def test_a_stale_message_is_refused() -> None:
    with pytest.raises(MessageError, match="expired 5 s ago"):
        SourceDoorbell.read(doorbell(), NOW + 15)


def test_an_oversized_message_is_refused() -> None:
    with pytest.raises(MessageError, match="bytes"):
        MigrateRequest.read(request(capabilities={"x" * MAX_BODY: True}), NOW)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*request(), "capabilities"]), inner, max_size=5)
), max_leaves=12))  # fmt: skip
def test_no_body_raises_anything_but_message_error(body: object) -> None:
    for kind in (MigrateRequest, SourceDoorbell, Reconcile):
        with contextlib.suppress(MessageError):
            kind.read(body, NOW)


def test_every_id_is_a_fresh_one_and_fit_for_paths_and_keys() -> None:
    made = {new_migration_id() for _ in range(100)}
    assert len(made) == 100
    for migration in made:
        MigrateRequest.read(request(migration=migration), NOW)


def test_each_message_goes_to_whom_it_is_for() -> None:
    assert queues_for(SourceDoorbell.read(doorbell(), NOW)) == (host_queue("alpha", Side.SOURCE),)
    there = DestinationDoorbell.read(doorbell(side="destination"), NOW)
    assert queues_for(there) == (host_queue("beta", Side.DESTINATION),)
    assert queues_for(MigrateRequest(migration="m-1", guest="web", destination="beta")) == (CONTROL_QUEUE,)
    assert set(queues_for(Reconcile(host="alpha"))) == {host_queue("alpha", side) for side in Side}
    assert served_by("beta", Side.DESTINATION) == (host_queue("beta", Side.DESTINATION), CONTROL_QUEUE)


def test_a_ring_expires() -> None:
    sent = []
    MessageBell(lambda message, queue: sent.append((queue, message.expires)), clock=lambda: NOW).reconcile("alpha")
    assert sent == [(host_queue("alpha", side), NOW + 3600) for side in Side]
