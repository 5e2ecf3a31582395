"""Every metric: name, unit, meaning, what it leaves out. Pure. No label ever names a guest or a migration.

All are of this worker since it started, about what it supervised: the source's worker counts migrations, each worker
times its own side. Label values come from the closed lists here; whatever else turns up is counted as `other`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus' kinds."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels`: name → every value that it can have. `buckets` are upper bounds, in the metric's unit."""

    name: str
    kind: Kind
    meaning: str
    leaves_out: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def help(self) -> str:
        """What /metrics says of it."""
        return f"{self.meaning} Leaves out {self.leaves_out}."


STATES = ("completed", "failed", "cancelled")
SIDES = ("source", "destination")
#: The error classes' words, the ledger's and settle's. A word that is new there is `other` until it is added here.
REASONS = (
    "none",
    "aborted-by-source",
    "busy",
    "cancelled",
    "capability",
    "engine",
    "host",
    "host-memory",
    "internal",
    "invalid-message",
    "invalid-request",
    "link-lost",
    "local-protection",
    "memory-lock",
    "migration-failed",
    "mover-died",
    "peer",
    "peer-lost",
    "page-size",
    "ram-blocks",
    "rdma-device",
    "remote-access",
    "request-differs",
    "stale-epoch",
    "stalled",
    "taken-back",
    "transport",
    "unknown-guest",
    "unreachable",
    "unresolved",
    "verify-ram",
    "other",
)
#: Spans of both sides (Status.seconds). `registration` overlaps the rounds that it runs beside.
PHASES = (
    "pairing",
    "links",
    "survey",
    "registration",
    "bulk",
    "rounds",
    "downtime",
    "handover",
    "deregistration",
    "total",
)

_SHORT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
#: From what a demo needs to four hours.
_LONG = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400)

MIGRATIONS = Metric(
    "droveway_migrations",
    Kind.COUNTER,
    "Migrations of guests of this host that ended, by final state and reason.",
    "requests that were refused or cancelled before a mover was started, and what is unresolved still",
    (("state", STATES), ("reason", REASONS)),
)
IN_FLIGHT = Metric(
    "droveway_migrations_in_flight",
    Kind.GAUGE,
    "Movers that this worker supervises.",
    "migrations that wait for admission, and attempts that are unresolved",
    (("side", SIDES),),
)
QUEUE_WAIT = Metric(
    "droveway_queue_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds from submission to admission, by the Redis server's clock.",
    "the time that the submission itself lay in the control queue",
    buckets=(0.1, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400),
)
PHASE = Metric(
    "droveway_phase_seconds",
    Kind.HISTOGRAM,
    "Seconds that one phase of a migration took on this side.",
    "phases that were not finished",
    (("side", SIDES), ("phase", PHASES)),
    _LONG,
)
DOWNTIME = Metric(
    "droveway_downtime_seconds",
    Kind.HISTOGRAM,
    "Seconds from the guest's pause to the destination's word that it runs, of completed migrations.",
    "what the guest itself felt, deregistration, and migrations that reconcile finished",
    buckets=_SHORT,
)
TRANSFERRED = Metric(
    "droveway_transferred_bytes",
    Kind.COUNTER,
    "Bytes of guest memory sent by this host, of migrations that ended.",
    "pages of zeros, control messages, and the transport's own overhead",
)
ROUNDS = Metric(
    "droveway_rounds",
    Kind.HISTOGRAM,
    "Rounds of a migration that completed, the bulk round included.",
    "migrations that failed or were cancelled",
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128),
)
DUPLICATES = Metric(
    "droveway_duplicate_deliveries",
    Kind.COUNTER,
    "Doorbells for an attempt that was taken up already: no-ops by design.",
    "messages that were malformed or of another epoch",
    (("side", SIDES),),
)
REFUSED_MESSAGES = Metric(
    "droveway_refused_messages",
    Kind.COUNTER,
    "Messages dropped as malformed, oversized, expired, of another version, or not agreeing with the record.",
    "what Celery itself refuses (a content type that is not JSON, an unknown task)",
)
LEASES_LOST = Metric(
    "droveway_leases_lost",
    Kind.COUNTER,
    "Attempts whose claim the record gave to another holder or epoch while their mover lived.",
    "leases that only lapsed, which renewing heals",
    (("side", SIDES),),
)

ALL = (
    MIGRATIONS,
    IN_FLIGHT,
    QUEUE_WAIT,
    PHASE,
    DOWNTIME,
    TRANSFERRED,
    ROUNDS,
    DUPLICATES,
    REFUSED_MESSAGES,
    LEASES_LOST,
)
