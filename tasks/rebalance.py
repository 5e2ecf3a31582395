"""One rebalancing by hand: plan on the fleet of this moment, ask for the plan's moves. The judgement is pure.

What it asks for are migrations like any others: admission looks at each again, and nothing is lost when this ends in
the middle. Planning again counts what is under way where it will be, so that asking twice moves nobody twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.errors import RefusedError
from tasks.bell import Bell
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.planning.rebalancing import Policy, RebalancePlan, plan_rebalance
from tasks.records import Priority
from tasks.requests import admit, submit


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a plan's moves: guest → migration, and guest → why it was refused now."""

    migrations: Sequence[tuple[str, str]]
    refused: Sequence[tuple[str, str]]


def planned(ledger: Ledger, policy: Policy) -> RebalancePlan:
    """The moves that would even the fleet out, as it is now. Raises UnreachableError."""
    found = ledger.cluster()
    return plan_rebalance(found, policy, found.taken)


def ask(ledger: Ledger, bell: Bell, plan: RebalancePlan, priority: Priority = Priority.REBALANCE) -> Asked:
    """Ask for the moves, those that gain most first.

    Raises RefusedError (`evacuating`: an evacuation needs the slots), UnreachableError.
    """
    if jobs := ledger.open_jobs():
        raise RefusedError(
            f"{jobs[0]} is emptying hosts and needs the slots; rebalance when it has ended (`droveway show {jobs[0]}"
            " --watch`).",
            "evacuating",
        )
    migrations, refused, fleet = [], [], ledger.fleet()
    for move in plan.moves:
        request = MigrateRequest(
            migration=new_migration_id(), guest=move.guest, source=move.source, destination=move.destination
        )
        try:
            migrations.append((move.guest, submit(ledger, request, fleet, priority=priority)))
        except RefusedError as refusal:
            refused.append((move.guest, str(refusal)))
    admit(ledger, bell)
    return Asked(migrations, refused)
