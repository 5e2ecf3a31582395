"""One reading of everything in Redis that the fleet's metrics tell of. It only reads.

What has ended does not change: it is read once, and remembered for as long as Redis itself remembers it. Another
exporter, or this one started anew, reads it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.jobs import JobRecord
from tasks.ledger.ledger import Ledger
from tasks.records import ENDED, Fleet, MigrationRecord

#: Seconds of which the migrations of each guest are counted.
DAY = 86_400.0
_ENDED_JOBS = frozenset({"completed", "partial", "failed", "cancelled"})


@dataclass(frozen=True)
class Reading:
    """The fleet at `now`, the server's clock in seconds since 1970."""

    now: float
    fleet: Fleet = field(default_factory=Fleet)
    #: Every host that was heard of, whether a worker speaks for it or not.
    hosts: frozenset[str] = frozenset()
    #: Migrations that have not ended, or whose sides still let go of memory.
    open: tuple[MigrationRecord, ...] = ()
    open_jobs: tuple[JobRecord, ...] = ()
    #: How many jobs of each (kind, state) are remembered.
    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    #: Completed migrations of the last day, by guest.
    moved: Mapping[str, int] = field(default_factory=dict)
    #: Whether each of what makes Redis durable is so; what cannot be asked is not there.
    durable: Mapping[str, bool] = field(default_factory=dict)


class Reader:
    """Reads, over one ledger; one thread at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: dict[str, tuple[str, str]] = {}
        self._moves: dict[str, tuple[str, str]] = {}

    def read(self) -> Reading:
        """Raises UnreachableError, HostError."""
        ledger = self._ledger
        # What is under way is read first, as plans do: a move that ends meanwhile still counts.
        under_way, hosts, fleet = ledger.open(), ledger.hosts(), ledger.fleet()
        under_work = ledger.readable_jobs(ledger.open_jobs())
        now = ledger.now()
        return Reading(
            now,
            fleet,
            frozenset(hosts),
            tuple(under_way),
            tuple(under_work),
            self._counted_jobs(),
            self._counted_moves(now),
            ledger.durability(),
        )

    def _counted_jobs(self) -> Counter[tuple[str, str]]:
        there = self._ledger.job_names()
        self._jobs = {name: said for name, said in self._jobs.items() if name in there}
        fresh = self._ledger.job_states(sorted(there - self._jobs.keys()))
        self._jobs |= {name: said for name, said in fresh.items() if said[1] in _ENDED_JOBS}
        return Counter([*self._jobs.values(), *(said for name, said in fresh.items() if name not in self._jobs)])

    def _counted_moves(self, now: float) -> Counter[str]:
        there = self._ledger.moves_since(now - DAY)
        self._moves = {name: said for name, said in self._moves.items() if name in there}
        fresh = self._ledger.move_states(sorted(there - self._moves.keys()))
        self._moves |= {name: said for name, said in fresh.items() if said[1] in ENDED}
        return Counter(guest for guest, state in self._moves.values() if state == "completed")
