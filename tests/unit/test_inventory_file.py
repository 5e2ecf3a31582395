"""A cluster as text: what was written is read back the same, and what is wrong is named with its line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import RequestError
from tasks.inventory.file import read, write
from tasks.inventory.simulated import simulate
from tasks.planning.cluster import Cluster, Guest, Host
from tests.clusters import clusters

GIB, MIB = 1 << 30, 1 << 20
WRITTEN = """
# two hosts behind one rack's uplink
taken 1700000000.5
uplink rack1 40Gbit/s
host alpha memory=64GiB cpus=16 bandwidth=25Gbit/s outbound=2 inbound=3 uplink=rack1 labels=zone=1,ssd=yes
host beta memory=64G cordoned="memory is replaced" stale=yes cpu-models=old,new transports=tcp wire=5   # and why
host gamma memory=64G overhead=1.25
guest web on alpha memory=8GiB load=2.5 dirty=100MiB/s working-set=1GiB groups=db,web needs=zone=1 cpu-model=old
guest licence on alpha memory=1GiB stays="bound to the host" moving-to=beta moved=1699999999
"""


def test_every_key_is_read() -> None:
    assert read(WRITTEN) == Cluster(
        {
            "alpha": Host(
                "alpha", 64 * GIB, 16.0, 3_125_000_000, 2, 3, "rack1", labels=frozenset({"zone=1", "ssd=yes"})
            ),
            "beta": Host(
                "beta",
                64 * GIB,
                transports=frozenset({"tcp"}),
                wire=5,
                cpu_models=frozenset({"old", "new"}),
                cordoned="memory is replaced",
                stale=True,
            ),
            "gamma": Host("gamma", 64 * GIB, overhead=1.25),
        },
        {
            "web": Guest(
                "web", "alpha", 8 * GIB, 2.5, 100 * MIB, GIB, frozenset({"db", "web"}), frozenset({"zone=1"}), "old"
            ),
            "licence": Guest("licence", "alpha", GIB, stays="bound to the host", moving_to="beta", moved=1699999999.0),
        },
        {"rack1": 5_000_000_000},
        1700000000.5,
    )


@settings(max_examples=60)
@given(clusters(), st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20))
def test_what_was_written_is_read_back_the_same(cluster: Cluster, reason: str) -> None:
    known = {name: guest for name, guest in cluster.guests.items() if guest.host in cluster.hosts}
    known = {name: guest for name, guest in known.items() if guest.moving_to in {"", *cluster.hosts}}
    first = next(iter(cluster.hosts.values()))
    kept = replace(cluster, guests=known).changed([replace(first, cordoned=reason)])
    assert read(write(kept)) == kept


def test_a_reason_of_several_lines_becomes_one() -> None:
    host = Host("a", GIB, cordoned="first\nsecond\u2028third")
    assert read(write(Cluster({"a": host}))).hosts["a"].cordoned == "first second third"


def test_an_uplink_of_two_words_is_read_back() -> None:
    cluster = Cluster({"a": Host("a", GIB, uplink="rack 1")}, uplinks={"rack 1": 5})
    assert read(write(cluster)) == cluster


def test_a_simulated_fleet_can_be_kept_and_planned_on_again() -> None:
    fleet = simulate("hosts=20,guests=200,seed=3,groups=20,uplinks=4")
    assert read(write(fleet)) == fleet


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host a memory=1G\nhots b memory=1G", "line 2: 'hots b memory=1G' is none of"),
        ("host a memroy=1G", "line 1: 'memroy=1G' is not understood; did you mean memory"),
        ("host a memory", "line 1: 'memory' is not understood"),
        ("host a memory=lots", "line 1: memory: 'lots' is not understood; write it like"),
        ("host a memory=0.3", "line 1: memory: '0.3' is not a whole number"),
        ("host a", "line 1: memory is missing"),
        ("host a memory=1G memory=2G", "line 1: memory is said twice"),
        ("host a memory=1G\nhost a memory=1G", "line 2: there is a host a already"),
        ("host A memory=1G", "line 1: 'A' cannot name a host"),
        ("host a memory=1G cpus=-1", "line 1: cpus: '-1' is not a number"),
        ("host a memory=1G cpus=many", "line 1: cpus: 'many' is not a number"),
        ("host a memory=1G stale=perhaps", "line 1: stale: 'perhaps' is neither yes nor no"),
        ('host a memory=1G cordoned="open', "line 1: No closing quotation"),
        ("guest g in a memory=1G", "line 1: 'guest g in a memory=1G' is none of"),
        ("guest g on a memory=1G", "guest g names a host a, which is nowhere described"),
        ("host a memory=1G\nguest g on a memory=1G moving-to=b", "guest g names a host b"),
        ("host a memory=1G uplink=rack1", "host a names an uplink rack1"),
        ("uplink rack1 fast", "line 1: 'fast' is not understood"),
        ("host a memory=1G cpus=1e400", "line 1: cpus: '1e400' is not a number"),
        ("host a memory=1G cpus=1e99999999", "line 1: cpus: '1e99999999' is not a number"),
        ("taken 5\ntaken 6", "line 2: 'taken 6' is none of"),
        ("taken today", "line 1: 'today' is not a number"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(text, "fleet.txt")
    assert str(caught.value).startswith("fleet.txt")
    assert said in str(caught.value)
