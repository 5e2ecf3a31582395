"""`droveway inventory`: the fleet as plans see it, as a text that can be kept and planned on again."""

from __future__ import annotations

from pathlib import Path

import click

from config.errors import RequestError
from tasks.cli.invocation import Command, Invocation, SettingsCommand, invocation_of, json_option
from tasks.inventory import document, file, simulated
from tasks.planning.cluster import Cluster

_FILE = click.Path(dir_okay=False, path_type=Path)


def fleet_options(command: Command) -> Command:
    """--file and --simulate, as `path` and `line` for `cluster_of`."""
    kept = click.option("--file", "path", type=_FILE, metavar="FILE", help="A fleet that was kept, not the live one.")
    made_up = click.option("--simulate", "line", metavar="LINE", help="One made up: hosts=100,guests=2000,seed=7")
    return kept(made_up(command))


@click.command(cls=SettingsCommand)
@fleet_options
@json_option
@click.pass_context
def command(context: click.Context, path: Path | None, line: str | None, as_json: bool) -> None:
    """Print every host and guest as plans see them: capacity, use, slots, transports, labels, what stays and why.

    The text can be edited, kept, and read again with --file, on a machine that reaches no Redis; so can the JSON.

    \b
    Examples:
      droveway inventory > fleet.txt
      droveway inventory --file fleet.txt --json | jq '.guests | length'
      droveway inventory --simulate hosts=4,guests=24,seed=1
    """
    found = cluster_of(invocation_of(context), path, line)
    click.echo(document.write(found) if as_json else file.write(found), nl=as_json)


def cluster_of(invocation: Invocation, path: Path | None, line: str | None) -> Cluster:
    """The fleet that is asked for; the live one when nothing is. Raises RequestError, UnreachableError."""
    if path and line:
        raise RequestError("--file and --simulate are two fleets; give one of them")
    if line:
        return simulated.simulate(line)
    if path:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read ({error})") from None
        read = document.read if text.lstrip().startswith("{") else file.read
        return read(text, str(path))
    with invocation.ledger() as ledger:
        return ledger.cluster()


def check_only_planned(path: Path | None, line: str | None, *, plan_only: bool) -> None:
    """Raises RequestError where a fleet that is not the live one would be acted upon."""
    if (path or line) and not plan_only:
        given = "--file" if path else "--simulate"
        raise RequestError(f"{given} is a fleet to plan on, nothing can be moved in it; add --plan, or leave it out")
