"""One move: judged, begun, finished. Each step gives a new cluster or the rule that refuses it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tasks.planning.cluster import Cluster
from tasks.planning.rules import Refusal, judge


@dataclass(frozen=True, slots=True)
class Move:
    """A guest leaves `source` for `destination`."""

    guest: str
    source: str
    destination: str


def begin(cluster: Cluster, move: Move) -> Cluster | Refusal:
    """The cluster while this move runs: the guest's memory counts on both sides."""
    if refusal := judge(cluster, move.guest, move.destination):
        return refusal
    guest = cluster.guests[move.guest]
    if guest.host != move.source:
        return Refusal("guest-moved", f"{move.guest} is on {guest.host}, no longer on {move.source}")
    return cluster.placed([replace(guest, moving_to=move.destination)])


def finish(cluster: Cluster, move: Move) -> Cluster:
    """The cluster once this move, which was begun, has ended well."""
    return cluster.placed([replace(cluster.guests[move.guest], host=move.destination, moving_to="")])


def apply(cluster: Cluster, move: Move) -> Cluster | Refusal:
    """The cluster with this move made, or why it cannot be made now.

    Refused by a rule of tasks.planning.rules, or as `guest-moved` when the guest is not where the move takes it from.
    """
    begun = begin(cluster, move)
    return begun if isinstance(begun, Refusal) else finish(begun, move)
