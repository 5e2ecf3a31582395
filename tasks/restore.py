"""Giving a host back after its maintenance: open to guests again, and the guests that left it brought back.

Which those are, the records of its evacuations say. `steps` carries the job on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from config.errors import RefusedError
from tasks.bell import Bell
from tasks.jobs import JobRecord, Kind, Order, new_job_id
from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import Fate
from tasks.planning.relocating import Relocation
from tasks.planning.returning import Return, plan_return
from tasks.records import Kept
from tasks.steps import take_step

#: Jobs that are looked through, the latest first.
_JOBS = 1000


def planned(ledger: Ledger, hosts: Iterable[str]) -> Return:
    """Who left these hosts and could be brought back now. Raises RefusedError (`evacuating`), UnreachableError."""
    names = sorted(hosts)
    _check_not_evacuating(ledger, names)
    jobs, pins = ledger.jobs(_JOBS), ledger.fleet().pins
    homes: dict[str, str] = {}
    for host in names:
        cordon = pins.get((Kept.CORDON, host))
        homes |= dict.fromkeys(moved_from(host, jobs, cordon.since if cordon else None), host)
    return plan_return(ledger.cluster(), names, homes)


def open_hosts(ledger: Ledger, hosts: Iterable[str]) -> list[str]:
    """Let guests come to these hosts again; those that were cordoned. Raises RefusedError (`evacuating`)."""
    names = sorted(hosts)
    _check_not_evacuating(ledger, names)
    return [name for name in names if ledger.unpin(Kept.CORDON, name) is Answer.OK]


def begin_return(ledger: Ledger, bell: Bell, plan: Return, message: str, *, most_at_once: int = 0) -> str | None:
    """Open the plan's hosts and begin the job that brings guests back; its id, or None when nobody is to come.

    Guests that a rule refuses now belong to the job as well: it says why they stay away, or waits for what passes.
    Raises RefusedError (`evacuating`, `busy`, `unknown-host`), UnreachableError.
    """
    if not plan.wanted:
        open_hosts(ledger, plan.hosts)
        return None
    job = new_job_id(Kind.RESTORE)
    asked = Relocation(job, plan.wanted, frozenset(plan.hosts), most_at_once=most_at_once)
    answer, detail = ledger.begin_job(Order(Kind.RESTORE, asked, message))
    match answer:
        case Answer.UNKNOWN:
            raise RefusedError(
                f"No host {detail} is known: start `droveway worker` there, or leave --bring-back out.",
                "unknown-host",
            )
        case Answer.BUSY:
            record = ledger.find_job(detail)
            if record is None or record.kind is Kind.EVACUATION:
                raise _evacuating(detail, plan.hosts)
            raise RefusedError(
                f"{detail} brings guests back to one of these hosts already; follow it (`droveway show {detail}"
                f" --watch`), or end it (`droveway cancel {detail}`) first.",
                "busy",
            )
    take_step(ledger, bell, job)
    return job


def moved_from(host: str, jobs: Iterable[JobRecord], closed_since: float | None) -> Mapping[str, str]:
    """Guest → the evacuation that moved it away from `host`, the latest one if there are several.

    Of the evacuations (`jobs`, newest first) those count that lie within the time for which the host has been closed
    now (`closed_since`): one that was cancelled and asked for again is one maintenance. Of a host that is open again,
    the latest one counts.
    """
    found: dict[str, str] = {}
    for record in jobs:
        if not isinstance(record.asked, Evacuation) or host not in record.asked.hosts:
            continue
        if closed_since is not None and (record.finished or record.created) < closed_since:
            break
        only = next(iter(record.asked.hosts)) if len(record.asked.hosts) == 1 else ""
        for name, each in record.guests.items():
            if each.fate is Fate.MOVED and (each.home or only) == host:
                found.setdefault(name, record.job)
        if closed_since is None:
            break
    return found


def _check_not_evacuating(ledger: Ledger, hosts: Sequence[str]) -> None:
    for job in ledger.open_jobs(Kind.EVACUATION):
        record = ledger.find_job(job)
        if record is not None and (found := record.asked.hosts & set(hosts)):
            raise _evacuating(job, sorted(found))


def _evacuating(job: str, hosts: Sequence[str]) -> RefusedError:
    return RefusedError(
        f"{job} is emptying {', '.join(hosts)}; end it first (`droveway cancel {job}`), then restore.", "evacuating"
    )
