"""Settings: who wins, what is refused and in which words, and that the password stays where it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from config.errors import MessageError, SettingsError
from config.settings import (
    DEFAULT_FILE,
    KEYS,
    HostSettings,
    RedisSettings,
    Settings,
    load_settings,
    memory_total,
)
from tasks.messages import Rebalance
from tasks.planning.rebalancing import Policy
from tasks.scheduled import policy_of

SECRET = "geheim"
POLICY = "[rebalance.nightly]\ncron = '0 2 * * *'\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "droveway.toml"


def load(
    text: str = "", env: dict[str, str] | None = None, over: dict[str, Any] | None = None, *, file: Path
) -> Settings:
    file.write_text(text)
    return load_settings(file, env or {}, over)


def refusal(
    text: str = "", env: dict[str, str] | None = None, over: dict[str, Any] | None = None, *, file: Path
) -> str:
    with pytest.raises(SettingsError) as caught:
        load(text, env, over, file=file)
    return str(caught.value)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_labels_and_links_are_read_in_a_file_and_a_variable_and_told_to_child_processes(file: Path) -> None:
    text = "[host]\nlabels = ['zone=eu-1', 'ssd=yes']\nbandwidth = '25Gbit/s'\nuplink = 'rack1'\n"
    settings = load(text, file=file)
    assert settings.host.labels == ("ssd=yes", "zone=eu-1")
    assert (settings.host.bandwidth, settings.host.uplink) == (3_125_000_000, "rack1")
    assert load(env={"DROVEWAY_HOST__LABELS": "zone=eu-1, ssd=yes"}, file=file).host.labels == settings.host.labels
    for each in (settings, load(file=file)):
        environment = each.environment()
        del environment["DROVEWAY_CONFIG"]
        assert load(env=environment, file=file).host == each.host


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(file: Path) -> None:
    text = "[host]\nname = 'file'\ninbound_slots = 2\noutbound_slots = 2\n[worker]\nlog_level = 'error'\n"
    env = {"DROVEWAY_HOST__NAME": "env", "DROVEWAY_HOST__INBOUND_SLOTS": "3"}
    settings = load(text, env, {"host.name": "cli", "host.inbound_slots": None}, file=file)
    assert (settings.host.name, settings.host.inbound_slots, settings.host.outbound_slots) == ("cli", 3, 2)
    assert settings.worker.log_level == "error"
    assert settings.worker.lease == 30


def test_the_file_is_found_by_the_environment(file: Path) -> None:
    file.write_text("[host]\nname = 'here'")
    assert load_settings(environment={"DROVEWAY_CONFIG": str(file)}).host.name == "here"


def test_only_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="create it, or name another by --config"):
        load_settings(tmp_path / "none.toml", {})
    if not DEFAULT_FILE.exists():
        load_settings(environment={})


def test_an_empty_variable_is_an_unset_one(file: Path) -> None:
    assert load(env={"DROVEWAY_REDIS__URL": ""}, file=file).redis == RedisSettings()


def test_units_are_understood_in_files_and_variables(file: Path) -> None:
    text = "[host]\nmemory = '64G'\nports = '50000-50010'\n[worker]\nlease = 10\n[history]\nretention = '7d'"
    settings = load(text, {"DROVEWAY_WORKER__POLL_INTERVAL": "250ms"}, file=file)
    assert settings.host.memory == 64 << 30
    assert settings.host.ports == (50000, 50010)
    assert (settings.worker.lease, settings.worker.poll_interval) == (10.0, 0.25)
    assert settings.history.retention == 7 * 86_400


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[redis]\nulr = 'x'", ["'redis.ulr'", "droveway.toml", "did you mean redis.url?"]),
        ("[redsi]\nurl = 'x'", ["'redsi'", "did you mean redis?"]),
        ("redis = 1", ["it is a table; write [redis]"]),
        ("[host\nname = 1", ["not valid TOML", "line 1"]),
        ("[host]\noutbound_slots = 0", ["host.outbound_slots", "greater than or equal to 1"]),
        ("[host]\noutbound_slots = true", ["host.outbound_slots", "true and false mean nothing"]),
        ("[host]\nname = 'Big_Host'", ["host.name", "'Big_Host' cannot name a host"]),
        ("[host]\nmemory = '64GB'", ["host.memory", "'64GB' is not understood", "1G, 512MiB"]),
        ("[host]\nlabels = ['zone']", ["host.labels", "'zone' cannot be a label"]),
        ("[host]\nbandwidth = '0.5'", ["host.bandwidth", "whole number of bytes/s"]),
        ("[host]\nmemory = '0.5'", ["host.memory", "whole number of bytes"]),
        ("[host]\nports = '5-3'", ["host.ports", "the first port, 5, comes after the last, 3"]),
        ("[host]\nports = '1-70000'", ["host.ports", "less than or equal to 65535"]),
        ("[host]\nports = 'many'", ["host.ports", "FIRST-LAST"]),
        ("[host]\naddress = 'everywhere'", ["host.address", "not a valid IPv4 or IPv6 address"]),
        ("[host]\naddress = '0.0.0.0'", ["[host]", "set advertise"]),
        ("[host]\nstate_dir = 'here'", ["host.state_dir", "not an absolute path"]),
        ("[worker]\nlease = 'soon'", ["worker.lease", "'soon' is not understood", "30s, 5m, 1h"]),
        ("[worker]\nlease = nan", ["worker.lease"]),
        ("[worker]\nlog_format = 'xml'", ["worker.log_format", "'auto', 'console' or 'json'"]),
        ("[redis]\nsocket_timeout = 3", ["redis.socket_timeout", "greater than or equal to 6"]),
        ("[redis]\nprefix = 'droveway'", ["redis.prefix"]),
        ("[redis]\nca = '/nowhere/ca.crt'", ["redis.ca", "does not point to a file"]),
        ("[redis]\nca = '/proc/meminfo'", ["[redis]", "ca needs a url that begins with rediss://"]),
        ("[tls]\nkey = '/proc/meminfo'", ["[tls]", "set all or none"]),
        ("[rdma]\ndevice = '../mlx5_0'", ["rdma.device", "pattern"]),
        ("[rdma]\ndevice = '%s'" % ("x" * 64), ["rdma.device", "pattern"]),
        ("[rdma]\nport = 0", ["rdma.port", "greater than or equal to 1"]),
        ("[rdma]\nport = true", ["rdma.port", "true and false mean nothing"]),
        ("[rdma]\ngid_index = -1", ["rdma.gid_index", "greater than or equal to 0"]),
        ("[rdma]\ngid-index = 1", ["'rdma.gid-index'", "did you mean rdma.gid_index?"]),
        ("[rebalance]\ncron = '0 2 * * *'", ["rebalance.cron", "write [rebalance.NAME]"]),
        ("[rebalance.nightly]", ["rebalance.nightly.cron", "Field required"]),
        ("[rebalance.'a b']\ncron = '0 2 * * *'", ["'a b' cannot name a policy"]),
        ("[rebalance.'']\ncron = '0 2 * * *'", ["'' cannot name a policy"]),
        (POLICY + "treshold = 0.2", ["'rebalance.nightly.treshold'", "did you mean rebalance.nightly.threshold?"]),
        (
            POLICY + "target = 0.1",
            ["[rebalance.nightly], from the file", "the target, 0.1, is not below the threshold"],
        ),
        (POLICY + "threshold = 0.05", ["[rebalance.nightly]", "the target, 0.06, is not below the threshold, 0.05"]),
        (POLICY + "hold = 0", ["rebalance.nightly.hold", "greater than or equal to 1"]),
        (POLICY + "hold = true", ["rebalance.nightly.hold", "true and false mean nothing"]),
        (POLICY + "cool_down = 'long'", ["rebalance.nightly.cool_down", "30s, 5m, 1h"]),
        (POLICY + "windows = '22:00-05:00'", ["rebalance.nightly.windows", "a list of words"]),
        (POLICY + "windows = ['22:00']", ["rebalance.nightly.windows", "'22:00' is no window"]),
        (POLICY + "timezone = 'Berlin'", ["rebalance.nightly.timezone", "Europe/Berlin"]),
        ("[rebalance.nightly]\ncron = '0 25 * * *'", ["rebalance.nightly.cron", "its hour is wrong"]),
    ],
)
def test_a_wrong_file_is_told_which_key_and_what_to_write(text: str, says: list[str], file: Path) -> None:
    message = refusal(text, file=file)
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("DROVEWAY_HOST__NAM", "did you mean DROVEWAY_HOST__NAME?"),
        ("DROVEWAY_HOST_NAME", "did you mean DROVEWAY_HOST__NAME?"),
        ("DROVEWAY_CONFGI", "did you mean DROVEWAY_CONFIG?"),
        ("DROVEWAY_host__name", "There is no setting"),
    ],
)
def test_an_unknown_variable_is_an_error_even_when_empty(variable: str, says: str, file: Path) -> None:
    for value in ("x", ""):
        message = refusal(env={variable: value}, file=file)
        assert variable in message
        assert "the environment" in message
        assert says in message


def test_variables_that_are_no_settings_and_those_of_others_are_left_alone(file: Path) -> None:
    load(env={"DROVEWAY_FAULT": "x", "DROVEWAY_REQUIRE_ALL": "1", "DROVEWAYS": "x", "PATH": "/"}, file=file)


def test_a_wrong_value_names_the_place_that_it_came_from(file: Path) -> None:
    assert "DROVEWAY_HOST__NAME, from the environment" in refusal(env={"DROVEWAY_HOST__NAME": "A"}, file=file)
    assert "host.name, from the command line" in refusal(over={"host.name": "A"}, file=file)
    assert f"host.name, from the file {file}" in refusal("[host]\nname = 'A'", file=file)


def test_an_unknown_override_is_an_error(file: Path) -> None:
    assert "did you mean host.memory?" in refusal(over={"host.memry": 1}, file=file)


def test_an_rdma_port_is_chosen_key_by_key(file: Path) -> None:
    rdma = load("[rdma]\ndevice = 'mlx5_0'\nport = 2", {"DROVEWAY_RDMA__GID_INDEX": "3"}, file=file).rdma
    assert (rdma.device, rdma.port, rdma.gid_index) == ("mlx5_0", 2, 3)
    unset = load(file=file).rdma
    assert (unset.device, unset.port, unset.gid_index) == (None, None, None)


def test_a_machine_whose_own_name_will_not_do_is_told_to_set_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "my_laptop")
    message = refusal(file=file)
    assert "host.name, which is not set" in message
    assert "'my_laptop' cannot name a host" in message


def test_an_unreadable_file_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path, {})


# --- the address of Redis ---------------------------------------------------------------------------------------------

WRONG_URLS = [
    "nonsense",
    f"http://:{SECRET}@h",
    f"redis://:{SECRET}@",
    f"redis://:{SECRET}@h:port/0",
    f"redis://:{SECRET}@h:99999/0",
    f"redis://:{SECRET}@h/zero",
    f"redis://:{SECRET}@h/0?ssl_cert_reqs=none",
    f"redis://h:1/0?{SECRET}",
    f"redis://:1?{SECRET}@h/0",
    f"redis://u:1#{SECRET}@h/0",
    f"redis://:{SECRET};x@h/0",
    f"redis://u:{SECRET}[@h/0",
    f"unix://:{SECRET}@",
    f"unix://:{SECRET}@/run/redis.sock?db=x",
    f"unix://:{SECRET}@/run/redis.sock?virtual_host=1",
    f"unix://{SECRET}/run/redis.sock",
    f"redis+socket://:{SECRET}@/run/redis.sock",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_refused_without_being_repeated(url: str, file: Path) -> None:
    message = refusal(env={"DROVEWAY_REDIS__URL": url}, file=file)
    assert "DROVEWAY_REDIS__URL, from the environment" in message
    assert SECRET not in message
    with pytest.raises(ValidationError) as caught:
        RedisSettings(url=url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://user:{SECRET}@h:1/2", "redis://user:***@h:1/2"),
        (f"rediss://:{SECRET}@[::1]:1", "rediss://:***@[::1]:1"),
        (f"unix://:{SECRET}@/run/r.sock?db=1", "unix://:***@/run/r.sock?db=1"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
    ],
)
def test_the_password_is_seen_nowhere(url: str, shown: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(over={"redis.url": url}, file=file)
    logging.getLogger("test").warning("%s %r %s", settings, settings, settings.redis)
    seen = [
        caplog.text,
        repr(settings),
        settings.model_dump_json(),
        json.dumps(settings.shown()),
        settings.redis.shown_url,
    ]
    assert not [text for text in seen if SECRET in text]
    assert settings.redis.shown_url == settings.shown()["redis"]["url"] == shown


# --- what follows from settings ---------------------------------------------------------------------------------------

seconds = st.floats(1, 1e8)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "redis.url": st.sampled_from([f"redis://u:{SECRET}@h:1/2", "unix:///run/r.sock?db=1"]),
        "redis.prefix": st.sampled_from(["a:", "fleet-2:"]),
        "redis.socket_timeout": st.floats(6, 1e6),
        "host.name": st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True),
        "host.address": st.ip_addresses().filter(lambda address: not address.is_unspecified),
        "host.advertise": st.sampled_from(["10.0.0.1", "a.example"]),
        "host.ports": st.tuples(st.integers(1, 30000), st.integers(30000, 65535)),
        "host.memory": st.integers(0, 1 << 62),
        "host.metrics_source_port": st.integers(0, 65535),
        "rdma.device": st.sampled_from(["mlx5_0", "rocep1s0f0", "mlx5_bond_0"]),
        "rdma.port": st.integers(1, 255),
        "rdma.gid_index": st.integers(0, 255),
        "worker.lease": seconds,
        "worker.poll_interval": st.floats(0.001, 1e6),
        "worker.log_level": st.sampled_from(["debug", "info", "warning", "error"]),
        "history.retention": seconds,
    },
)


@given(overrides)
def test_a_child_process_reads_the_same_settings_from_its_environment(given_overrides: dict[str, Any]) -> None:
    settings = load_settings(environment={}, overrides=given_overrides)
    assert load_settings(environment=settings.environment()) == settings


def test_a_child_does_not_fill_in_from_a_file_what_its_parent_left_unset(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = load(file=file).environment()
    file.write_text("[host]\nadvertise = 'elsewhere'")
    monkeypatch.setattr("config.settings.DEFAULT_FILE", file)
    assert load_settings(environment=environment).host.advertise is None


def test_settings_do_not_change_under_a_running_worker() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().host.name = "b"  # type: ignore[misc]


def test_a_host_keeps_a_tenth_and_at_least_a_gibibyte_for_itself() -> None:
    host = HostSettings(name="a")
    assert host.offered_memory(100 << 30) == 90 << 30
    assert host.offered_memory(4 << 30) == 3 << 30
    assert host.offered_memory(1 << 29) == 0
    assert HostSettings(name="a", memory=5).offered_memory(100 << 30) == 5


def test_peers_and_prometheus_are_told_the_address_unless_another_is_set() -> None:
    assert (HostSettings(name="a", address="::1").advertised, HostSettings(name="a", address="::1").metrics_listen) == (
        "::1",
        "::1",
    )
    host = HostSettings(name="a", address="0.0.0.0", advertise="10.0.0.1", metrics_address="127.0.0.1")
    assert (host.advertised, host.metrics_listen) == ("10.0.0.1", "127.0.0.1")


def test_the_data_path_is_encrypted_when_all_three_files_are_there(tmp_path: Path, file: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.write_text("")
    text = "[tls]\n" + "".join(f"{key} = '{pem}'\n" for key in ("certificate", "key", "ca"))
    assert load(text, file=file).tls.enabled
    assert not load(file=file).tls.enabled


def test_the_memory_of_this_machine_is_known() -> None:
    assert memory_total() > 1 << 28


def test_every_key_has_exactly_one_variable() -> None:
    assert {"redis.url", "host.name", "history.retention"} <= KEYS
    assert all(key.count(".") == 1 for key in KEYS)


# --- policies ---------------------------------------------------------------------------------------------------------


def test_policies_are_read_from_the_file_and_stay_out_of_the_environment(file: Path) -> None:
    text = POLICY + "windows = ['Sat,Sun 00:00-06:00']\ncool_down = '2h'\n[rebalance.'lunch.1']\ncron = '0 12  * * *'\n"
    settings = load(text, file=file)
    assert list(settings.rebalance) == ["nightly", "lunch.1"]
    nightly = settings.rebalance["nightly"]
    assert (nightly.cron, nightly.windows, nightly.cool_down) == ("0 2 * * *", ("Sat,Sun 00:00-06:00",), 7200)
    assert settings.rebalance["lunch.1"].cron == "0 12 * * *"
    assert settings.shown()["rebalance"]["nightly"]["timezone"] == "UTC"
    assert not [name for name in settings.environment() if "REBALANCE" in name]
    assert load_settings(environment=settings.environment()).rebalance == {}
    assert "There is no setting" in refusal(env={"DROVEWAY_REBALANCE__NIGHTLY__CRON": "* * * * *"}, file=file)


def test_a_policy_of_which_only_its_calendar_is_set_is_what_planning_does_by_default(file: Path) -> None:
    assert policy_of(load(POLICY, file=file).rebalance["nightly"]) == Policy()


def test_a_message_carries_all_that_a_policy_says(file: Path) -> None:
    text = POLICY + "windows = ['22:00-05:00']\ntimezone = 'Europe/Berlin'\nhold = 2\n"
    terms = load(text, file=file).rebalance["nightly"]
    body = json.loads(json.dumps(Rebalance(policy="nightly", terms=terms, expires=100.0).to_json()))
    assert Rebalance.read(body, 99.0).terms == terms
    with pytest.raises(MessageError, match="expired 1 s ago"):
        Rebalance.read(body, 101.0)
    for harm in ({"cron": "0 25 * * *"}, {"threshold": 0.01}, {"windows": ["never"]}, {"unknown": 1}):
        with pytest.raises(MessageError, match="malformed at 'terms"):
            Rebalance.read(body | {"terms": body["terms"] | harm}, 99.0)


def test_a_machine_without_a_name_hands_down_the_one_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "(none)")
    settings = load_settings(environment={"DROVEWAY_HOST__NAME": "alpha"})
    environment = settings.environment()
    assert environment["DROVEWAY_HOST__NAME"] == "alpha"
    assert "DROVEWAY_HOST__OUTBOUND_SLOTS" not in environment
    assert load_settings(environment=environment) == settings
