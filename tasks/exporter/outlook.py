"""What takes planning to know: what rebalancing would gain, and who could not leave. Pure; seconds on a large fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.planning.cluster import Cluster
from tasks.planning.placement import Placement
from tasks.planning.rebalancing import Policy, plan_rebalance
from tasks.planning.rules import held

#: Hosts above which nothing is planned only to be shown: at 1,000, with 20,000 guests, it takes seconds.
MOST_HOSTS = 1000


@dataclass(frozen=True, slots=True)
class Outlook:
    """`gain`: imbalance that each policy would take away. `not_evacuable`: guests by what holds them."""

    gain: Mapping[str, float]
    not_evacuable: Mapping[str, int]


def outlook(cluster: Cluster, policies: Mapping[str, Policy]) -> Outlook | None:
    """None for a fleet that is too large for it."""
    if len(cluster.hosts) > MOST_HOSTS:
        return None
    gain = {name: _gain(cluster, policy) for name, policy in policies.items()}
    return Outlook(gain, _not_evacuable(cluster))


def _gain(cluster: Cluster, policy: Policy) -> float:
    plan = plan_rebalance(cluster, policy, cluster.taken)
    return max(0.0, plan.imbalance_before - plan.imbalance_after)


def _not_evacuable(cluster: Cluster) -> Counter[str]:
    placement = Placement(cluster)
    found: Counter[str] = Counter()
    for name in placement.guests:
        if reason := _why_not(cluster, placement, name):
            found[reason] += 1
    return found


def _why_not(cluster: Cluster, placement: Placement, guest: str) -> str:
    """What keeps this guest on its host; "": nothing, or it is on its way already."""
    if cluster.guests[guest].moving_to:
        return ""
    if (refusal := held(cluster, guest)) is not None:
        return "pinned" if refusal.rule == "pinned" else "stale"
    if placement.candidates(guest).any():
        return ""
    return "no-room" if placement.roomless(guest).any() else "no-host"
