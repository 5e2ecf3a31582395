"""Offers say what they must in any order of releases; two offers have one outcome, whoever computes it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.capabilities import SUPPORTED, read_options
from config.errors import MessageError, RefusedError
from workers.pairing.agreement import agree, pins_certainly, refuse_beyond_limits
from workers.pairing.offer import MAX_OFFER, MAX_REASON, Offer, blocks_of, decode, encode
from workers.ram import RamBlock
from workers.registration.choose import LEAST_LOCKABLE
from workers.registration.limits import LockLimits
from workers.wire import UNSAID, WIRE

MIB, GIB = 1 << 20, 1 << 30


def offer(host: str, **changes: Any) -> Offer:
    capabilities, parameters = read_options()
    fields: dict[str, Any] = {
        "host": host,
        "blocks": blocks_of([RamBlock("pc.ram", GIB)]),
        "page_size": 4096,
        "capabilities": capabilities.to_json(),
        "parameters": parameters.to_json(),
        "supported": frozenset(str(capability) for capability in SUPPORTED),
        "transports": {"tcp": {"port": 49152}},
        "trackers": ("pagemap-scan",),
        "memlock": None,
        "guest": {"kind": "memory"},
    }
    return Offer(**{**fields, **changes})


# --- the codec --------------------------------------------------------------------------------------------------------


def test_what_is_encoded_comes_back() -> None:
    original = offer("alpha", memlock=64 << 10, cgroup=7, available=8, populated=9, unavailable={"verbs": "no device"})
    assert decode(encode(original)) == original
    assert original.limits == LockLimits(64 << 10, 7, 8)


def test_an_older_release_that_says_nothing_of_its_limits_is_not_held_to_any() -> None:
    document = json.loads(encode(offer("alpha")))
    for key in ("memlock", "cgroup", "available", "populated", "unavailable"):
        del document[key]
    old = decode(json.dumps(document).encode())
    assert old.limits == LockLimits()
    assert old.touched == old.memory == GIB
    assert agree(old, old.model_copy(update={"host": "beta"})).notes == ()


def test_what_a_newer_release_adds_is_ignored() -> None:
    document = json.loads(encode(offer("alpha")))
    document["colour"] = "blue"
    document["transports"]["carrier-pigeon"] = {"coop": 3}
    document["blocks"][0]["numa-node"] = 1
    assert decode(json.dumps(document).encode()) == offer("alpha")


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, True, 10**400])
def test_another_version_is_refused_in_words(version: object) -> None:
    document = json.loads(encode(offer("alpha"))) | {"version": version}
    with pytest.raises(MessageError, match="version"):
        decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"host": ""},
        {"host": 7},
        {"blocks": [{"id": "pc.ram", "size": -1, "page_size": 4096}]},
        {"blocks": [{"id": "pc.ram", "size": 1 << 63, "page_size": 4096}]},
        {"blocks": "pc.ram"},
        {"capabilities": {"rdma-pin-all": "on"}},
        {"memlock": -1},
        {"cgroup": 0.5},
        {"available": 1 << 63},
        {"populated": "all"},
        {"unavailable": {"verbs": 3}},
        {"unavailable": {"verbs": "x" * (MAX_REASON + 1)}},
        {"unavailable": {"verbs": "two\nlines"}},
        {"transports": ["tcp"]},
        {"page_size": 0},
    ],
)
def test_a_malformed_offer_is_refused_and_its_key_named(change: dict[str, Any]) -> None:
    document = json.loads(encode(offer("alpha"))) | change
    with pytest.raises(MessageError, match=next(iter(change))):
        decode(json.dumps(document).encode())


def test_an_oversized_offer_is_neither_written_nor_read() -> None:
    with pytest.raises(MessageError, match="bytes"):
        encode(offer("alpha", guest={"blob": "x" * MAX_OFFER}))
    with pytest.raises(MessageError, match="not read"):
        decode(b" " * (MAX_OFFER + 1))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["version", "host", "blocks", "page_size", "capabilities", "transports"]),
                    inner,
                    max_size=6,
                ),
            ),
            max_leaves=20,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_input_raises_anything_but_message_error(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        decode(data)


def test_nesting_without_end_is_malformed_not_a_crash() -> None:
    with pytest.raises(MessageError):
        decode(b"[" * 60_000)


# --- the agreement ----------------------------------------------------------------------------------------------------


def test_the_best_transport_that_both_have_is_taken_and_the_better_one_explained() -> None:
    source = offer("alpha", transports={"verbs": {}, "tcp": {}})
    destination = offer("beta", transports={"tcp": {}, "stub": {}})
    agreement = agree(source, destination)
    assert agreement.transport == "tcp"
    assert [(note.about, note.reason) for note in agreement.notes] == [
        ("transport", "not verbs: beta does not offer it")
    ]


def test_a_transport_asked_for_by_name_is_not_replaced_by_another() -> None:
    parameters = read_options(None, {"transport": "tcp"})[1].to_json()
    with pytest.raises(RefusedError) as caught:
        agree(
            offer("alpha", parameters=parameters, transports={"stub": {}}),
            offer("beta", parameters=parameters, transports={"stub": {}}),
        )
    assert caught.value.reason == "transport"


def test_the_smaller_bound_holds_whoever_sets_it() -> None:
    lower = read_options(None, {"chunk-size": "256K"})[1].to_json()
    agreement = agree(offer("alpha", transports={"tcp": {"channels": 2}}), offer("beta", parameters=lower))
    assert (agreement.channels, agreement.chunk_size) == (2, 256 << 10)
    assert {note.about for note in agreement.notes} == {"channels", "chunk-size"}


def test_a_harmless_capability_falls_back_and_says_so() -> None:
    old = offer("beta", supported=frozenset({"verify-ram"}))
    agreement = agree(offer("alpha"), old)
    assert agreement.capabilities["zero-pages"] is False
    assert [note.about for note in agreement.notes] == ["zero-pages"]


def test_a_property_that_was_asked_for_is_never_dropped() -> None:
    with pytest.raises(RefusedError, match="beta cannot do verify-ram") as caught:
        agree(offer("alpha"), offer("beta", supported=frozenset({"zero-pages"})))
    assert caught.value.reason == "capability"


# --- what may be locked, and held -------------------------------------------------------------------------------------


def pair(
    capabilities: dict[str, bool] | None = None, parameters: dict[str, Any] | None = None, **both: Any
) -> list[Offer]:
    """Two offers for the same request, of a guest of 1 GiB that touched half of it."""
    asked = read_options(capabilities, parameters)
    fields = {"capabilities": asked[0].to_json(), "parameters": asked[1].to_json(), **both}
    return [offer("alpha", populated=512 * MIB, **fields), offer("beta", guest=None, **fields)]


def refusal(offers: list[Offer]) -> tuple[str, str]:
    with pytest.raises(RefusedError) as caught:
        agree(*offers)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("side", [0, 1])
def test_pin_all_locks_what_is_touched_on_both_hosts(side: int) -> None:
    offers = pair({"rdma-pin-all": True}, memlock=512 * MIB)
    assert agree(*offers).capabilities["rdma-pin-all"] is True
    offers[side] = offers[side].model_copy(update={"memlock": 64 * MIB})
    reason, message = refusal(offers)
    assert reason == "memory-lock"
    assert f"{offers[side].host} may lock 64MiB more, 512MiB are needed: 448MiB are missing" in message
    assert message.endswith("; raise LimitMEMLOCK of its workers, or set rdma-pin-all off.")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("budget", [0, 256 * MIB])
def test_over_rdma_dynamic_needs_no_more_than_a_window_whatever_its_budget(side: int, budget: int) -> None:
    offers = pair(parameters={"pin-budget": budget}, memlock=LEAST_LOCKABLE, transports=verbs())
    assert agree(*offers).notes == ()
    offers[side] = offers[side].model_copy(update={"memlock": LEAST_LOCKABLE - 4096})
    reason, message = refusal(offers)
    assert (reason, " are needed: 4KiB are missing" in message) == ("memory-lock", True)
    assert "rdma-pin-all" not in message


@pytest.mark.parametrize("budget", [0, 256 * MIB])
def test_over_tcp_nothing_is_locked_unless_all_is(budget: int) -> None:
    assert agree(*pair(parameters={"pin-budget": budget}, memlock=0)).transport == "tcp"
    reason, message = refusal(pair({"rdma-pin-all": True}, memlock=0))
    assert (reason, "512MiB are missing" in message) == ("memory-lock", True)


def test_what_tcp_needs_is_judged_where_the_better_transport_is_passed_over() -> None:
    source, destination = pair(memlock=0)
    source = source.model_copy(update={"transports": verbs()})
    assert agree(source, destination).transport == "tcp"
    both = [each.model_copy(update={"transports": verbs()}) for each in (source, destination)]
    assert refusal(both)[0] == "memory-lock"


@pytest.mark.parametrize(("kinds", "certain"), [(["verbs"], True), (["verbs", "tcp"], False), (["tcp"], False)])
def test_a_destination_refuses_by_its_limit_at_once_only_if_tcp_is_out_of_the_question(
    kinds: list[str], certain: bool
) -> None:
    source, _ = pair()
    source = source.model_copy(update={"transports": {kind: verbs()[kind] for kind in kinds}})
    assert pins_certainly(source) is certain


def test_demand_paging_needs_nothing_locked_but_room_all_the_same() -> None:
    source, destination = over(verbs(), verbs(), capabilities={"on-demand-paging": True}, memlock=0)
    assert agree(source, destination).transport == "verbs"
    with pytest.raises(RefusedError, match="1GiB are needed: 1MiB are missing") as caught:
        refuse_beyond_limits(source, "beta", LockLimits(0, None, GIB - MIB), exists=False, pinned=False)
    assert caught.value.reason == "host-memory"


@pytest.mark.parametrize(
    ("limits", "reason", "missing"),
    [
        ({"cgroup": 511 * MIB}, "memory-cgroup", "1MiB are missing; raise its memory.max"),
        ({"available": GIB - 4096}, "host-memory", "4KiB are missing; make room there"),
    ],
)
def test_memory_yet_to_come_must_fit_the_destination_and_that_of_the_source_exists(
    limits: dict[str, int], reason: str, missing: str
) -> None:
    source, destination = pair()
    assert agree(source.model_copy(update=limits), destination).notes == ()
    got, message = refusal([source, destination.model_copy(update=limits)])
    assert got == reason
    assert missing in message
    assert "beta" in message


def test_a_source_cannot_claim_more_memory_than_its_guest_has() -> None:
    source, destination = pair({"rdma-pin-all": True}, memlock=GIB)
    assert agree(source.model_copy(update={"populated": 1 << 62}), destination).transport == "tcp"


# --- RDMA -------------------------------------------------------------------------------------------------------------


def verbs(**changes: Any) -> dict[str, dict[str, Any]]:
    """The transports of a host with an RDMA port: verbs' own part of the offer, as far as the agreement reads it."""
    port = {"device": "mlx5_0", "link_layer": "ethernet", "mtu": 4096, "odp": True, "channels": 4}
    return {"verbs": {**port, **changes}, "tcp": {}}


