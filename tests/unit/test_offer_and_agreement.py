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
from workers.pairing.agreement import agree
from workers.pairing.offer import MAX_OFFER, Offer, blocks_of, decode, encode
from workers.ram import RamBlock

GIB = 1 << 30


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
    original = offer("alpha", memlock=64 << 10)
    assert decode(encode(original)) == original


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


@pytest.mark.parametrize("side", [0, 1])
def test_pin_all_needs_the_limit_on_both_hosts(side: int) -> None:
    pinned = read_options({"rdma-pin-all": True})[0].to_json()
    offers = [offer("alpha", capabilities=pinned), offer("beta", capabilities=pinned)]
    assert agree(*offers).capabilities["rdma-pin-all"] is True
    offers[side] = offers[side].model_copy(update={"memlock": GIB - 1})
    with pytest.raises(RefusedError, match=offers[side].host) as caught:
        agree(*offers)
    assert caught.value.reason == "memory-lock"


def test_a_low_limit_does_not_matter_without_pin_all() -> None:
    assert agree(offer("alpha", memlock=0), offer("beta", memlock=0)).transport == "tcp"


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
