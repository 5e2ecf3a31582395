"""A schedule lived through in the order of its times: what it would break on the way, it breaks here."""

from __future__ import annotations

from collections import Counter

from tasks.planning.cluster import Cluster
from tasks.planning.estimate import crossed
from tasks.planning.moves import begin, finish
from tasks.planning.rules import Refusal
from tasks.planning.waves import Schedule, Timed


def replay(cluster: Cluster, schedule: Schedule) -> Cluster:
    """The cluster when all has ended. Each move is judged when it begins, with everything that runs then counted on
    both of its hosts; at no instant are there more streams than slots, or more bytes/s than a link carries."""
    ends_first = [(timed.end, 0, number, timed) for number, timed in enumerate(schedule.moves)]
    starts = [(timed.start, 1, number, timed) for number, timed in enumerate(schedule.moves)]
    running: list[Timed] = []
    for _, starting, _, timed in sorted([*ends_first, *starts], key=lambda event: event[:3]):
        if not starting:
            cluster = finish(cluster, timed.move)
            running.remove(timed)
            continue
        begun = begin(cluster, timed.move)
        assert not isinstance(begun, Refusal), (timed.start, timed.move, begun)
        cluster = begun
        running.append(timed)
        _links_hold(cluster, running)
    assert not running
    return cluster


def _links_hold(cluster: Cluster, running: list[Timed]) -> None:
    streams: Counter[tuple[str, str]] = Counter()
    rates: Counter[tuple[str, str]] = Counter()
    for timed in running:
        source, destination = (cluster.hosts[name] for name in (timed.move.source, timed.move.destination))
        shared = [cluster.uplinks[name] for name in crossed(cluster, source.name, destination.name)]
        ends = [min(host.bandwidth, host.stream or host.bandwidth) for host in (source, destination)]
        rate = min([*ends, *shared])
        ways = [("out", source.name), ("in", destination.name)]
        streams.update(ways)
        for way in [
            *ways,
            *(
                ("up" if name == source.uplink else "down", name)
                for name in crossed(cluster, source.name, destination.name)
            ),
        ]:
            rates[way] += rate
    for (way, name), count in streams.items():
        assert count <= (cluster.hosts[name].outbound if way == "out" else cluster.hosts[name].inbound), (way, name)
    for (way, name), rate in rates.items():
        assert rate <= (cluster.hosts[name].bandwidth if way in ("out", "in") else cluster.uplinks[name]), (way, name)
