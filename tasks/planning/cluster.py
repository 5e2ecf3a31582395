"""A fleet at one moment, as immutable values: what every plan starts from, whatever it was read from.

Memory in bytes, load in cores, bandwidth and dirty rates in bytes/s, times in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

#: Bytes/s of a host's link as long as nobody has said more: 10 Gbit/s.
BANDWIDTH = 1_250_000_000


@dataclass(frozen=True, slots=True)
class Host:
    """What a host offers. `bandwidth` is its own link's, in each direction."""

    name: str
    #: What guests may be promised.
    memory: int
    #: Cores that guests may keep busy; 0: not known, and then load is not looked at.
    cpus: float = 0.0
    bandwidth: int = BANDWIDTH
    #: Migrations that may leave it, and enter it, at once.
    outbound: int = 1
    inbound: int = 1
    #: The shared link that its migrations cross beside its own (a rack's uplink), by name; "": none.
    uplink: str = ""
    #: Each "key=value".
    labels: frozenset[str] = frozenset()
    #: What can carry memory to it and from it, by its kinds' names; empty: not known, and then nothing is refused.
    transports: frozenset[str] = frozenset()
    #: The number of what it says to other hosts (workers/wire.py); 0: not known, and then nothing is refused for it.
    wire: int = 0
    #: What its QEMU can give a guest; empty: not known, and then nothing is refused for it.
    cpu_models: frozenset[str] = frozenset()
    #: Why nothing may be moved to it; None: it takes guests.
    cordoned: str | None = None
    #: Nobody has spoken for it in time: nothing moves to it or from it.
    stale: bool = False
    #: Bytes/s that one stream from it or to it reached lately, as measured; 0: not known, so its link's.
    stream: int = 0
    #: Seconds for which a move from it or to it is on the links beside what it sends (movers that start, pairing), as
    #: measured lately; 0: not known, and then none.
    overhead: float = 0.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest and where it is."""

    name: str
    host: str
    memory: int
    #: Cores that it keeps busy.
    load: float = 0.0
    #: Bytes that it writes anew in a second, as measured; 0: idle or not known.
    dirty_rate: int = 0
    #: Bytes that it writes again and again: no round is longer than these; 0: not known, so its whole memory.
    working_set: int = 0
    #: Two guests of one group never share a host.
    groups: frozenset[str] = frozenset()
    #: Labels that its host must have.
    needs: frozenset[str] = frozenset()
    cpu_model: str = ""
    #: Why it may not be moved (a blocker that its host sees, an operator's pin); None: it may.
    stays: str | None = None
    #: Where a migration that is under way takes it; its memory counts there as well. "": none.
    moving_to: str = ""
    #: When it was moved last.
    moved: float | None = None


@dataclass(frozen=True)
class Cluster:
    """Hosts and guests by name, shared links by name with their bandwidth. Nothing in it is ever changed."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    guests: Mapping[str, Guest] = field(default_factory=dict)
    uplinks: Mapping[str, int] = field(default_factory=dict)
    #: When this was so.
    taken: float = 0.0

    @cached_property
    def residents(self) -> Mapping[str, frozenset[str]]:
        """Who is on each host; on its way to it, not yet."""
        found: dict[str, set[str]] = {name: set() for name in self.hosts}
        for guest in self.guests.values():
            found.setdefault(guest.host, set()).add(guest.name)
        return {host: frozenset(names) for host, names in found.items()}

    @cached_property
    def arrivals(self) -> Mapping[str, frozenset[str]]:
        """Who is on the way to each host that somebody is on the way to; such a guest is a resident elsewhere still."""
        found: dict[str, set[str]] = {}
        for guest in self.guests.values():
            if guest.moving_to and guest.moving_to != guest.host:
                found.setdefault(guest.moving_to, set()).add(guest.name)
        return {host: frozenset(names) for host, names in found.items()}

    def placed(self, guests: Iterable[Guest]) -> Cluster:
        """The same with these guests in place of those of their names."""
        return replace(self, guests={**self.guests, **{guest.name: guest for guest in guests}})

    def changed(self, hosts: Iterable[Host]) -> Cluster:
        """The same with these hosts in place of those of their names."""
        return replace(self, hosts={**self.hosts, **{host.name: host for host in hosts}})
