"""`droveway hosts`: the fleet's hosts."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.tables import hosts


@click.command(cls=SettingsCommand)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the hosts that workers speak for: what they have left, and how many migrations they take part in.

    \b
    Examples:
      droveway hosts
      droveway hosts --json | jq '.hosts[] | {host, free_bytes}'
    """
    with invocation_of(context).ledger() as ledger:
        fleet = ledger.fleet()
    if as_json:
        guests = [guest.to_json() for guest in fleet.guests.values()]
        pins = [pin.to_json() for pin in fleet.pins.values()]
        there = [host.to_json() for host in fleet.hosts.values()]
        click.echo(json.dumps({"hosts": there, "guests": guests, "blockers": pins}))
    elif fleet.hosts:
        show(hosts(fleet))
    else:
        click.echo("no worker speaks for any host; start `droveway worker` on each")
