"""`droveway status`: how far migrations are."""

from __future__ import annotations

import json
import time

import click
from rich.console import Group, RenderableType
from rich.live import Live

from tasks.cli.following import ending, follow, going_on
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import console, progress_console, show
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.live import live
from tasks.cli.rendering.tables import summary
from tasks.ledger.ledger import Ledger
from tasks.requests import snapshot


@click.command(cls=SettingsCommand)
@click.argument("migration", required=False)
@click.option("--watch", is_flag=True, help="Follow it to its end; without MIGRATION: all, until Ctrl-C.")
@json_option
@click.pass_context
def command(context: click.Context, migration: str | None, watch: bool, as_json: bool) -> None:
    """How far MIGRATION is, or all that are under way.

    With --watch the exit code is that of the migration's end, as with `droveway migrate`.

    \b
    Examples:
      droveway status
      droveway status m-0123456789abcdef --watch
    """
    with invocation_of(context).ledger() as ledger:
        if migration is None:
            _all(ledger, watch=watch, as_json=as_json)
        elif watch:
            _followed(ledger, migration, as_json=as_json)
        else:
            _one(Facts.of(snapshot(ledger, migration)), as_json=as_json)


def _one(facts: Facts, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts.to_json()))
    else:
        show(summary(facts) if facts.record.ended else live(facts, None))


def _followed(ledger: Ledger, migration: str, *, as_json: bool) -> None:
    with going_on(migration):
        record = follow(ledger, migration, progress_console(as_json))
    error = ending(record)
    if not (error and as_json):
        _one(Facts.of(record), as_json=as_json)
    if error:
        raise error


def _all(ledger: Ledger, *, watch: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"migrations": [Facts.of(record).to_json() for record in ledger.open()]}))
    elif watch:
        with Live(_under_way(ledger), console=console(), auto_refresh=False) as screen:
            while True:
                time.sleep(0.5)
                screen.update(_under_way(ledger), refresh=True)
    else:
        show(_under_way(ledger))


def _under_way(ledger: Ledger) -> RenderableType:
    records = ledger.open()
    if not records:
        return "no migration is under way (`droveway list` shows the ended ones)"
    return Group(*(live(Facts.of(record), None) for record in records))
