"""A fleet whose movers and clock are simulated, on a real Redis: what is asked for is admitted by the real scripts.

    a move is admitted ─► prepares (a second) ─► is let onto the links ─► ends after its estimate, by this clock

Whoever is ready first ends first, so that slots fall free in the order in which they would. Both sides claim, renew
their lease once a second, and end, each by a real script.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush

from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.cluster import Cluster
from tasks.planning.estimate import estimate, path_bandwidth
from tasks.records import Fleet, LocalGuest, MigrationRecord
from workers.attempt import Job, Status
from workers.pairing.contract import Side

#: Seconds for a mover to start, pair and connect, as measured between real workers on one machine.
PREPARES = 1.0
#: Seconds between two renewals of a lease.
RENEWS = 1.0


@dataclass(slots=True)
class _Move:
    """One that is at work. Times by the simulated clock."""

    record: MigrationRecord
    jobs: tuple[Job, ...]
    ready: float
    renewed: float


@dataclass
class SimulatedFleet:
    """The movers of a whole fleet. `now` is the simulated clock, in seconds."""

    ledger: Ledger
    cluster: Cluster
    now: float = 0.0
    #: Moves that ended, and seconds in which a host's link out carried a stream, by source.
    ended: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    _moves: dict[str, _Move] = field(default_factory=dict)
    _ends: list[tuple[float, str]] = field(default_factory=list)

    def register(self, offered: dict[str, str]) -> None:
        """Every host says once what it offers and which guests it has; `offered` beside what the cluster knows."""
        for name, host in self.cluster.hosts.items():
            there = sorted(self.cluster.residents[name])
            guests = [LocalGuest(each, self.cluster.guests[each].memory, 0) for each in there]
            own = {
                "memory": str(host.memory),
                "bandwidth": str(host.bandwidth),
                "uplink": host.uplink,
                "uplink_bandwidth": str(self.cluster.uplinks.get(host.uplink, 0)),
                "slots:source": str(host.outbound),
                "slots:destination": str(host.inbound),
                "ahead": "1",
                "labels": json.dumps(sorted(host.labels)),
            }
            for side in Side:
                self.ledger.heartbeat(name, side, offered | own, [], guests)

    def take_up(self) -> None:
        """Movers start for what was admitted; what was let onto the links will end."""
        for record in self.ledger.open():
            if record.epoch is None or record.ended:
                continue
            if record.migration not in self._moves:
                self._moves[record.migration] = self._started(record)
            move = self._moves[record.migration]
            if record.granted is not None and move.record.granted is None:
                move.record = record
                begins = max(self.now, move.ready)
                seconds = self._seconds(record)
                self.busy[record.source.host] += round(1000 * seconds)
                heappush(self._ends, (begins + seconds, record.migration))

    def _started(self, record: MigrationRecord) -> _Move:
        assert record.epoch is not None
        made = record.migration, record.guest, record.epoch
        ends = ((side, record.side(side).host, record.side(side.peer).host) for side in Side)
        jobs = tuple(Job(*made, side, "n", host, peer, record.memory, {}, {}) for side, host, peer in ends)
        for job in jobs:
            assert self.ledger.claim(job.ticket) is Answer.OK
            self.calls["claim"] += 1
        waits = MigrationRecord(
            record.migration, record.guest, "", 0, {}, {}, record.source, record.destination, record.created
        )
        return _Move(waits, jobs, self.now + PREPARES, self.now)

    def _seconds(self, record: MigrationRecord) -> float:
        guest = self.cluster.guests[record.guest]
        path = path_bandwidth(self.cluster, record.source.host, record.destination.host)
        assert record.rate is not None
        return estimate(guest, min(path, record.rate)).seconds

    def advance(self, until: float) -> bool:
        """Let time pass up to the next end, or `until` when that is sooner; whether a move ended."""
        due = self._ends and self._ends[0][0] <= until
        self.now = self._ends[0][0] if due else until
        self._renew()
        if not due:
            return False
        move = self._moves.pop(heappop(self._ends)[1])
        for job in reversed(move.jobs):
            assert self.ledger.finish(job.ticket, Status(outcome="completed")) is Answer.OK
            self.calls["finish"] += 1
        self.ended[move.record.source.host] += 1
        return True

    def _renew(self) -> None:
        for move in self._moves.values():
            while move.renewed + RENEWS <= self.now:
                move.renewed += RENEWS
                for job in move.jobs:
                    self.ledger.renew(job.ticket)
                    self.calls["renew"] += 1


def over_limit(fleet: Fleet, links: dict[str, int], carries: dict[str, int]) -> int:
    """How many limits are exceeded at this instant: memory, streams, what is admitted, shared links (bytes/s)."""
    found = sum(links[name] > carries[name] for name in links)
    for host in fleet.hosts.values():
        found += host.free < 0
        for side in Side:
            found += host.busy[side] > host.slots[side]
            found += host.admitted[side] > host.slots[side] + host.ahead
    return found
