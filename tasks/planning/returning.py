"""Who can come back to the hosts that were emptied, as the fleet is now: moves in order, and reasons. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tasks.planning.cluster import Cluster
from tasks.planning.moves import Move, apply
from tasks.planning.relocating import near
from tasks.planning.rules import Refusal
from tasks.planning.waves import Schedule, schedule


@dataclass(frozen=True)
class Return:
    """`moves` can be made one after the other, the hosts being open; `refused` are moves that cannot be made now."""

    hosts: tuple[str, ...]
    moves: tuple[Move, ...]
    refused: tuple[tuple[Move, Refusal], ...]
    schedule: Schedule

    @property
    def wanted(self) -> tuple[Move, ...]:
        """All of them: those that can be made first."""
        return self.moves + tuple(move for move, _ in self.refused)


def plan_return(cluster: Cluster, hosts: Iterable[str], homes: Mapping[str, str]) -> Return:
    """The plan for guests that left one of `hosts`: guest → its home. The biggest first: it is the hardest to fit.

    Guests that are gone, or back already, are left out.
    """
    opened = tuple(sorted(hosts))
    away = [cluster.guests[name] for name in homes if name in cluster.guests]
    biggest_first = sorted(away, key=lambda guest: (-guest.memory, guest.name))
    # One that is under way is brought back from where it will be.
    wanted = [Move(guest.name, guest.moving_to or guest.host, homes[guest.name]) for guest in biggest_first]
    wanted = [move for move in wanted if move.source != move.destination]
    open_again = (replace(cluster.hosts[name], cordoned=None) for name in opened if name in cluster.hosts)
    before = now = near(cluster.changed(open_again), wanted)
    moves, refused = [], []
    for move in wanted:
        made = apply(now, move)
        if isinstance(made, Refusal):
            refused.append((move, made))
        else:
            moves.append(move)
            now = made
    return Return(opened, tuple(moves), tuple(refused), schedule(before, moves))
