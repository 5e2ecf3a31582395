"""`droveway show`: everything about one migration."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.tables import full
from tasks.requests import snapshot


@click.command(cls=SettingsCommand)
@click.argument("migration")
@json_option
@click.pass_context
def command(context: click.Context, migration: str, as_json: bool) -> None:
    """Everything about MIGRATION: what was asked and chosen, each round with its verdict, how both sides ended.

    \b
    Examples:
      droveway show m-0123456789abcdef
      droveway show m-0123456789abcdef --json | jq .rounds
    """
    with invocation_of(context).ledger() as ledger:
        facts = Facts.of(snapshot(ledger, migration))
    if as_json:
        click.echo(json.dumps(facts.to_json()))
    else:
        show(full(facts))
