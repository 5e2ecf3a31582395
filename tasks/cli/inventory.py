"""`droveway inventory`: the fleet as plans see it, as a text that can be kept and planned on again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from config.errors import RequestError
from tasks.cli.invocation import Command, Invocation, SettingsCommand, invocation_of, json_option
from tasks.inventory import file, simulated
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
    """Print every host and guest as plans see them: capacity, use, slots, labels, what may not move and why.

    The text can be edited, kept, and read again with --file, on a machine that reaches no Redis.

    \b
    Examples:
      droveway inventory > fleet.txt
      droveway inventory --file fleet.txt --json | jq '.guests | length'
      droveway inventory --simulate hosts=4,guests=24,seed=1
    """
    found = cluster_of(invocation_of(context), path, line)
    click.echo(json.dumps(_document(found)) if as_json else file.write(found), nl=as_json)


def cluster_of(invocation: Invocation, path: Path | None, line: str | None) -> Cluster:
    """The fleet that is asked for; the live one when nothing is. Raises RequestError, UnreachableError."""
    if path and line:
        raise RequestError("--file and --simulate are two fleets; give one of them")
    if line:
        return simulated.simulate(line)
    if path:
        try:
            return file.read(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read ({error})") from None
    with invocation.ledger() as ledger:
        return ledger.cluster()


def check_only_planned(path: Path | None, line: str | None, *, plan_only: bool) -> None:
    """Raises RequestError where a fleet that is not the live one would be acted upon."""
    if (path or line) and not plan_only:
        given = "--file" if path else "--simulate"
        raise RequestError(f"{given} is a fleet to plan on, nothing can be moved in it; add --plan, or leave it out")


def _document(cluster: Cluster) -> dict[str, Any]:
    return {
        "taken": cluster.taken,
        "uplinks": dict(cluster.uplinks),
        "hosts": [_plain(asdict(host)) for _, host in sorted(cluster.hosts.items())],
        "guests": [_plain(asdict(guest)) for _, guest in sorted(cluster.guests.items())],
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
