"""`droveway rebalance`: spread guests out, once."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tasks.cli.inventory import check_only_planned, cluster_of, fleet_options
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.plans import rebalance_json, rebalance_table
from tasks.planning.rebalancing import Policy, plan_rebalance
from tasks.rebalance import ask, planned

_DEFAULT = Policy()


@click.command(cls=SettingsCommand)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what it gains.")
@fleet_options
@click.option(
    "--max-moves",
    type=click.IntRange(1),
    default=_DEFAULT.most_moves,
    show_default=True,
    help="Moves of one plan: what was planned on figures long past is not worth making.",
)
@json_option
@click.pass_context
def command(
    context: click.Context, plan_only: bool, path: Path | None, line: str | None, max_moves: int, as_json: bool
) -> None:
    """Move guests from hosts that are fuller or busier to those that are less, as long as a move gains enough.

    Asks for the moves and returns; `droveway status --watch` follows them. Nobody who was moved within the last hour is
    moved again, and nothing is asked for while an evacuation needs the slots.

    \b
    Examples:
      droveway rebalance --plan
      droveway rebalance --plan --file fleet.txt
      droveway rebalance --max-moves 5 && droveway status --watch
    """
    check_only_planned(path, line, plan_only=plan_only)
    invocation, policy, asked = invocation_of(context), Policy(most_moves=max_moves), None
    if plan_only:
        found = cluster_of(invocation, path, line)
        plan = plan_rebalance(found, policy, found.taken)
    else:
        with invocation.ledger() as ledger:
            plan = planned(ledger, policy)
            asked = ask(ledger, bell_for(invocation.settings), plan)
    if as_json:
        beside = {} if asked is None else {"migrations": dict(asked.migrations), "refused_now": dict(asked.refused)}
        click.echo(json.dumps(rebalance_json(plan) | beside))
        return
    show(rebalance_table(plan))
    if asked is not None:
        click.echo(f"{len(asked.migrations)} moves were asked for; follow them: droveway status --watch")
        for guest, why in asked.refused:
            click.echo(f"{guest} was refused: {why}", err=True)
