"""`droveway blocker`: what operators keep where it is, a guest or a whole host."""

from __future__ import annotations

import json

import click

from config.errors import RefusedError
from tasks.cli.invocation import SettingsGroup, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.pinning import expires_option, kept_and_name, pin, unpin
from tasks.cli.rendering.tables import pins
from tasks.records import Kept

_KEPT = click.argument("kept", type=click.Choice([Kept.GUEST.value, Kept.HOST.value]), metavar="guest|host")


@click.group(cls=SettingsGroup)
def command() -> None:
    """Keep a guest or a host out of every migration, for a reason that others can read, until it expires.

    A pinned guest stays where it is. A pinned host keeps its guests and takes none (`droveway cordon` only keeps new
    ones away). What is queued already, or only prepares, ends as failed, `pinned`; what is moving goes on to its end.

    What hosts themselves find to be in a guest's way, `droveway check` says.
    """


@command.command()
@_KEPT
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; whoever is refused reads it.")
@expires_option
@click.option("--replace", is_flag=True, help="In place of what somebody else said of it.")
@json_option
@click.pass_context
def add(
    context: click.Context, kept: str, name: str, reason: str, expires: float | None, replace: bool, as_json: bool
) -> None:
    """Keep the guest or host NAME where it is.

    \b
    Examples:
      droveway blocker add guest billing --reason "licence is bound to the host"
      droveway blocker add host alpha --reason "firmware under test" --expires 2h
    """
    with invocation_of(context).ledger() as ledger:
        said = pin(ledger, *kept_and_name(kept, name), reason, expires, replace=replace)
    click.echo(json.dumps(said.to_json()) if as_json else f"{kept} {name} is pinned: {said.reason}")


@command.command(name="del")
@_KEPT
@click.argument("name")
@json_option
@click.pass_context
def delete(context: click.Context, kept: str, name: str, as_json: bool) -> None:
    """Let the guest or host NAME move again.

    \b
    Example:
      droveway blocker del guest billing
    """
    with invocation_of(context).ledger() as ledger:
        if not unpin(ledger, *kept_and_name(kept, name)):
            raise RefusedError(f"{kept} {name} is not pinned; `droveway blocker list` shows what is.", "not-pinned")
    click.echo(json.dumps({"kept": kept, "name": name}) if as_json else f"{kept} {name} may move again")


@command.command(name="list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """What is kept where it is, cordoned hosts included: since when, until when, and why."""
    with invocation_of(context).ledger() as ledger:
        found = sorted(ledger.fleet().pins.values(), key=lambda each: (each.kept, each.name))
    if as_json:
        click.echo(json.dumps({"blockers": [each.to_json() for each in found]}))
    elif found:
        show(pins(found))
    else:
        click.echo("nothing is pinned and no host is cordoned")
