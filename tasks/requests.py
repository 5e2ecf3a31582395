"""What a producer does with migrations: ask for one, follow it, cancel it. The `droveway` command calls these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic, sleep

from config.capabilities import read_options
from config.errors import RefusedError, RequestError, UnreachableError
from tasks.admission import busy, judge
from tasks.bell import Bell
from tasks.ledger.ledger import Answer, Ledger, Waiter
from tasks.messages import MigrateRequest
from tasks.records import Fleet, MigrationRecord, Priority, Submission
from workers.pairing.contract import Side

#: Seconds for which a watcher rides out a Redis that is away: as long as a restart takes.
PATIENCE = 60.0


def submit(
    ledger: Ledger,
    request: MigrateRequest,
    fleet: Fleet | None = None,
    job: str = "",
    priority: Priority | None = None,
) -> str:
    """Write a new migration down, `queued`; its id. Submitting the same request again is the same migration.

    `fleet`: as it was read already, when much is asked for at once. `job`: the one that asks. `priority`: other
    than what the request says itself. Raises RequestError, RefusedError, UnreachableError. Follow with `admit`.
    """
    if (before := ledger.find(request.migration)) is not None:
        return _taken_back(ledger, before, job) if job and before.job is None else _known(ledger, request)
    submission = judge(request, ledger.fleet() if fleet is None else fleet)
    asks = submission.priority if priority is None else priority
    answer, detail = ledger.submit(replace(submission, job=job, priority=asks))
    match answer:
        case Answer.UNKNOWN:
            raise RefusedError(
                f"{request.guest} has just gone; `droveway guest list` on a host shows what it has.", "unknown-guest"
            )
        case Answer.BUSY:
            raise busy(request.guest, detail)
        case Answer.MOVED:
            raise RefusedError(f"{request.guest} has just moved to {detail}; submit again.", "guest-moved")
        case Answer.OTHER:
            raise _other(request)
        case Answer.ENDED:
            raise RefusedError(f"{job} has ended or was cancelled; it asks for nothing more.", "ended")
        case Answer.FULL:
            raise RefusedError(
                f"{job} has as many moves under way as it may; one of its next steps asks again.", "full"
            )
    return request.migration


def record_refused(ledger: Ledger, request: MigrateRequest, refusal: RefusedError, job: str = "") -> None:
    """Write a request that `submit` refused down as failed, so that whoever sent it can read why.

    Raises RequestError (the options), UnreachableError.
    """
    capabilities, parameters = read_options(request.capabilities, request.parameters)
    guest = ledger.fleet().guests.get(request.guest)
    source = request.source or (guest.host if guest else "unknown")
    memory = guest.memory if guest else 0
    asked, chosen = capabilities.to_json(), parameters.to_json()
    submission = Submission(
        request.migration, request.guest, source, request.destination, memory, asked, chosen, job=job
    )
    ledger.submit(submission, refusal)


def admit(ledger: Ledger, bell: Bell, unless_looked: float = 0.0) -> list[str]:
    """Admit whatever can be and ring for it; the migrations admitted. A ring that is lost is repeated by reconcile.

    `unless_looked`: leave it when somebody has done so within so many seconds.
    """
    admitted = ledger.admit(unless_looked)
    for migration in admitted:
        record = ledger.find(migration)
        if record is not None:
            for side in Side:
                bell.ring(record, side)
    return admitted


def cancel(ledger: Ledger, bell: Bell, migration: str) -> str:
    """Ask for the end of a migration; its state then: `cancelled`, or `cancelling` while its mover decides.

    Raises RefusedError (`unknown-migration`, `ended`), UnreachableError.
    """
    answer, state = ledger.cancel(migration, "It was cancelled before its source took it up.")
    match answer:
        case Answer.GONE:
            raise _unknown_migration(migration)
        case Answer.ENDED:
            raise RefusedError(f"{migration} is {state} already; there is nothing to cancel.", "ended")
        case Answer.CANCELLED:
            admit(ledger, bell)
            return "cancelled"
    return "cancelling"


def snapshot(ledger: Ledger, migration: str) -> MigrationRecord:
    """The record now. Raises RefusedError (`unknown-migration`), UnreachableError."""
    record = ledger.find(migration)
    if record is None:
        raise _unknown_migration(migration)
    return record


def watch(ledger: Ledger, migration: str, patience: float = PATIENCE) -> Iterator[MigrationRecord]:
    """The record now, after each change, and every 5 s without one, until it ended and both sides have let go.

    Rides out a Redis that is away, or that lost the record (a host's next heartbeat restores it), for `patience`
    seconds. Raises what `snapshot` raises.
    """
    waiter = ledger.waiting_on(migration)
    last = snapshot(ledger, migration)
    yield last
    while not last.settled:
        last = _ride_out(lambda: _next(ledger, waiter, migration), patience)
        yield last


def _next(ledger: Ledger, waiter: Waiter, migration: str) -> MigrationRecord:
    waiter.wait(5)
    return snapshot(ledger, migration)


def _ride_out(step: Callable[[], MigrationRecord], patience: float) -> MigrationRecord:
    deadline = monotonic() + patience
    while True:
        try:
            return step()
        except (UnreachableError, RefusedError):
            if monotonic() >= deadline:
                raise
            sleep(0.3)


def _known(ledger: Ledger, request: MigrateRequest) -> str:
    record = ledger.find(request.migration)
    if record is not None and (record.guest, record.destination.host) != (request.guest, request.destination):
        raise _other(request)
    return request.migration


def _taken_back(ledger: Ledger, record: MigrationRecord, job: str) -> str:
    """A move of `job` that Redis had lost, and that a host has written back without it."""
    submission = Submission(
        record.migration,
        record.guest,
        record.source.host,
        record.destination.host,
        record.memory,
        record.capabilities,
        record.parameters,
        job=job,
    )
    ledger.submit(submission)
    return record.migration


def _other(request: MigrateRequest) -> RequestError:
    return RequestError(f"The id {request.migration} belongs to another migration; choose a new one.")


def _unknown_migration(migration: str) -> RefusedError:
    return RefusedError(
        f"There is no migration {migration:.80}; `droveway list` shows what there is.", "unknown-migration"
    )
