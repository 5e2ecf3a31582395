"""Spreading guests out, once: a plan on the fleet of this moment, and the job that makes its moves. The judgement is
pure; `steps` carries the job on.

    planned ─► a plan to look at, keep, or begin ─► begin_moves ─► a job, whose every move is judged again
"""

from __future__ import annotations

from collections.abc import Sequence

from config.errors import RefusedError
from tasks.bell import Bell
from tasks.jobs import Kind, Order, new_job_id
from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.moves import Move
from tasks.planning.rebalancing import Policy, RebalancePlan, plan_rebalance
from tasks.planning.relocating import Relocation
from tasks.steps import take_step

#: Seconds after which nothing more of a plan is begun: the figures that it was made on are long past then.
DEADLINE = 3600.0


def planned(ledger: Ledger, policy: Policy) -> RebalancePlan:
    """The moves that would even the fleet out, as it is now. Raises UnreachableError."""
    found = ledger.cluster()
    return plan_rebalance(found, policy, found.taken)


def begin_moves(
    ledger: Ledger,
    bell: Bell,
    moves: Sequence[Move],
    imbalance: tuple[float, float],
    message: str,
    *,
    most_at_once: int = 0,
    deadline: float = DEADLINE,
    policy: str = "",
) -> str | None:
    """Begin the job that makes these moves, those that gain most first; its id, or None when there is none to make.

    `imbalance`: before and after them, as planned; `deadline` in seconds from now; `policy`: whose tick begins it.
    Raises RefusedError (`evacuating`, `busy`: another job needs the slots), UnreachableError.
    """
    if jobs := ledger.open_jobs():
        raise _needs_the_slots(ledger, jobs[0])
    if not moves:
        return None
    job = new_job_id(Kind.REBALANCE)
    asked = Relocation(job, tuple(moves), most_at_once=most_at_once, deadline=ledger.now() + deadline)
    answer, other = ledger.begin_job(Order(Kind.REBALANCE, asked, message, imbalance, policy))
    if answer is Answer.BUSY:  # it was begun since
        raise _needs_the_slots(ledger, other)
    take_step(ledger, bell, job)
    return job


def _needs_the_slots(ledger: Ledger, job: str) -> RefusedError:
    record = ledger.find_job(job)
    evacuating = record is not None and record.kind is Kind.EVACUATION
    return RefusedError(
        f"{job} {'empties hosts' if evacuating else 'moves guests'} and needs the slots; rebalance when it has ended"
        f" (`droveway show {job} --watch`).",
        "evacuating" if evacuating else "busy",
    )
