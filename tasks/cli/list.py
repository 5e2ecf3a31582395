"""`droveway list`: migrations, the latest first."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.tables import migrations

_LATEST = 20
#: All of a month's on a busy fleet; more than that is a job for the history's own store.
_ALL = 100_000


@click.command(cls=SettingsCommand)
@click.option("--all", "everything", is_flag=True, help=f"All that are remembered, not only the latest {_LATEST}.")
@json_option
@click.pass_context
def command(context: click.Context, everything: bool, as_json: bool) -> None:
    """List migrations, the latest first, ended ones included.

    \b
    Examples:
      droveway list
      droveway list --all --json | jq '.migrations[] | select(.state == "failed") | .message'
    """
    with invocation_of(context).ledger() as ledger:
        moves = [Facts.of(record) for record in ledger.history(_ALL if everything else _LATEST)]
    if as_json:
        click.echo(json.dumps({"migrations": [facts.to_json() for facts in moves]}))
    elif moves:
        show(migrations(moves))
    else:
        click.echo("there was no migration yet; `droveway migrate GUEST --to HOST` asks for one")
