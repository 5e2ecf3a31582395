"""`droveway cancel`: end a migration before its guest is given away."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.requests import cancel


@click.command(cls=SettingsCommand)
@click.argument("migration")
@json_option
@click.pass_context
def command(context: click.Context, migration: str, as_json: bool) -> None:
    """End MIGRATION; its guest goes on at the source.

    Asks and returns. Once the guest was given away it is too late: then the move goes on to its end.

    \b
    Example:
      droveway cancel m-0123456789abcdef && droveway status m-0123456789abcdef --watch
    """
    invocation = invocation_of(context)
    with invocation.ledger() as ledger:
        state = cancel(ledger, bell_for(invocation.settings), migration)
    if as_json:
        click.echo(json.dumps({"migration": migration, "state": state}))
    else:
        click.echo(f"{migration} is {state}")
