"""`droveway list`: migrations, the latest first."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, count_option, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.tables import migrations


@click.command(cls=SettingsCommand)
@count_option
@json_option
@click.pass_context
def command(context: click.Context, count: int, as_json: bool) -> None:
    """List migrations, the latest first, ended ones included.

    \b
    Examples:
      droveway list
      droveway list --all --json | jq '.migrations[] | select(.state == "failed") | .message'
    """
    with invocation_of(context).ledger() as ledger:
        moves = [Facts.of(record) for record in ledger.history(count)]
    if as_json:
        click.echo(json.dumps({"migrations": [facts.to_json() for facts in moves]}))
    elif moves:
        show(migrations(moves))
    else:
        click.echo("there was no migration yet; `droveway migrate GUEST --to HOST` asks for one")
