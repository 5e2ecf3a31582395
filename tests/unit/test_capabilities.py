"""What a migration may be asked for, from words and from JSON, and what each wrong request is told."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from config.capabilities import (
    CAPABILITIES,
    CAPABILITIES_ELSEWHERE,
    CAPABILITY_ALIASES,
    EXCLUSIONS,
    PARAMETERS,
    PARAMETERS_ELSEWHERE,
    SUPPORTED,
    Capabilities,
    Choice,
    MigrationCapability,
    MigrationCapabilityStatus,
    MigrationParameters,
    OnStall,
    Parameter,
    Quantity,
    read_options,
)
from config.errors import RequestError

NAMES = [row.name for row in PARAMETERS]


def refusal(capabilities: object = None, parameters: object = None) -> str:
    with pytest.raises(RequestError) as caught:
        read_options(capabilities, parameters)
    return str(caught.value)


def values_of(row: Parameter) -> st.SearchStrategy[Any]:
    """Values that may be had today."""
    if row.missing:
        return st.just(row.default)
    if isinstance(row.kind, Choice):
        return st.sampled_from([word for word in row.kind.words if word not in row.kind.missing])
    assert isinstance(row.kind, Quantity)
    low, high = row.kind.low, row.kind.high
    if row.kind.power_of_two:
        return st.sampled_from([1 << bit for bit in range(low.bit_length() - 1, high.bit_length())])
    return st.integers(low, high) | (st.just(0) if row.kind.zero else st.nothing())


def exclude_each_other(enabled: frozenset[MigrationCapability], values: dict[str, Any]) -> bool:
    set_ = {row.name for row in PARAMETERS if values.get(row.name, row.default) != row.default}
    return any({rule.one, rule.other} <= set_ | enabled for rule in EXCLUSIONS)


capability_sets = st.frozensets(st.sampled_from(sorted(SUPPORTED))).filter(
    lambda enabled: not exclude_each_other(enabled, {})
)
parameter_sets = st.fixed_dictionaries({}, optional={row.name: values_of(row) for row in PARAMETERS})


# --- round trips ------------------------------------------------------------------------------------------------------


@given(capability_sets, parameter_sets)
def test_the_canonical_json_reads_back_as_the_same(enabled: frozenset[Any], values: dict[str, Any]) -> None:
    assume(not exclude_each_other(enabled, values))
    asked = read_options({row.value: row in enabled for row in CAPABILITIES}, values)
    wire = json.loads(json.dumps([asked[0].to_json(), asked[1].to_json()]))
    assert read_options(*wire) == asked
    assert list(wire[0]) == [row.value for row in CAPABILITIES]
    assert list(wire[1]) == NAMES


@given(parameter_sets)
def test_every_value_can_be_written_as_a_word(values: dict[str, Any]) -> None:
    rows = {row.name: row for row in PARAMETERS}
    words = [f"{name}={rows[name].kind.format(value)}" for name, value in values.items()]
    assert read_options(None, words) == read_options(None, values)


@given(capability_sets)
def test_qemus_list_of_statuses_reads_as_the_mapping_does(enabled: frozenset[Any]) -> None:
    capabilities = Capabilities(enabled)
    statuses = [status.to_json() for status in capabilities]
    assert read_options(statuses)[0] == read_options(capabilities.to_json())[0] == capabilities


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_json_whatever_raises_anything_but_a_request_error(value: object) -> None:
    for arguments in ((value, None), (None, value)):
        with contextlib.suppress(RequestError):
            read_options(*arguments)


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_nothing_asked_means_the_defaults_of_qemu_where_it_has_them() -> None:
    capabilities, parameters = read_options()
    assert capabilities.to_json() == {
        "rdma-pin-all": False,
        "on-demand-paging": False,
        "xbzrle": False,
        "auto-converge": False,
        "zero-pages": True,
        "verify-ram": True,
    }
    assert parameters.downtime_limit_ms == 300
    assert parameters.chunk_size == 1 << 20
    assert parameters.xbzrle_cache_size == 64 << 20
    assert parameters.max_bandwidth == 0  # not QEMU's 128 MiB/s, on purpose
    assert parameters == MigrationParameters()
    assert capabilities == Capabilities()


def test_every_default_is_allowed_by_its_own_row() -> None:
    for row in PARAMETERS:
        assert row.read(row.default) == row.default
        assert not row.refusal(row.default)


def test_a_capability_that_is_on_by_default_is_built() -> None:
    assert {row for row in CAPABILITIES if row.default} <= SUPPORTED


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["rdma-pin-all=on", "x-rdma-pin-all=on", " rdma-pin-all = on "])
def test_pin_all_has_the_name_that_the_first_version_gave_it(word: str) -> None:
    assert MigrationCapability.RDMA_PIN_ALL in read_options([word])[0]


def test_off_switches_off_what_is_on_by_default() -> None:
    assert MigrationCapability.VERIFY_RAM not in read_options(["verify-ram=off"])[0]


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("downtime-limit=100ms", "downtime_limit_ms", 100),
        ("downtime-limit=100", "downtime_limit_ms", 100),  # QEMU's unit
        ("downtime-limit=1.5s", "downtime_limit_ms", 1500),
        ("max-bandwidth=1G", "max_bandwidth", 1 << 30),
        ("max-bandwidth=512MiB/s", "max_bandwidth", 512 << 20),
        ("max-bandwidth=10Gbit/s", "max_bandwidth", 1_250_000_000),
        ("max-bandwidth=0", "max_bandwidth", 0),
        ("chunk-size=1M", "chunk_size", 1 << 20),
        ("x-rdma-chunk-size=64k", "chunk_size", 64 << 10),
        ("multifd-channels=8", "channels", 8),
        ("completion-timeout-per-gib=2m", "completion_timeout_per_gib_s", 120),
        ("progress-timeout=1h", "progress_timeout_s", 3600),
        ("on-stall=force", "on_stall", OnStall.FORCE),
        ("pin-budget=1G", "pin_budget", 1 << 30),
    ],
)
def test_words_are_read_in_the_units_that_they_name(word: str, field: str, value: object) -> None:
    assert getattr(read_options(None, [word])[1], field) == value


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "parameters", "says"),
    [
        (["xbrle=on"], None, ["'xbrle'", "did you mean xbzrle?", "droveway capabilities"]),
        (None, ["chunk-sise=1M"], ["'chunk-sise'", "did you mean chunk-size?"]),
        (["verify-ram"], None, ["lacks its value", "NAME=VALUE"]),
        (["verify-ram=yes"], None, ["verify-ram=on or verify-ram=off"]),
        ({"verify-ram": 1}, None, ["verify-ram=on or verify-ram=off"]),
        (["verify-ram=on", "verify-ram=off"], None, ["more than once"]),
        (["rdma-pin-all=on", "x-rdma-pin-all=on"], None, ["rdma-pin-all", "more than once"]),
        (None, ["channels=2", "multifd-channels=2"], ["channels", "more than once"]),
        (["channels=on"], None, ["is a parameter, not a capability"]),
        (None, ["verify-ram=on"], ["is a capability, not a parameter"]),
        (["xbzrle=on"], None, ["xbzrle=on", "not possible yet"]),
        (["auto-converge=on"], None, ["auto-converge=on", "not possible yet", "on-stall"]),
        (None, ["on-stall=throttle"], ["not possible yet", "force or give-up"]),
        (None, ["xbzrle-cache-size=128M"], ["not possible yet"]),
        (["multifd=on"], None, ["set the parameter channels"]),
        (None, {"tls-creds": "tls0"}, ["settings of each host"]),
        (["rdma-pin-all=on"], ["pin-budget=1G"], ["rdma-pin-all and pin-budget exclude each other", "at once"]),
        (["rdma-pin-all=on", "on-demand-paging=on"], None, ["exclude each other", "locks no memory, the other all"]),
        (["on-demand-paging=on"], ["pin-budget=1G"], ["exclude each other", "nothing to limit"]),
        (None, ["transport=rdma"], ["transport=rdma", "allowed: auto, verbs, tcp"]),
        (None, ["max-bandwidth=100"], ["0 (no limit) or 1MiB/s to 1TiB/s"]),
        (None, ["max-bandwidth=1GB"], ["'1GB' is not understood", "1G, 512MiB/s, 10Gbit/s"]),
        (None, ["downtime-limit=0"], ["1ms to 2000s"]),
        (None, ["downtime-limit=-5"], ["1ms to 2000s"]),
        (None, ["downtime-limit=0.5ms"], ["not a whole number of ms"]),
        (None, ["downtime-limit=1h"], ["1ms to 2000s"]),
        (None, ["chunk-size=3M"], ["power of two from 64KiB to 1GiB"]),
        (None, ["chunk-size=32K"], ["power of two from 64KiB to 1GiB"]),
        (None, ["channels=129"], ["1 to 128"]),
        (None, {"channels": True}, ["not a whole number", "1 to 128"]),
        (None, {"channels": 2.0}, ["not a whole number"]),
        (None, {"channels": None}, ["channels", "not a whole number"]),
        (None, {"channels": [1]}, ["channels=list", "not a whole number"]),
        (None, ["on-stall=explode"], ["on-stall=explode", "allowed: force, give-up"]),
        (None, {"on-stall": 1}, ["allowed: force, give-up"]),
        (None, ["channels=" + "9" * 5000], ["1 to 128"]),
        (None, ["channels=٣"], ["1 to 128"]),
        ("verify-ram=on", None, ["neither a list nor a mapping"]),
        ([["verify-ram", True]], None, ["neither NAME=VALUE nor"]),
        ([{"capability": "xbzrle"}], None, ["neither NAME=VALUE nor"]),
        ([{"capability": 3, "state": True}], None, ["not a word"]),
    ],
)
def test_each_wrong_request_is_told_what_to_write_instead(
    capabilities: object, parameters: object, says: list[str]
) -> None:
    message = refusal(capabilities, parameters)
    for part in says:
        assert part in message
    assert message.endswith(".")
    assert len(message) < 400


@pytest.mark.parametrize("name", CAPABILITIES_ELSEWHERE)
def test_a_capability_of_qemus_is_refused_when_on_and_no_news_when_off(name: str) -> None:
    assert CAPABILITIES_ELSEWHERE[name] in refusal([f"{name}=on"])
    assert read_options([f"{name}=off"]) == read_options()


def test_what_is_missing_may_be_named_as_long_as_it_is_off() -> None:
    for row in CAPABILITIES:
        if row.missing:
            assert read_options([f"{row}=off"]) == read_options()


def test_parameters_made_in_code_obey_the_table_too() -> None:
    with pytest.raises(RequestError, match="channels=0"):
        MigrationParameters(channels=0)


# --- the tables -------------------------------------------------------------------------------------------------------


def test_no_name_means_two_things() -> None:
    names = [
        *[row.value for row in CAPABILITIES],
        *CAPABILITY_ALIASES,
        *CAPABILITIES_ELSEWHERE,
        *NAMES,
        *[row.alias for row in PARAMETERS if row.alias],
        *PARAMETERS_ELSEWHERE,
    ]
    assert len(names) == len(set(names))


def test_exclusions_speak_of_names_that_exist() -> None:
    for rule in EXCLUSIONS:
        assert {rule.one, rule.other} <= {*NAMES, *(row.value for row in CAPABILITIES)}


def test_every_row_can_be_shown() -> None:
    for row in PARAMETERS:
        assert row.meaning.endswith(".")
        assert row.kind.allowed
        assert row.kind.format(row.default)
        assert isinstance(row.kind.unit, str)
    for capability in CAPABILITIES:
        assert capability.meaning.endswith(".")


def test_statuses_are_qemus_struct() -> None:
    status = MigrationCapabilityStatus(MigrationCapability.XBZRLE, state=False)
    assert status.to_json() == {"capability": "xbzrle", "state": False}
