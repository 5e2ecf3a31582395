"""`droveway cordon`: no guest comes to a host any more."""

from __future__ import annotations

import json

import click

from config.names import check_name
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.pinning import expires_option, pin
from tasks.records import Kept


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--message", required=True, metavar="TEXT", help="Why; whoever is refused reads it.")
@expires_option
@click.option("--replace", is_flag=True, help="In place of what somebody else said of it.")
@json_option
@click.pass_context
def command(
    context: click.Context, hosts: tuple[str, ...], message: str, expires: float | None, replace: bool, as_json: bool
) -> None:
    """Let no guest come to HOST; those that are there stay, and may leave.

    What is queued to come, or only prepares, ends as failed, `cordoned`; what is moving there goes on to its end.

    \b
    Examples:
      droveway cordon alpha beta --message "memory is replaced on Tuesday"
      droveway uncordon alpha
    """
    names = [check_name("host", host) for host in hosts]
    with invocation_of(context).ledger() as ledger:
        said = [pin(ledger, Kept.CORDON, name, message, expires, replace=replace) for name in names]
    if as_json:
        click.echo(json.dumps({"cordoned": [each.to_json() for each in said]}))
    else:
        click.echo(f"{', '.join(names)}: no guest comes here any more: {said[0].reason}")
