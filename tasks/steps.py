"""Jobs under way: taken one step further, cancelled. The judgement is tasks.planning's.

    job in Redis ─► the fleet, the moves so far ─► step (pure) ─► submit · cancel · admit and ring ─► job in Redis

Anybody may take steps, any number at once, and die at any instant: a step only looks at what is there, its moves have
ids that do not depend on who asks, and each is checked again by admission. Every host's workers take them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import cache

from config.errors import HostError, NewerReleaseError, RefusedError, RequestError
from tasks.bell import Bell
from tasks.inventory.live import cluster
from tasks.jobs import Asked, JobRecord, attempts_of
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import MigrateRequest
from tasks.planning import evacuating, relocating
from tasks.planning.cluster import Cluster
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import Solver
from tasks.planning.job import Attempt, Step
from tasks.records import Fleet
from tasks.requests import admit, record_refused, submit

log = logging.getLogger("droveway.jobs")

#: Seconds between two steps of one job, at least; and so many times what the last one took, so that planning for a
#: large fleet does not keep Redis busy.
BETWEEN_STEPS, _TIMES_A_STEP = 1.0, 4.0
#: Seconds after which a host that nobody speaks for is not waited for any more, neither by jobs nor for what is counted
#: on shared links: a reboot takes less.
SILENCE = 600.0
#: Seconds for which nobody else takes a step while a solver looks for places: all would look for the same ones.
_SOLVING = 60.0
#: Admission's refusals that planning does not know of and no later step ends: each is an attempt that failed.
_LASTING = frozenset({"capability", "memory-lock"})

#: Jobs under way that only a newer release can read. Whoever cannot take their steps must not take their turns either.
_NEWER: set[str] = set()


def take_steps(ledger: Ledger, bell: Bell) -> bool:
    """A step of every job under way of which nobody has just taken one; whether there is any.

    What only a newer release can read is left to its workers. Raises UnreachableError.
    """
    jobs = [job for job in ledger.open_jobs() if job not in _NEWER]
    for job in jobs:
        take_step(ledger, bell, job)
    return bool(jobs)


def take_step(ledger: Ledger, bell: Bell, job: str) -> None:
    """One step, unless somebody has just taken one. Raises UnreachableError."""
    if not ledger.turn(job, BETWEEN_STEPS):
        return
    began = time.monotonic()
    try:
        record = ledger.find_job(job)
    except NewerReleaseError as error:
        log.warning("%s", error)
        _NEWER.add(job)
        return
    if record is None or record.ended:
        return
    solving = isinstance(record.asked, Evacuation) and record.asked.solver is not Solver.GREEDY
    if solving:
        ledger.turn(job, _SOLVING, again=True)
    _take(ledger, bell, record)
    pause = (time.monotonic() - began) * _TIMES_A_STEP
    if solving or pause > BETWEEN_STEPS:
        ledger.turn(job, max(BETWEEN_STEPS, pause), again=True)


def check_solver(solver: Solver) -> None:
    """Raises HostError for a solver that is not installed here."""
    if solver is Solver.CP_SAT and not _ortools():
        raise HostError(
            "The solver cp-sat needs OR-Tools, which is not installed here; install it (pip install 'droveway[cp-sat]',"
            " or pip install ortools), or leave --solver out."
        )


@cache
def _ortools() -> bool:
    try:
        import ortools.sat.python.cp_model  # noqa: F401, PLC0415 - an extra: looked for where it is asked for
    except ImportError:
        return False
    return True


@cache
def _say_greedy(job: str) -> None:
    log.warning("%s asks for the solver cp-sat; OR-Tools is not installed here, its steps are planned greedily", job)


def cancel(ledger: Ledger, bell: Bell, job: str) -> str:
    """Ask for the end of a job; its state then. Its moves are cancelled where that is still possible.

    Raises RefusedError (`unknown-job`, `ended`), UnreachableError.
    """
    answer, state = ledger.cancel_job(job)
    if answer is Answer.GONE:
        raise unknown(job)
    if answer is Answer.ENDED:
        raise RefusedError(f"{job} is {state} already; there is nothing to cancel.", "ended")
    record = snapshot(ledger, job)
    if not record.ended:
        _take(ledger, bell, record)
    return str(snapshot(ledger, job).state)


def snapshot(ledger: Ledger, job: str) -> JobRecord:
    """The job now. Raises RefusedError (`unknown-job`), UnreachableError."""
    record = ledger.find_job(job)
    if record is None:
        raise unknown(job)
    return record


def unknown(job: str) -> RefusedError:
    """No such job."""
    return RefusedError(f"There is no job {job:.80}; `droveway history` shows what there is.", "unknown-job")


def _take(ledger: Ledger, bell: Bell, record: JobRecord) -> None:
    # The fleet is read last: a move that ends meanwhile is then still under way for this step, and no guest is taken
    # for one that waits because its move was over before it was looked at.
    moves, under_way, fleet = ledger.moves_of(record), ledger.open(), ledger.fleet()
    now = ledger.now()
    found = _step(record.asked, cluster(fleet, under_way, now), attempts_of(moves), now, _silent(fleet, now))
    _submit(ledger, found, fleet, record)
    ending = [each.migration for each in moves if each.guest in found.cancels and not each.ended]
    for migration in ending:
        ledger.cancel(
            migration,
            f"{record.job} takes it back: the job was cancelled, gives way or is past its deadline, or the move waits"
            " for a host that is silent.",
        )
    if found.asks or ending:
        admit(ledger, bell)
    answer, detail = ledger.note_job(record.job, found)
    if answer is Answer.OCCUPIED:
        log.info("%s is not at its end yet: %s", record.job, detail)


def _step(asked: Asked, found: Cluster, attempts: list[Attempt], now: float, silent: frozenset[str]) -> Step:
    if isinstance(asked, Evacuation):
        if asked.solver is Solver.CP_SAT and not _ortools():
            _say_greedy(asked.job)
            asked = replace(asked, solver=Solver.GREEDY)
        return evacuating.step(asked, found, attempts, now, silent)
    return relocating.step(asked, found, attempts, now, silent)


def _silent(fleet: Fleet, now: float) -> frozenset[str]:
    """Hosts that no worker has spoken for in so long that it is more than one that starts again."""
    seen: dict[str, float] = {}
    for guest in fleet.guests.values():
        seen[guest.host] = max(seen.get(guest.host, 0.0), guest.seen or now)
    return frozenset(
        host
        for host, last in seen.items()
        if now - last > SILENCE and not (host in fleet.hosts and fleet.hosts[host].alive)
    )


def _submit(ledger: Ledger, found: Step, fleet: Fleet, record: JobRecord) -> None:
    """Ask for what is next. What the fleet no longer allows is left to the next step, which plans on what is there."""
    # What a policy asks for does not wait beyond its window.
    expires = record.asked.deadline if record.order.policy else None
    for ask in found.asks:
        request = MigrateRequest(
            migration=ask.migration,
            guest=ask.move.guest,
            source=ask.move.source,
            destination=ask.move.destination,
            expires=expires,
        )
        try:
            submit(ledger, request, fleet, record.job, record.order.priority)
        except (RequestError, RefusedError) as refusal:
            log.info("%s: %s: %s", record.job, ask.move.guest, refusal)
            if isinstance(refusal, RefusedError) and refusal.reason in _LASTING:
                record_refused(ledger, request, refusal, record.job)