def over(*transports: dict[str, dict[str, Any]], transport: str = "auto", **changes: Any) -> list[Offer]:
    offers = pair(parameters={"transport": transport}, **changes)
    return [each.model_copy(update={"transports": with_}) for each, with_ in zip(offers, transports, strict=True)]


def notes(offers: list[Offer]) -> list[tuple[str, str]]:
    return [(note.about, note.reason) for note in agree(*offers).notes]


def test_two_rdma_ports_that_are_alike_leave_nothing_to_say() -> None:
    agreement = agree(*over(verbs(), verbs()))
    assert (agreement.transport, agreement.notes) == ("verbs", ())


def test_the_smaller_mtu_holds_and_is_explained() -> None:
    assert notes(over(verbs(), verbs(mtu=1024))) == [
        ("mtu", "1024 instead of 4096: that is beta's; make the MTUs of both netdevs alike")
    ]


@pytest.mark.parametrize("mtu", [None, "4096", [1]])
def test_an_mtu_that_is_no_number_is_left_to_its_transport(mtu: object) -> None:
    assert notes(over(verbs(), verbs(mtu=mtu))) == []


def test_links_of_two_kinds_cannot_meet() -> None:
    offers = over(verbs(), verbs(link_layer="infiniband"))
    assert agree(*offers).transport == "tcp"
    assert notes(offers) == [("transport", "not verbs: the link of alpha is ethernet, that of beta infiniband")]
    reason, message = refusal(over(verbs(), verbs(link_layer="infiniband"), transport="verbs"))
    assert reason == "transport"
    assert "the link of alpha is ethernet, that of beta infiniband" in message


