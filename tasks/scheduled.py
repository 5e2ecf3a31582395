"""Guests spread out on a schedule: what a policy does at each moment of its calendar. The judgement is pure.

    beat ─► message ─► tick: which due moment is it? ─► one look at the fleet ─► judge_tick ─► written down, once
                                                                                 └─► plan_rebalance ─► a job

Any number of beats may send, and a message may come twice: a due moment is judged by whoever writes its judgement down
first. The job is begun after that, so at most once; should the worker die in between, the ticks that were counted above
the threshold still count, and the next one acts.
"""

from __future__ import annotations

import logging

from config.errors import RefusedError
from config.settings import RebalanceSettings
from tasks.bell import Bell
from tasks.jobs import JobRecord, Kind
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import Rebalance
from tasks.planning.cluster import Cluster
from tasks.planning.job import Fate
from tasks.planning.rebalancing import Policy, imbalance_of, judge_tick, plan_rebalance
from tasks.rebalance import DEADLINE, begin_moves

log = logging.getLogger("droveway.rebalance")

#: Seconds by which a beat's clock may be ahead of the server's: half of what lies between two moments at the least.
EARLY = 30.0


def policy_of(terms: RebalanceSettings) -> Policy:
    """What planning takes of a policy's settings."""
    return Policy(terms.threshold, terms.target, terms.hold, terms.least_gain, terms.most_moves, terms.cool_down)


def tick(ledger: Ledger, bell: Bell, message: Rebalance) -> None:
    """Judge the policy's latest due moment unless that was done, and begin to move guests where it is time to.

    Raises UnreachableError.
    """
    now = ledger.now()
    due = message.terms.calendar.due(now + EARLY)
    # A beat that is ahead means its due moment: else a window that opens with it would still be closed, every night.
    now = max(now, due)
    while (before := ledger.policies([message.policy])[message.policy]).due < due:
        jobs = [record for job in ledger.open_jobs() if (record := ledger.find_job(job))]
        cluster = ledger.cluster()
        imbalance = imbalance_of(cluster)
        found = judge_tick(
            imbalance,
            before.over,
            policy_of(message.terms),
            under_way=sum(_left(each) for each in jobs if each.kind is Kind.REBALANCE),
            evacuating=any(each.kind is not Kind.REBALANCE for each in jobs),
            window_open=message.terms.calendar.open(now),
        )
        over = before.over + 1 if found.act else found.over
        if ledger.judged(message.policy, before, due, over, imbalance, found.reason) is Answer.OK:
            log.info("%s: %s", message.policy, found.reason)
            if found.act:
                job, became = _act(ledger, bell, message, cluster, now)
                log.info("%s: %s", message.policy, became)
                # One that was refused has held all the same; any other begins to count anew.
                held = over if job is None else found.over
                ledger.acted(message.policy, due, held, job or "", f"{found.reason}: {became}")
            return
    log.debug("%s: this moment was judged already", message.policy)


def _act(ledger: Ledger, bell: Bell, message: Rebalance, cluster: Cluster, now: float) -> tuple[str | None, str]:
    """Begin the job ("": there is nothing to move; None: it was refused), and what became of it.

    The job begins no more moves once the window is closed.
    """
    plan = plan_rebalance(cluster, policy_of(message.terms), now)
    imbalance = plan.imbalance_before, plan.imbalance_after
    deadline = message.terms.calendar.stays_open(now, DEADLINE)
    reason = f"the policy {message.policy}"
    try:
        job = begin_moves(ledger, bell, plan.moves, imbalance, reason, deadline=deadline, policy=message.policy)
    except RefusedError as refusal:
        return None, str(refusal)
    if job is None:
        return "", f"nothing is to be moved, {plan.reason}"
    return job, f"{job} moves {len(plan.moves)} guests"


def _left(job: JobRecord) -> int:
    """Moves that have not ended; one at least, of a job that has not."""
    return max(1, job.count(Fate.MOVING, Fate.WAITING))
