"""Every metric: name, unit, meaning, what it leaves out. Pure. No label ever names a guest or a migration.
None is called `job` or `instance`: those are Prometheus' own.

WORKER is what a worker shows: of itself since it started, about what it supervised; the source's worker counts
migrations, each worker times its own side. FLEET is what `droveway exporter` reads from Redis: how things stand now.
Label values come from the closed lists here, and whatever else turns up is counted as `other`; only hosts, releases,
the jobs under way and policies of the settings have names of their own, as many as there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workers.transports.figures import WORK_SECONDS


class Kind(StrEnum):
    """Prometheus' kinds."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels`: name → every value that it can have; none listed: a host's, release's, job's, policy's.

    `buckets` are upper bounds, in the metric's unit, which stands at the end of the name; without one it is a number.
    """

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
POLICIES = ("pin-all", "dynamic", "windowed")
#: Of a mover that has not chosen yet, or of a release whose destination does not say.
_POLICIES_OR_NONE = (*POLICIES, "other")
TRANSPORTS = ("tcp", "verbs")
#: Of what a source sent or need not send. Only a QEMU that moves a guest itself makes deltas (xbzrle).
SENT = ("bulk", "dirty", "final", "delta", "zero-skipped")
#: How a completion can fail: `enum ibv_wc_status`, without the success.
COMPLETIONS = (
    "loc-len-err",
    "loc-qp-op-err",
    "loc-eec-op-err",
    "loc-prot-err",
    "wr-flush-err",
    "mw-bind-err",
    "bad-resp-err",
    "loc-access-err",
    "rem-inv-req-err",
    "rem-access-err",
    "rem-op-err",
    "retry-exc-err",
    "rnr-retry-exc-err",
    "loc-rdd-viol-err",
    "rem-inv-rd-req-err",
    "rem-abort-err",
    "inv-eecn-err",
    "inv-eec-state-err",
    "fatal-err",
    "resp-timeout-err",
    "general-err",
    "unknown",
)
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
#: Spans of both sides (Status.seconds), but `start` and `twin`. `registration` overlaps the rounds that it runs beside;
#: `setup`, in which a QEMU that moves a guest itself prepares (and locks, with rdma-pin-all), is a part of its bulk
#: round.
PHASES = (
    "pairing",
    "links",
    "survey",
    "registration",
    "setup",
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

_RATES = tuple(float(1 << shift) for shift in range(20, 36))  # 1 MiB/s to 32 GiB/s
_BYTES = tuple(float(1 << shift) for shift in range(16, 31))  # 64 KiB to 1 GiB
_PINNED_SIZES = tuple(float(1 << shift) for shift in range(20, 43, 2))  # 1 MiB to 4 TiB
_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.5, 2.0, 5.0)

BUILD = Metric(
    "droveway_build_info",
    Kind.GAUGE,
    "Always 1: the release that runs here, and the version of what two movers say to each other.",
    "the releases of movers that an earlier worker started",
    (("version", ()), ("protocol", ())),
)
MIGRATIONS = Metric(
    "droveway_migrations",
    Kind.COUNTER,
    "Migrations of guests of this host that ended, by final state and reason.",
    "requests that were refused or cancelled before a mover was started, and what is unresolved still; what an operator"
    " pinned while it prepared counts as cancelled, as its movers were told",
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
    "what a mover's death cut off; a phase that failed or was cancelled counts, with its time until then",
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
    "Rounds of a migration that completed, the bulk round included; where QEMU moved it, its looks at all of memory.",
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

GUEST_GAP = Metric(
    "droveway_guest_gap_seconds",
    Kind.HISTOGRAM,
    "Seconds for which a guest that came here did not run, by its own clock.",
    "virtual machines, in which nothing of ours counts, and migrations that reconcile finished",
    buckets=_SHORT,
)
SENT_BYTES = Metric(
    "droveway_sent_bytes",
    Kind.COUNTER,
    "Bytes of guest memory of this host's migrations that ended, by round; delta: sent as differences, in any round;"
    " zero-skipped: found zero, and not sent.",
    "what a round that was cut off had sent, the transport's own overhead, and memory that no guest had touched, but"
    " where QEMU moved the guest, which finds it zero",
    (("kind", SENT),),
)
THROUGHPUT = Metric(
    "droveway_throughput_bytes_per_second",
    Kind.HISTOGRAM,
    "Bytes/s that a finished round went over the wire at, surveying and digesting included.",
    "rounds of less than 4 MiB, which tell of latency, rounds that were cut off, and up to 0.1 s by which the end of a"
    " pass of QEMU's is seen late",
    buckets=_RATES,
)
DIRTY_RATE = Metric(
    "droveway_dirty_rate_bytes_per_second",
    Kind.HISTOGRAM,
    "Bytes/s that the guest had written anew when a round was over.",
    "a page that was written more than once since the last look, which counts once, and, where QEMU moved the guest,"
    " passes before the first one of 1 s, until which it has no rate",
    buckets=(0.0, *_RATES),
)
CONVERGENCE = Metric(
    "droveway_convergence_ratio",
    Kind.HISTOGRAM,
    "Dirty rate by transfer rate, of each finished round: from 1 on rounds do not get shorter.",
    "rounds of less than 4 MiB, the last one, in which the guest is paused, and rounds without a dirty rate",
    buckets=_RATIOS,
)
EXPECTED_DOWNTIME = Metric(
    "droveway_expected_downtime_seconds",
    Kind.HISTOGRAM,
    "Seconds of downtime that the switch-over was expected to cost when it was decided, of completed migrations.",
    "migrations that reconcile finished, and those that QEMU moved before it had a dirty rate to reckon it from",
    buckets=_SHORT,
)
DOWNTIME_RATIO = Metric(
    "droveway_downtime_to_expected_ratio",
    Kind.HISTOGRAM,
    "The downtime by what it was expected to be; above 1 it took longer.",
    "what the metric of the expected downtime leaves out",
    buckets=(0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
)
REGISTRATION_WAIT = Metric(
    "droveway_registration_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds for which a migration's rounds waited for memory to be registered, on either side.",
    "registering that ran beside the writes, and migrations that failed before their rounds had ended",
    (("policy", POLICIES),),
    _LONG,
)
REGISTERED = Metric(
    "droveway_registered_bytes",
    Kind.GAUGE,
    "Bytes that the movers of this side have registered now, as they said last, by their policy.",
    "whether they are locked, and what a QEMU registers that moves a guest itself",
    (("side", SIDES), ("policy", _POLICIES_OR_NONE)),
)
PINNED = Metric(
    "droveway_pinned_bytes",
    Kind.GAUGE,
    "Bytes that the movers of this side have locked now, together, by their policy: over RDMA all that is registered,"
    " over tcp under rdma-pin-all.",
    "queues of an RDMA device, about 1 MiB a mover, and what a QEMU locks that moves a guest itself",
    (("side", SIDES), ("policy", _POLICIES_OR_NONE)),
)
PINNED_MOST = Metric(
    "droveway_pinned_bytes_max",
    Kind.GAUGE,
    "Bytes that one mover of this side has locked now, of whichever has most under its policy.",
    "the other movers, each of which has a limit of its own, and what the metric of all of them leaves out",
    (("side", SIDES), ("policy", _POLICIES_OR_NONE)),
)
PINNED_PEAK = Metric(
    "droveway_pinned_peak_bytes",
    Kind.HISTOGRAM,
    "Most bytes that a mover of this side ever had locked, of movers that ended.",
    "movers that locked nothing, and those that died before they could say",
    (("side", SIDES), ("policy", _POLICIES_OR_NONE)),
    _PINNED_SIZES,
)
PINNED_LIMIT = Metric(
    "droveway_pinned_limit_bytes",
    Kind.GAUGE,
    "Bytes that one mover may lock (RLIMIT_MEMLOCK); +Inf: no limit.",
    "the limits of cgroups, and that root is not held to it",
)
LINKS_WAIT = Metric(
    "droveway_links_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds for which a source that was prepared waited to be let onto the links.",
    "the time in the queue, and migrations that were cancelled meanwhile",
    buckets=_LONG,
)
WORK_REQUEST = Metric(
    "droveway_work_request_seconds",
    Kind.HISTOGRAM,
    "Seconds from posting writes that travel together (verbs: a list, tcp: a frame) until all are confirmed.",
    "writes that were never confirmed, and guests that QEMU moved itself",
    (("transport", TRANSPORTS),),
    WORK_SECONDS,
)
PEAK_IN_FLIGHT = Metric(
    "droveway_in_flight_bytes",
    Kind.HISTOGRAM,
    "Most bytes that one migration ever had posted and not confirmed.",
    "how long it was so, and guests that QEMU moved itself",
    (("transport", TRANSPORTS),),
    _BYTES,
)
FAILED_COMPLETIONS = Metric(
    "droveway_failed_completions",
    Kind.COUNTER,
    "Completions of RDMA writes that failed, by status.",
    "tcp, which has no completions, and what was still outstanding behind the first failure",
    (("status", COMPLETIONS),),
)
RETRIES = Metric(
    "droveway_retries",
    Kind.COUNTER,
    "Segments of guest memory that had to be sent again.",
    "verbs: a device counts them for its whole port, and shows them under /sys/class/infiniband",
    (("transport", ("tcp",)),),
)

#: What a worker shows.
WORKER = (
    BUILD,
    MIGRATIONS,
    IN_FLIGHT,
    QUEUE_WAIT,
    LINKS_WAIT,
    PHASE,
    DOWNTIME,
    GUEST_GAP,
    EXPECTED_DOWNTIME,
    DOWNTIME_RATIO,
    TRANSFERRED,
    SENT_BYTES,
    ROUNDS,
    THROUGHPUT,
    DIRTY_RATE,
    CONVERGENCE,
    REGISTRATION_WAIT,
    REGISTERED,
    PINNED,
    PINNED_MOST,
    PINNED_PEAK,
    PINNED_LIMIT,
    WORK_REQUEST,
    PEAK_IN_FLIGHT,
    FAILED_COMPLETIONS,
    RETRIES,
    DUPLICATES,
    REFUSED_MESSAGES,
    LEASES_LOST,
)

#: States of a migration that has not ended (QEMU's).
OPEN_STATES = ("queued", "setup", "active", "pre-switchover", "device", "cancelling", "other")
WAITS = ("slot", "memory", "link", "worker", "other")
FATES = ("waiting", "moving", "moved", "gone", "refused", "failed")
JOB_KINDS = ("evacuation", "rebalance", "restore")
JOB_STATES = ("running", "ending", "completed", "partial", "failed", "cancelled")
#: Who stands for the policies where the settings have none: what `droveway rebalance` goes by.
DEFAULT_POLICY = "default"
HELD_BY = ("pinned", "stale", "no-room", "no-host")

OPEN_MIGRATIONS = Metric(
    "droveway_migrations_open",
    Kind.GAUGE,
    "Migrations that have not ended, by state.",
    "those whose guest's fate is decided while a side still lets go of memory",
    (("state", OPEN_STATES),),
)
WAITING = Metric(
    "droveway_migrations_waiting",
    Kind.GAUGE,
    "Migrations that wait for admission or for the links, by what they wait for.",
    "those that nobody has looked at yet",
    (("reason", WAITS),),
)
UNRESOLVED = Metric(
    "droveway_unresolved_migrations",
    Kind.GAUGE,
    "Migrations whose guest was given away and not confirmed: it waits, paused, for `reconcile`.",
    "what only a host's journal knows while Redis was away",
)
BUDGET_USED = Metric(
    "droveway_migration_budget_used_ratio_max",
    Kind.GAUGE,
    "Of the migrations that send now the largest part of completion-timeout-per-gib that is used up; 1: stalled.",
    "migrations without that limit, and the time before they were let onto the links",
)
NO_PROGRESS = Metric(
    "droveway_migration_no_progress_ratio_max",
    Kind.GAUGE,
    "Of the migrations that send now the longest time without a new lowest amount of remaining memory, by their"
    " progress-timeout; from 1 it is stalled.",
    "migrations without that limit, and the bulk round, which is progress as long as it lasts",
)
MOST_MOVED = Metric(
    "droveway_guest_migrations_max_24h",
    Kind.GAUGE,
    "Completed migrations of the guest that had most of them, of those asked for in the last 24 hours.",
    "which guest that is: `droveway list --all` shows it",
)
SLOTS = Metric(
    "droveway_slots",
    Kind.GAUGE,
    "Slots of a host, by side: taken by who sends, taken beyond these by who prepares or lets go of memory, and free.",
    "hosts that no worker speaks for",
    (("host", ()), ("side", SIDES), ("state", ("sending", "preparing", "free"))),
)
HOST_MEMORY = Metric(
    "droveway_host_memory_bytes",
    Kind.GAUGE,
    "Bytes that a host offers to guests: of those there, promised to those on their way, and free.",
    "what the host keeps for itself, and hosts that no worker speaks for",
    (("host", ()), ("state", ("resident", "reserved", "free"))),
)
HOST_UP = Metric(
    "droveway_host_up",
    Kind.GAUGE,
    "1: that role's worker renewed its lease in time; 0: not. Of every host that was heard of or has guests.",
    "a host that was taken out of the fleet: with nothing left on it, it is forgotten after some minutes",
    (("host", ()), ("side", SIDES)),
)
HOST_GUESTS = Metric(
    "droveway_host_guests",
    Kind.GAUGE,
    "Guests on a host.",
    "those on their way to it",
    (("host", ()),),
)
HOST_CORDONED = Metric(
    "droveway_host_cordoned",
    Kind.GAUGE,
    "1: no guest comes to this host, because it is cordoned or pinned.",
    "why: `droveway blocker list` says it",
    (("host", ()),),
)
VERSIONS = Metric(
    "droveway_fleet_version",
    Kind.GAUGE,
    "Hosts by the release of their workers.",
    "hosts that no worker speaks for",
    (("version", ()),),
)
IMBALANCE = Metric(
    "droveway_imbalance",
    Kind.GAUGE,
    "How unevenly memory or load, the worse of the two, is spread over the hosts that take guests (coefficient of"
    " variation); 0: evenly.",
    "cordoned hosts, and hosts that no worker speaks for",
)
IMBALANCE_TARGET = Metric(
    "droveway_imbalance_target",
    Kind.GAUGE,
    "Down to which rebalancing makes moves, by policy of the exporter's settings; without one, `default`: that of"
    " `droveway rebalance`.",
    "policies that stand only in the settings of another host",
    (("policy", ()),),
)
GAIN = Metric(
    "droveway_rebalance_gain",
    Kind.GAUGE,
    "What one `droveway rebalance` by that policy would take away from the imbalance now; planned once a minute at"
    " most.",
    "whether the policy may act now, fleets of more than 1000 hosts, where it is not planned, and an exporter's first"
    " seconds",
    (("policy", ()),),
)
NOT_EVACUABLE = Metric(
    "droveway_guests_not_evacuable",
    Kind.GAUGE,
    "Guests that could not leave now: pinned; their host is silent; no room elsewhere; no host that suits them.",
    "guests under way, fleets of more than 1000 hosts, and what only a host sees when it is asked (`droveway check`)",
    (("reason", HELD_BY),),
)
EVACUATION_GUESTS = Metric(
    "droveway_evacuation_guests",
    Kind.GAUGE,
    "Guests of an evacuation under way, by what has become of them; gone with its end.",
    "evacuations that have ended, which `droveway history` has",
    (("evacuation", ()), ("fate", FATES)),
)
EVACUATION_ETA = Metric(
    "droveway_evacuation_eta_seconds",
    Kind.GAUGE,
    "Seconds until an evacuation under way has moved what is waiting or moving, at the pace so far; before its first"
    " guest has moved, at what its hosts' links carry.",
    "guests that stay, and evacuations without a guest to move",
    (("evacuation", ()),),
)
EVACUATION_DEADLINE = Metric(
    "droveway_evacuation_deadline_seconds",
    Kind.GAUGE,
    "Seconds that an evacuation under way has left; below 0 once its deadline has passed.",
    "evacuations without a deadline",
    (("evacuation", ()),),
)
JOBS = Metric(
    "droveway_jobs",
    Kind.GAUGE,
    "Jobs that are remembered (history.retention), by kind and state.",
    "those that Redis has forgotten",
    (("kind", JOB_KINDS), ("state", JOB_STATES)),
)
REDIS_UP = Metric(
    "droveway_redis_up",
    Kind.GAUGE,
    "1: Redis answered; 0: it did not, and all else of the fleet is left out rather than shown as it was.",
    "whether it is durable",
)
REDIS_DURABLE = Metric(
    "droveway_redis_durable",
    Kind.GAUGE,
    "1: Redis keeps what it answered (appendonly on, appendfsync always, nothing evicted); 0: it may not.",
    "appendfsync where our user may not read it (CONFIG GET), and replicas",
    (("check", ("appendonly", "appendfsync", "maxmemory_policy")),),
)
READ_SECONDS = Metric(
    "droveway_exporter_read_seconds",
    Kind.GAUGE,
    "Seconds that the last reading of Redis took.",
    "planning, which runs beside it",
)

#: What `droveway exporter` shows, beside BUILD.
FLEET = (
    OPEN_MIGRATIONS,
    WAITING,
    UNRESOLVED,
    BUDGET_USED,
    NO_PROGRESS,
    MOST_MOVED,
    SLOTS,
    HOST_MEMORY,
    HOST_UP,
    HOST_GUESTS,
    HOST_CORDONED,
    VERSIONS,
    IMBALANCE,
    IMBALANCE_TARGET,
    GAIN,
    NOT_EVACUABLE,
    EVACUATION_GUESTS,
    EVACUATION_ETA,
    EVACUATION_DEADLINE,
    JOBS,
    REDIS_UP,
    REDIS_DURABLE,
    READ_SECONDS,
)
