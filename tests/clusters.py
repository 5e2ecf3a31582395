"""Small clusters in which every hard rule has something to refuse."""

from __future__ import annotations

from hypothesis import strategies as st

from tasks.planning.cluster import Cluster, Guest, Host

HOSTS = ("alpha", "beta", "gamma", "delta", "epsilon")


def _sometimes(value: object, one_in: int) -> st.SearchStrategy[object]:
    return st.integers(0, one_in - 1).map(lambda drawn: value if drawn == one_in - 1 else None)


@st.composite
def hosts(draw: st.DrawFn, name: str) -> Host:
    return Host(
        name,
        memory=draw(st.integers(4, 24)),
        cpus=draw(st.sampled_from([0.0, 4.0, 8.0])),
        bandwidth=draw(st.sampled_from([2, 4])),
        stream=draw(st.sampled_from([0, 1, 3])),
        overhead=draw(st.sampled_from([0.0, 0.25, 2.0])),
        outbound=draw(st.integers(1, 2)),
        inbound=draw(st.integers(1, 2)),
        uplink=draw(st.sampled_from(["", "rack-1", "rack-2"])),
        labels=draw(st.frozensets(st.sampled_from(["disk=fast", "zone=a"]))),
        transports=draw(st.sampled_from([frozenset(), frozenset({"tcp"}), frozenset({"verbs"})])),
        wire=draw(st.sampled_from([0, 5, 5, 6, 7])),
        cpu_models=draw(st.sampled_from([frozenset(), frozenset({"old"}), frozenset({"old", "new"})])),
        cordoned=draw(_sometimes("repairs", 6)),
        stale=draw(_sometimes(True, 8)) is True,
    )


@st.composite
def guests(draw: st.DrawFn, name: str, known: list[str]) -> Guest:
    return Guest(
        name,
        draw(st.sampled_from([*known, "nowhere"] if draw(_sometimes(True, 12)) else known)),
        memory=draw(st.integers(1, 6)),
        load=draw(st.integers(0, 12)) / 4,
        dirty_rate=draw(st.integers(0, 3)),
        working_set=draw(st.integers(0, 4)),
        groups=draw(st.frozensets(st.sampled_from(["db", "web", "cache"]), max_size=2)),
        needs=draw(st.frozensets(st.just("zone=a"))) if draw(_sometimes(True, 3)) else frozenset(),
        cpu_model=draw(st.sampled_from(["", "", "old", "new"])),
        stays=draw(_sometimes("a passed-through device", 8)),
        moving_to=draw(st.sampled_from([*known, "nowhere"])) if draw(_sometimes(True, 6)) else "",
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Up to five hosts and ten guests; hosts may hold more than they have, as it happens."""
    known = list(HOSTS[: draw(st.integers(1, len(HOSTS)))])
    there = [draw(hosts(name)) for name in known]
    placed = [draw(guests(f"guest-{number}", known)) for number in range(draw(st.integers(1, 10)))]
    return Cluster(
        {host.name: host for host in there},
        {guest.name: guest for guest in placed},
        {"rack-1": draw(st.sampled_from([2, 4, 8])), "rack-2": 4},
    )
