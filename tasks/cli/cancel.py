"""`droveway cancel`: end a migration before its guest is given away, or a job."""

from __future__ import annotations

import json

import click

from tasks import steps
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.requests import cancel


@click.command(cls=SettingsCommand)
@click.argument("what", metavar="MIGRATION|JOB")
@json_option
@click.pass_context
def command(context: click.Context, what: str, as_json: bool) -> None:
    """End MIGRATION, its guest goes on at the source; or JOB, and with it its moves.

    A job is an evacuation, a rebalancing or a restore.

    Asks and returns. Once the guest was given away it is too late: then the move goes on to its end.

    The hosts of an evacuation stay cordoned: `droveway restore` opens them again.

    \b
    Examples:
      droveway cancel m-0123456789abcdef && droveway status m-0123456789abcdef --watch
      droveway cancel e-0123456789abcdef && droveway show e-0123456789abcdef --watch
    """
    invocation = invocation_of(context)
    with invocation.ledger() as ledger:
        bell = bell_for(invocation.settings)
        is_job = ledger.find_job(what) is not None
        state = steps.cancel(ledger, bell, what) if is_job else cancel(ledger, bell, what)
    if as_json:
        click.echo(json.dumps({"job" if is_job else "migration": what, "state": state}))
    else:
        click.echo(f"{what} is {state}")
