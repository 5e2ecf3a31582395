"""`droveway uncordon`: guests may come to a host again."""

from __future__ import annotations

import json

import click

from config.errors import RefusedError
from config.names import check_name
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.pinning import unpin
from tasks.records import Kept


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@json_option
@click.pass_context
def command(context: click.Context, hosts: tuple[str, ...], as_json: bool) -> None:
    """Let guests come to HOST again."""
    names = [check_name("host", host) for host in hosts]
    with invocation_of(context).ledger() as ledger:
        done = [name for name in names if unpin(ledger, Kept.CORDON, name)]
    if not done:
        raise RefusedError(
            f"{', '.join(names)}: not cordoned; `droveway blocker list` shows which hosts are.", "not-cordoned"
        )
    click.echo(json.dumps({"uncordoned": done}) if as_json else f"{', '.join(done)}: guests may come again")
