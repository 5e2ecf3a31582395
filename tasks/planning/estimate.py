"""How long a move takes, and for how long the guest stands still, as far as figures tell beforehand. Pure.

Pre-copy is a series: each round sends what the guest wrote while the one before was sent. It shrinks by the dirty
rate's part of the bandwidth in each round, until what is left fits the downtime limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.planning.cluster import Cluster, Guest, Host

#: Seconds; the default of the parameter `downtime-limit`.
DOWNTIME_LIMIT = 0.3
#: The default of the parameter `max-rounds`.
MAX_ROUNDS = 30
#: What a switch-over takes beside its bytes, in seconds: as workers.rounds.convergence measured it.
_FIXED_SECONDS = 0.015


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one move. `seconds` is for as long as it is on the links, what it takes to begin and the `downtime` at its end
    included."""

    seconds: float
    downtime: float
    bytes: int
    rounds: int
    #: Whether the rounds get short enough; if not, the figures are those of a switch-over forced after the last round.
    converges: bool
    #: Why it does not converge; "" when it does.
    reason: str = ""


def crossed(cluster: Cluster, source: str, destination: str) -> tuple[str, ...]:
    """The shared links between two hosts, the source's first; none between hosts behind the same one."""
    ends = cluster.hosts[source].uplink, cluster.hosts[destination].uplink
    return () if ends[0] == ends[1] else tuple(uplink for uplink in ends if uplink in cluster.uplinks)


def stream_bandwidth(host: Host) -> int:
    """Bytes/s that one stream gets of this host."""
    return min(host.bandwidth, host.stream or host.bandwidth)


def path_bandwidth(cluster: Cluster, source: str, destination: str) -> int:
    """Bytes/s that one stream between these hosts gets when it is alone: the narrowest link on its way, or what was
    measured where that is less."""
    links = [stream_bandwidth(cluster.hosts[source]), stream_bandwidth(cluster.hosts[destination])]
    return max(1, min(links + [cluster.uplinks[name] for name in crossed(cluster, source, destination)]))


def path_overhead(cluster: Cluster, source: str, destination: str) -> float:
    """Seconds that a move between these hosts is on the links beside what it sends: the slower host's."""
    return max(cluster.hosts[source].overhead, cluster.hosts[destination].overhead)


def estimate(
    guest: Guest,
    bandwidth: int,
    downtime_limit: float = DOWNTIME_LIMIT,
    max_rounds: int = MAX_ROUNDS,
    overhead: float = 0.0,
) -> Estimate:
    """What moving `guest` over a path of `bandwidth` bytes/s takes. `downtime_limit` and `overhead` in seconds."""
    sent, rounds = guest.memory, 1
    left = _written(guest, guest.memory / bandwidth)
    while left > bandwidth * downtime_limit and rounds < max_rounds:
        sent, rounds = sent + left, rounds + 1
        left = _written(guest, left / bandwidth)
    downtime = left / bandwidth + _FIXED_SECONDS
    seconds = overhead + sent / bandwidth + downtime
    reason = _why_not(guest, bandwidth, left, rounds) if left > bandwidth * downtime_limit else ""
    return Estimate(seconds, downtime, sent + left, rounds, not reason, reason)


def _written(guest: Guest, seconds: float) -> int:
    most = guest.working_set or guest.memory
    return min(int(guest.dirty_rate * seconds), most, guest.memory)


def _why_not(guest: Guest, bandwidth: int, left: int, rounds: int) -> str:
    still = f"{left} bytes are left after {rounds} rounds, {left / bandwidth:.1f} s"
    if guest.dirty_rate >= bandwidth:
        return f"{guest.name} writes {guest.dirty_rate} bytes/s, its path carries {bandwidth}: {still}"
    return f"{guest.name} writes {guest.dirty_rate} bytes/s, nearly the {bandwidth} that its path carries: {still}"
