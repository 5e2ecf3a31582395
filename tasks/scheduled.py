"""Guests spread out on a schedule: what a policy does at each moment of its calendar. The judgement is pure.

    beat ─► message ─► tick: which due moment is it? ─► one look at the fleet ─► judge_tick ─► written down, once
                                                                                 └─► plan_rebalance ─► asked for

Any number of beats may send, and a message may come twice: a due moment is judged by whoever writes its judgement down
first. Moves are asked for after that, so at most once; should the worker die in between, the ticks that were counted
above the threshold still count, and the next one acts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from config.errors import RefusedError
from config.settings import RebalanceSettings
from tasks.bell import Bell
from tasks.ledger.ledger import Answer, Ledger
from tasks.messages import Rebalance
from tasks.planning.rebalancing import Policy, RebalancePlan, imbalance_of, judge_tick, plan_rebalance
from tasks.rebalance import ask
from tasks.records import MigrationRecord, Priority

log = logging.getLogger("droveway.rebalance")

#: Seconds by which a beat's clock may be ahead of the server's: half of what lies between two moments at the least.
EARLY = 30.0


def policy_of(terms: RebalanceSettings) -> Policy:
    """What planning takes of a policy's settings."""
    return Policy(terms.threshold, terms.target, terms.hold, terms.least_gain, terms.most_moves, terms.cool_down)


def tick(ledger: Ledger, bell: Bell, message: Rebalance) -> None:
    """Judge the policy's latest due moment unless that was done, and ask for moves where it is time to.

    Raises UnreachableError.
    """
    now = ledger.now()
    due = message.terms.calendar.due(now + EARLY)
    while (before := ledger.policies([message.policy])[message.policy]).due < due:
        cluster, under_way = ledger.cluster(), ledger.open()
        policy, imbalance = policy_of(message.terms), imbalance_of(cluster)
        found = judge_tick(
            imbalance,
            before.over,
            policy,
            under_way=sum(_of_a_policy(each) and not each.ended for each in under_way),
            evacuating=bool(ledger.open_jobs()),
            window_open=message.terms.calendar.open(now),
        )
        over = before.over + 1 if found.act else found.over
        if ledger.judged(message.policy, before, due, over, imbalance, found.reason) is Answer.OK:
            log.info("%s: %s", message.policy, found.reason)
            if found.act:
                moves, became = _act(ledger, bell, plan_rebalance(cluster, policy, now))
                log.info("%s: %s", message.policy, became)
                ledger.acted(message.policy, due, moves, f"{found.reason}: {became}")
            return
    log.debug("%s: this moment was judged already", message.policy)


def give_way(ledger: Ledger, under_way: Iterable[MigrationRecord]) -> bool:
    """An evacuation needs the slots: cancel what policies asked for and is still queued; whether there was any.

    Raises UnreachableError.
    """
    queued = [each.migration for each in under_way if _of_a_policy(each) and each.state == "queued"]
    for migration in queued:
        ledger.cancel(migration, "It gave way to an evacuation.")
    return bool(queued)


def _act(ledger: Ledger, bell: Bell, plan: RebalancePlan) -> tuple[int, str]:
    """Ask for the plan's moves, behind everything that somebody waits for; how many, and what became of it."""
    if not plan.moves:
        return 0, f"nothing is to be moved, {plan.reason}"
    try:
        asked = ask(ledger, bell, plan, Priority.SCHEDULED)
    except RefusedError as refusal:
        return 0, str(refusal)
    refused = f", {len(asked.refused)} were refused" if asked.refused else ""
    return len(asked.migrations), f"{len(asked.migrations)} moves were asked for{refused}"


def _of_a_policy(record: MigrationRecord) -> bool:
    return record.priority == Priority.SCHEDULED
