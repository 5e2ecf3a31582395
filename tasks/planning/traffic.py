"""How long each link is kept busy by the moves chosen so far, so that the next one can go where there is time. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from tasks.planning.estimate import estimate, stream_bandwidth
from tasks.planning.placement import Bools, Floats, Ints, Placement

#: Bytes/s of a link that nobody has told about: it is never the narrowest.
_UNBOUND = 1 << 62


class Traffic:
    """Seconds of work on every host's way in and on both ways of every uplink.

    Rows are the placement's; the row NOWHERE of an uplink is what hosts without one have, and carries anything.
    """

    def __init__(self, placement: Placement, downtime_limit: float) -> None:
        cluster = placement.cluster
        self._placement, self._downtime_limit = placement, downtime_limit
        self._bandwidth: Ints = np.array([max(1, cluster.hosts[name].bandwidth) for name in placement.hosts])
        self._stream: Ints = np.array([max(1, stream_bandwidth(cluster.hosts[name])) for name in placement.hosts])
        self._overhead: Floats = np.array([cluster.hosts[name].overhead for name in placement.hosts])
        self._inbound_slots: Floats = np.array([max(1.0, cluster.hosts[name].inbound) for name in placement.hosts])
        told = [max(1, cluster.uplinks.get(name, _UNBOUND)) for name in placement.uplinks]
        self._uplinks: Ints = np.array([*told, _UNBOUND])
        self._inbound = np.zeros(len(placement.hosts))
        self._up, self._down = np.zeros(len(self._uplinks)), np.zeros(len(self._uplinks))
        self._rates: dict[int, tuple[Ints, Ints, Ints]] = {}
        #: When the busiest of the sources has sent all that it is expected to send, at the earliest. Seconds.
        self.target = 0.0

    def expect(self, guests: Iterable[str]) -> None:
        """These will leave their hosts."""
        work: dict[int, float] = defaultdict(float)
        for guest in guests:
            source = self._source(guest)
            work[source] += self._seconds(guest, int(self._stream[source])) + self._overhead[source]
        self.target = max(work.values(), default=0.0)

    def ends(self, guest: str) -> Floats:
        """When each host would have received `guest` and all that was given to it before, at the earliest. Seconds."""
        source, uplink = self._source(guest), self._placement.uplink
        seconds, rates, crossing = self._path(guest)
        own = uplink[source]
        inbound = self._inbound + self._share(seconds, rates)
        up = self._up[own] + seconds * rates / self._uplinks[own]
        down = self._down[uplink] + seconds * rates / self._uplinks[uplink]
        return np.asarray(np.maximum(inbound, np.where(crossing, np.maximum(up, down), 0.0)), dtype=np.float64)

    def add(self, guest: str, host: int, times: int = 1) -> None:
        """`guest` will be moved to the host of this row; `times` -1: it will not, after all."""
        source, uplink = self._source(guest), self._placement.uplink
        seconds, rates, crossing = self._path(guest)
        self._inbound[host] += times * self._share(seconds, rates)[host]
        if crossing[host]:
            carried = times * seconds[host] * rates[host]
            self._up[uplink[source]] += carried / self._uplinks[uplink[source]]
            self._down[uplink[host]] += carried / self._uplinks[uplink[host]]

    def _share(self, seconds: Floats, rates: Ints) -> Floats:
        """How long a stream keeps the whole of a host's way in busy: by its part of the bandwidth or of the slots."""
        part = np.maximum(rates / self._bandwidth, 1 / self._inbound_slots)
        return np.asarray(seconds * part, dtype=np.float64)

    def _source(self, guest: str) -> int:
        return self._placement.row[self._placement.cluster.guests[guest].host]

    def _path(self, guest: str) -> tuple[Floats, Ints, Bools]:
        """To each host: seconds that the move takes, bytes/s that it gets, whether it leaves its own uplink."""
        source, uplink = self._source(guest), self._placement.uplink
        if source not in self._rates:
            self._rates[source] = self._rates_from(source)
        rates, distinct, which = self._rates[source]
        seconds = np.array([self._seconds(guest, int(rate)) for rate in distinct])[which]
        seconds += np.maximum(self._overhead, self._overhead[source])
        return seconds, rates, uplink != uplink[source]

    def _rates_from(self, source: int) -> tuple[Ints, Ints, Ints]:
        """Bytes/s from here to each host, as estimate.path_bandwidth has it; the distinct ones, and which each is."""
        uplink = self._placement.uplink
        rates = np.minimum(self._stream, self._stream[source])
        beyond = np.minimum(self._uplinks[uplink], self._uplinks[uplink[source]])
        rates = np.where(uplink != uplink[source], np.minimum(rates, beyond), rates)
        distinct, which = np.unique(rates, return_inverse=True)
        return rates, distinct, which

    def _seconds(self, guest: str, rate: int) -> float:
        return estimate(self._placement.cluster.guests[guest], rate, self._downtime_limit).seconds
