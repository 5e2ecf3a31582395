"""A reading as samples: for each metric its values by label values. Pure.

Everything is counted anew from the lists of one reading, so that no gauge outlives what it tells of, or falls below 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from config.capabilities import read_options
from config.errors import RequestError
from tasks.exporter.outlook import Outlook
from tasks.exporter.reading import Reading
from tasks.jobs import JobRecord, Kind
from tasks.planning.cluster import Cluster
from tasks.planning.job import Fate
from tasks.planning.rebalancing import Policy, imbalance_of
from tasks.records import Fleet, Kept, MigrationRecord
from workers.metrics import names
from workers.metrics.names import Metric
from workers.pairing.contract import Side
from workers.rounds.convergence import Survey, last_progress

Samples = Mapping[tuple[str, ...], float]
"""Values by label values, these in the order of the metric's labels."""

#: What admission writes (admit.lua) contains one of these words.
_WAITS = (("worker", "worker is alive"), ("memory", "bytes free"), ("link", "shared link"), ("slot", "slot of"))


def samples(
    reading: Reading, cluster: Cluster, policies: Mapping[str, Policy], ahead: Outlook | None
) -> dict[Metric, Samples]:
    """All metrics of the fleet but those of the exporter itself. `cluster`: the same fleet as plans see it."""
    moves = [record for record in reading.open if not record.ended]
    found: dict[Metric, Samples] = {
        names.OPEN_MIGRATIONS: _counted(names.OPEN_STATES, (record.state for record in moves)),
        names.WAITING: _counted(names.WAITS, (_wait(record.waiting) for record in moves if record.waiting)),
        names.UNRESOLVED: {(): float(sum(_unresolved(record) for record in moves))},
        names.BUDGET_USED: {(): max((_budget_used(record, reading.now) for record in moves), default=0.0)},
        names.NO_PROGRESS: {(): max((_no_progress(record, reading.now) for record in moves), default=0.0)},
        names.MOST_MOVED: {(): float(max(reading.moved.values(), default=0))},
        names.IMBALANCE: {(): imbalance_of(cluster)},
        names.IMBALANCE_TARGET: {(name,): policy.target for name, policy in policies.items()},
        names.JOBS: {
            (kind, state): float(reading.jobs.get((kind, state), 0))
            for kind in names.JOB_KINDS
            for state in names.JOB_STATES
        },
        names.REDIS_DURABLE: {(check,): float(holds) for check, holds in reading.durable.items()},
    }
    found |= _hosts(reading)
    found |= _evacuations(reading)
    if ahead is not None:
        found[names.GAIN] = {(name,): gain for name, gain in ahead.gain.items()}
        found[names.NOT_EVACUABLE] = {(why,): float(ahead.not_evacuable.get(why, 0)) for why in names.HELD_BY}
    return found


# --- hosts ------------------------------------------------------------------------------------------------------------


def _hosts(reading: Reading) -> dict[Metric, Samples]:
    fleet = reading.fleet
    guests = Counter(guest.host for guest in fleet.guests.values() if guest.host)
    slots: dict[tuple[str, ...], float] = {}
    memory: dict[tuple[str, ...], float] = {}
    for name, host in fleet.hosts.items():
        for side in Side:
            sending, admitted = host.busy[side], host.admitted[side]
            slots[name, side, "sending"] = sending
            slots[name, side, "preparing"] = max(0, admitted - sending)
            slots[name, side, "free"] = max(0, host.slots[side] - sending)
        memory[name, "resident"], memory[name, "reserved"] = host.resident, host.reserved
        memory[name, "free"] = max(0, host.free)
    known = sorted(reading.hosts | fleet.hosts.keys() | guests.keys())
    return {
        names.SLOTS: slots,
        names.HOST_MEMORY: memory,
        names.HOST_UP: {(name, side): float(_alive(fleet, name, side)) for name in known for side in Side},
        names.HOST_GUESTS: {(name,): float(guests[name]) for name in known},
        names.HOST_CORDONED: {(name,): float(_closed(fleet, name)) for name in known},
        names.VERSIONS: _counted_as_found(host.version for host in fleet.hosts.values()),
    }