def without_verbs(why: str = "") -> dict[str, Any]:
    return {"transports": {"tcp": {}}, "unavailable": {"verbs": why} if why else {}}


def test_why_a_host_could_not_open_a_transport_is_passed_on() -> None:
    source, destination = over(verbs(), verbs())
    destination = destination.model_copy(update=without_verbs("port 1 of mlx5_0 is down"))
    assert notes([source, destination]) == [
        ("transport", "not verbs: beta does not offer it (port 1 of mlx5_0 is down)")
    ]
    source, destination = over(verbs(), verbs(), transport="verbs")
    source = source.model_copy(update=without_verbs("no RDMA device"))
    destination = destination.model_copy(update=without_verbs("install python3-pyverbs"))
    reason, message = refusal([source, destination])
    assert reason == "transport"
    assert "alpha does not offer it (no RDMA device), beta does not offer it (install python3-pyverbs)" in message


def test_nothing_is_said_of_what_nobody_asked_for_and_neither_has() -> None:
    assert notes([each.model_copy(update=without_verbs()) for each in over(verbs(), verbs())]) == []


@pytest.mark.parametrize("transport", ["auto", "verbs"])
def test_demand_paging_is_had_where_both_devices_can(transport: str) -> None:
    offers = over(verbs(), verbs(), transport=transport, capabilities={"on-demand-paging": True})
    assert agree(*offers).capabilities["on-demand-paging"] is True


