"""`droveway rebalance`: spread guests out, once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from config.errors import RequestError
from config.names import nearest
from config.settings import Settings
from tasks.cli.inventory import check_only_planned, cluster_of, fleet_options
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.job_following import apply_option, carry_on, parallel_option, wait_option
from tasks.cli.output import show
from tasks.cli.pinning import DURATION, check_known, check_reason
from tasks.cli.rendering.plans import rebalance_json, rebalance_table
from tasks.ledger.ledger import Ledger
from tasks.plan_file import MAX_BYTES, read_rebalance
from tasks.planning.moves import Move
from tasks.planning.rebalancing import Policy, plan_rebalance
from tasks.rebalance import DEADLINE, begin_moves, planned
from tasks.scheduled import policy_of

_DEFAULT = Policy()


@click.command(cls=SettingsCommand)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what it gains.")
@click.option("--policy", "named", metavar="NAME", help="Plan as far as this policy of the settings file says.")
@fleet_options
@apply_option
@click.option(
    "--max-moves",
    type=click.IntRange(1),
    metavar="N",
    help=f"Moves of one plan, at most; default: the policy's, or {_DEFAULT.most_moves}.",
)
@click.option("--message", default="rebalance", metavar="TEXT", help="Why; the history says so.")
@click.option(
    "--deadline", type=DURATION, default=DEADLINE, metavar="TIME", help="Nothing more is begun after that: 1h."
)
@parallel_option
@wait_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    plan_only: bool,
    named: str | None,
    path: Path | None,
    line: str | None,
    kept: BinaryIO | None,
    max_moves: int | None,
    message: str,
    deadline: float | None,
    most_at_once: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Move guests from hosts that are fuller or busier to those that are less, as long as a move gains enough.

    Nobody who was moved within the last hour is moved again. It is refused while another job needs the slots, and once
    an evacuation begins it asks for no more moves. The workers carry it on by themselves: Ctrl-C only ends the
    following. Exit code 0 means that every guest is where it was to be.

    With --apply exactly the moves of that plan are made, each only if the rules still allow it. With --policy that
    policy's target, least gain, most moves and cool-down count; its calendar, threshold and hold do not, because you
    have asked for it.

    \b
    Examples:
      droveway rebalance --plan
      droveway rebalance --plan --file fleet.txt
      droveway rebalance --max-moves 5
      droveway rebalance --policy nightly --plan
      droveway rebalance --plan --json > plan.json && droveway rebalance --apply plan.json --detach
    """
    reason = check_reason(message)
    check_only_planned(path, line, plan_only=plan_only)
    if kept and (plan_only or max_moves or named):
        raise RequestError(
            "--apply follows a plan that is there, --plan, --max-moves and --policy make one; give one of them"
        )
    before = read_rebalance(kept.read(MAX_BYTES + 1)) if kept else None
    invocation = invocation_of(context)
    policy = _policy(invocation.settings, named) if named else _DEFAULT
    policy = replace(policy, most_moves=max_moves or policy.most_moves)
    if plan_only:
        found = cluster_of(invocation, path, line)
        plan = plan_rebalance(found, policy, found.taken)
        click.echo(json.dumps(rebalance_json(plan))) if as_json else show(rebalance_table(plan))
        return
    with invocation.ledger() as ledger:
        if before:
            moves, why = tuple(each.move for each in before.moves), before.reason
            imbalance = before.imbalance_before, before.imbalance_after
            _check_known(ledger, moves)
        else:
            plan = planned(ledger, policy)
            moves, why, imbalance = plan.moves, plan.reason, (plan.imbalance_before, plan.imbalance_after)
        bell = bell_for(invocation.settings)
        job = begin_moves(
            ledger, bell, moves, imbalance, reason, most_at_once=most_at_once or 0, deadline=deadline or DEADLINE
        )
        if job is not None:
            carry_on(ledger, bell, job, wait=wait, as_json=as_json)
        elif as_json:
            click.echo(json.dumps({"job": None, "reason": why}))
        else:
            click.echo(f"nothing is to be moved: {why}")


def _policy(settings: Settings, name: str) -> Policy:
    known = settings.rebalance
    if name not in known:
        hint = nearest(name, known) or "."
        raise RequestError(f"There is no policy {name!r:.80}{hint} `droveway policies` shows what there is.")
    return policy_of(known[name])


def _check_known(ledger: Ledger, moves: Sequence[Move]) -> None:
    """A host that was mistyped would be waited for, and a guest taken for one that is gone."""
    fleet = ledger.fleet()
    for move in moves:
        check_known("guest", move.guest, fleet.guests)
        for host in (move.source, move.destination):
            check_known("host", host, fleet.hosts)
