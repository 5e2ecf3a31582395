"""The hard rules: what no plan may break, and the sentence that says why. Pure.

A move is judged by the first rule that refuses it, in the order of RULES: what cannot be judged at all, what holds the
guest where it is, what is true of the destination whoever comes, and last what this guest lacks there. So the later a
rule is in the table, the nearer the move was to being allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tasks.planning.cluster import Cluster, Guest

Rule = Callable[[Cluster, str, str], str | None]
"""(cluster, guest, destination) → why this guest cannot go there; None: it can, as far as this rule goes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rule, by its name in RULES, and why in words and figures."""

    rule: str
    why: str


def _unknown_guest(cluster: Cluster, guest: str, _host: str) -> str | None:
    return None if guest in cluster.guests else f"there is no guest {guest}"


def _unknown_host(cluster: Cluster, guest: str, host: str) -> str | None:
    if host not in cluster.hosts:
        return f"there is no host {host}"
    source = cluster.guests[guest].host
    return None if source in cluster.hosts else f"{guest} is on {source or 'no host'}, of which nothing is known"


def _same_host(cluster: Cluster, guest: str, host: str) -> str | None:
    return f"{guest} is on {host} already" if cluster.guests[guest].host == host else None


def _pinned(cluster: Cluster, guest: str, _host: str) -> str | None:
    stays = cluster.guests[guest].stays
    return None if stays is None else f"{guest} stays on {cluster.guests[guest].host}: {stays or 'no reason is given'}"


def _moving(cluster: Cluster, guest: str, _host: str) -> str | None:
    to = cluster.guests[guest].moving_to
    return f"{guest} is on its way to {to} already" if to else None


def _stale(cluster: Cluster, guest: str, host: str) -> str | None:
    for name in (cluster.guests[guest].host, host):
        if cluster.hosts[name].stale:
            return f"nobody has spoken for {name} in time"
    return None


def _cordoned(cluster: Cluster, _guest: str, host: str) -> str | None:
    reason = cluster.hosts[host].cordoned
    return None if reason is None else f"{host} is cordoned: {reason or 'no reason is given'}"


def _version(cluster: Cluster, guest: str, host: str) -> str | None:
    source, destination = cluster.hosts[cluster.guests[guest].host], cluster.hosts[host]
    if speak(source.wire, destination.wire):
        return None
    older = min(source, destination, key=lambda each: each.wire)
    return (
        f"{source.name} speaks wire version {source.wire}, {host} {destination.wire}: hosts must be at most one apart;"
        f" upgrade {older.name} first"
    )


def _transport(cluster: Cluster, guest: str, host: str) -> str | None:
    source, destination = cluster.hosts[cluster.guests[guest].host], cluster.hosts[host]
    if shared_transport(source.transports, destination.transports):
        return None
    ours, theirs = (", ".join(sorted(each.transports)) for each in (source, destination))
    return f"{source.name} has {ours}, {host} has {theirs}: nothing carries memory between them"


def _cpu_model(cluster: Cluster, guest: str, host: str) -> str | None:
    model, offered = cluster.guests[guest].cpu_model, cluster.hosts[host].cpu_models
    if not model or not offered or model in offered:
        return None
    return f"{guest} has the CPU model {model}, which {host} does not know"


def _labels(cluster: Cluster, guest: str, host: str) -> str | None:
    lacking = cluster.guests[guest].needs - cluster.hosts[host].labels
    return f"{guest} needs {', '.join(sorted(lacking))}, which {host} lacks" if lacking else None


def _anti_affinity(cluster: Cluster, guest: str, host: str) -> str | None:
    groups = cluster.guests[guest].groups
    if not groups:
        return None
    for name in sorted(_counted(cluster, host) - {guest}):
        if shared := groups & cluster.guests[name].groups:
            where = "on" if cluster.guests[name].host == host else "on its way to"
            return f"{name} of the same group {min(shared)} is {where} {host}"
    return None


def _no_memory(cluster: Cluster, guest: str, host: str) -> str | None:
    needed, left = cluster.guests[guest].memory, memory_left(cluster, host)
    return f"{guest} needs {needed} bytes, {host} has {max(left, 0)} left" if needed > left else None


#: In the order in which they are asked; a rule may rely on those before it.
RULES: dict[str, Rule] = {
    "unknown-guest": _unknown_guest,
    "unknown-host": _unknown_host,
    "same-host": _same_host,
    "pinned": _pinned,
    "moving": _moving,
    "stale": _stale,
    "cordoned": _cordoned,
    "version": _version,
    "transport": _transport,
    "cpu-model": _cpu_model,
    "labels": _labels,
    "anti-affinity": _anti_affinity,
    "no-memory": _no_memory,
}

#: Those that hold a guest where it is, whatever the destination.
_HOLDING = ("unknown-guest", "unknown-host", "pinned", "moving", "stale")


def judge(cluster: Cluster, guest: str, host: str) -> Refusal | None:
    """Why this guest cannot go to this host now; None: it can."""
    return _first(tuple(RULES), cluster, guest, host)


def held(cluster: Cluster, guest: str) -> Refusal | None:
    """Why this guest cannot leave its host, wherever to; None: it can."""
    return _first(_HOLDING, cluster, guest, _host_of(cluster.guests.get(guest)))


def memory_left(cluster: Cluster, host: str) -> int:
    """Bytes that `host` can still promise; below 0 where more is promised than there is.

    A guest on its way counts on both sides: its source holds its memory until the destination has taken over.
    """
    taken = sum(cluster.guests[name].memory for name in _counted(cluster, host))
    return cluster.hosts[host].memory - taken


def speak(source: int, destination: int) -> bool:
    """Whether hosts of these wire versions understand each other, or that is not known of one of them.

    As workers.wire.spoken has it, which refuses the move itself: a move that is planned should not come to that.
    """
    return not source or not destination or abs(source - destination) <= 1


def shared_transport(source: frozenset[str], destination: frozenset[str]) -> bool:
    """Whether hosts with these transports can exchange guests, or that is not known of one of them."""
    return not source or not destination or not source.isdisjoint(destination)


def _first(names: tuple[str, ...], cluster: Cluster, guest: str, host: str) -> Refusal | None:
    for name in names:
        why = RULES[name](cluster, guest, host)
        if why is not None:
            return Refusal(name, why)
    return None


def _host_of(guest: Guest | None) -> str:
    return "" if guest is None else guest.host


def _counted(cluster: Cluster, host: str) -> frozenset[str]:
    return cluster.residents.get(host, frozenset()) | cluster.arrivals.get(host, frozenset())
