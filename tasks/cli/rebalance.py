"""`droveway rebalance`: spread guests out, once."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from config.errors import RequestError
from config.names import nearest
from config.settings import Settings
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.plans import rebalance_json, rebalance_table
from tasks.planning.rebalancing import Policy
from tasks.rebalance import ask, planned
from tasks.scheduled import policy_of

_DEFAULT = Policy()


@click.command(cls=SettingsCommand)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what it gains.")
@click.option("--policy", metavar="NAME", help="How far, as this policy of the settings file says.")
@click.option(
    "--max-moves",
    type=click.IntRange(1),
    help=f"Moves of one plan, at most; default: the policy's, or {_DEFAULT.most_moves}.",
)
@json_option
@click.pass_context
def command(context: click.Context, plan_only: bool, policy: str | None, max_moves: int | None, as_json: bool) -> None:
    """Move guests from hosts that are fuller or busier to those that are less, as long as a move gains enough.

    Asks for the moves and returns; `droveway status --watch` follows them. Nobody who was moved within the last hour is
    moved again, and nothing is asked for while an evacuation needs the slots. With --policy that policy's target, least
    gain, most moves and cool-down count; its calendar, threshold and hold do not, because you have asked for it.

    \b
    Examples:
      droveway rebalance --plan
      droveway rebalance --max-moves 5 && droveway status --watch
      droveway rebalance --policy nightly --plan
    """
    invocation = invocation_of(context)
    chosen = _policy(invocation.settings, policy)
    with invocation.ledger() as ledger:
        plan = planned(ledger, replace(chosen, most_moves=max_moves or chosen.most_moves))
        asked = None if plan_only else ask(ledger, bell_for(invocation.settings), plan)
    if as_json:
        beside = {} if asked is None else {"migrations": dict(asked.migrations), "refused_now": dict(asked.refused)}
        click.echo(json.dumps(rebalance_json(plan) | beside))
        return
    show(rebalance_table(plan))
    if asked is not None:
        click.echo(f"{len(asked.migrations)} moves were asked for; follow them: droveway status --watch")
        for guest, why in asked.refused:
            click.echo(f"{guest} was refused: {why}", err=True)


def _policy(settings: Settings, name: str | None) -> Policy:
    if name is None:
        return _DEFAULT
    if name not in settings.rebalance:
        known = settings.rebalance
        raise RequestError(
            f"There is no policy {name!r:.80}{nearest(name, known) or '.'} `droveway policies` shows what there is."
        )
    return policy_of(settings.rebalance[name])