@pytest.mark.parametrize(
    ("transports", "transport", "says"),
    [
        ((verbs(), verbs(odp=False)), "auto", "mlx5_0 of beta cannot fault memory in"),
        ((verbs(odp=1), verbs(odp=False, device="rxe0")), "verbs", "mlx5_0 of alpha and rxe0 of beta cannot"),
        (({"tcp": {}}, verbs()), "auto", "not verbs: alpha does not offer it"),
        (({"tcp": {}}, {"tcp": {}}), "auto", "memory would travel over tcp"),
        ((verbs(), verbs()), "tcp", "memory would travel over tcp"),
    ],
)
def test_demand_paging_that_cannot_be_had_is_refused_with_the_host_that_lacks_it(
    transports: tuple[dict[str, Any], dict[str, Any]], transport: str, says: str
) -> None:
    reason, message = refusal(over(*transports, transport=transport, capabilities={"on-demand-paging": True}))
    assert reason == "on-demand-paging"
    assert says in message
    assert message.endswith("; set it off, or go elsewhere.")


# --- everything else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"page_size": 16384}, "page-size"),
        ({"blocks": blocks_of([RamBlock("pc.ram", 2 * GIB)])}, "ram-blocks"),
        ({"capabilities": {"verify-ram": False}}, "request-differs"),
        ({"parameters": read_options(None, {"max-rounds": 3})[1].to_json()}, "request-differs"),
        ({"transports": {}}, "transport"),
    ],
)
def test_what_cannot_work_is_refused_by_the_rule_that_knows(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        agree(offer("alpha"), offer("beta", **change))
    assert caught.value.reason == reason


# --- releases ---------------------------------------------------------------------------------------------------------


def test_two_releases_speak_the_lower_number() -> None:
    one, other = offer("alpha", wire=WIRE), offer("beta", wire=WIRE - 1)
    assert agree(one, other).wire == agree(other, one).wire == WIRE - 1
    assert agree(one, offer("beta", wire=WIRE)).wire == WIRE


def test_an_offer_that_says_nothing_of_it_is_of_the_release_before_there_was_a_number() -> None:
    document = json.loads(encode(offer("alpha", wire=WIRE)))
    del document["wire"]
    assert decode(json.dumps(document).encode()).wire == UNSAID


@pytest.mark.parametrize(("source", "destination", "older"), [(3, 5, "alpha"), (5, 3, "beta"), (1, 9, "alpha")])
def test_more_than_one_release_apart_is_refused_and_the_older_is_named(
    source: int, destination: int, older: str
) -> None:
    with pytest.raises(RefusedError, match=f"upgrade {older} first") as refused:
        agree(offer("alpha", wire=source), offer("beta", wire=destination))
    assert refused.value.reason == "version"