def _alive(fleet: Fleet, host: str, side: Side) -> bool:
    return host in fleet.hosts and side in fleet.hosts[host].alive


def _closed(fleet: Fleet, host: str) -> bool:
    return (Kept.CORDON, host) in fleet.pins or (Kept.HOST, host) in fleet.pins


# --- migrations -------------------------------------------------------------------------------------------------------


def _wait(why: str) -> str:
    return next((reason for reason, words in _WAITS if words in why), "other")


def _unresolved(record: MigrationRecord) -> bool:
    said = (record.side(side).progress for side in Side)
    return any(progress is not None and progress.get("outcome") == "unresolved" for progress in said)


def _budget_used(record: MigrationRecord, now: float) -> float:
    limit = _limits(record)[0]
    return _sending_for(record, now) / limit if limit else 0.0


def _no_progress(record: MigrationRecord, now: float) -> float:
    limit = _limits(record)[1]
    progress = record.source.progress
    if not limit or progress is None:
        return 0.0
    seen = [entry for entry in progress.get("rounds", ()) if "dirty" in entry and "at" in entry]
    surveys = [Survey(entry["dirty"], entry["at"]) for entry in seen]
    return max(0.0, _sending_for(record, now) - last_progress(surveys)) / limit if surveys else 0.0


def _sending_for(record: MigrationRecord, now: float) -> float:
    """Seconds for which it has been sending; 0: it does not, or its guest is handed over already."""
    sends = record.granted is not None and record.state in ("active", "pre-switchover")
    return max(0.0, now - record.granted) if sends and record.granted is not None else 0.0


def _limits(record: MigrationRecord) -> tuple[float, float]:
    """completion-timeout for this guest, and progress-timeout, in seconds; 0: none, or of a release that we cannot
    read."""
    try:
        _, parameters = read_options(record.capabilities, record.parameters)
    except RequestError:
        return 0.0, 0.0
    size = max(1.0, record.memory / (1 << 30))
    return parameters.completion_timeout_per_gib_s * size, float(parameters.progress_timeout_s)


# --- evacuations ------------------------------------------------------------------------------------------------------


def _evacuations(reading: Reading) -> dict[Metric, Samples]:
    guests: dict[tuple[str, ...], float] = {}
    left: dict[tuple[str, ...], float] = {}
    eta: dict[tuple[str, ...], float] = {}
    for record in reading.open_jobs:
        if record.kind is not Kind.EVACUATION or record.ended:
            continue
        guests |= {(record.job, fate): float(record.count(Fate(fate))) for fate in names.FATES}
        if record.asked.deadline is not None:
            left[record.job,] = record.asked.deadline - reading.now
        if (seconds := _eta(record, reading)) is not None:
            eta[record.job,] = seconds
    return {names.EVACUATION_GUESTS: guests, names.EVACUATION_DEADLINE: left, names.EVACUATION_ETA: eta}


def _eta(record: JobRecord, reading: Reading) -> float | None:
    rest = _memory(record, reading.fleet, Fate.WAITING, Fate.MOVING)
    if not rest:
        return None
    done, spent = _memory(record, reading.fleet, Fate.MOVED), reading.now - record.created
    if done and spent > 0:
        return rest * spent / done
    hosts = (reading.fleet.hosts.get(name) for name in record.asked.hosts)
    carried = sum(host.bandwidth for host in hosts if host is not None)
    return rest / carried if carried else None


def _memory(record: JobRecord, fleet: Fleet, *fates: Fate) -> int:
    those = (name for name, each in record.guests.items() if each.fate in fates)
    return sum(fleet.guests[name].memory for name in those if name in fleet.guests)


# --- counting ---------------------------------------------------------------------------------------------------------


def _counted(known: tuple[str, ...], found: Iterable[str]) -> Samples:
    """How often each of the known words was found; any other is the last of them, `other`."""
    counts = Counter(word if word in known else known[-1] for word in found)
    return {(word,): float(counts[word]) for word in known}


def _counted_as_found(found: Iterable[str]) -> Samples:
    return {(word,): float(count) for word, count in sorted(Counter(found).items())}
