"""`droveway history`: jobs, the latest first; or all that is remembered, as lines to be kept elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from heapq import merge
from typing import Any

import click

from config.errors import RequestError
from tasks.cli.invocation import SettingsCommand, count_option, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.pinning import DURATION
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.plans import jobs_table
from tasks.ledger.ledger import Ledger

_KINDS = ("job", "move")


@click.command(cls=SettingsCommand)
@count_option
@click.option("--export", is_flag=True, help="Each job and move that has ended, one JSON object a line, oldest first.")
@click.option("--since", type=DURATION, metavar="TIME", help="Like 7d: export only what ended within that time.")
@click.option("--type", "kind", type=click.Choice([*_KINDS, "all"]), help="Export only these. Default: all.")
@json_option
@click.pass_context
def command(
    context: click.Context, *, count: int, export: bool, since: float | None, kind: str | None, as_json: bool
) -> None:
    """List evacuations, rebalancings and restores, the latest first, and what they came to; moves: `droveway list`.

    Redis forgets what ended long ago (`history.retention`). To keep it, export it now and then, each time a little more
    than has passed since; the ids, `migration` or `job`, tell what is there twice. What has not ended is left out.

    \b
    Examples:
      droveway history
      droveway history --all --json | jq '.jobs[] | select(.state == "partial") | .reason'
      droveway history --export --since 7d >> archive.jsonl
      droveway history --export --type move | jq -r 'select(.state == "failed") | [.guest, .reason] | @tsv'
    """
    if not export and (since is not None or kind is not None):
        raise RequestError("--since and --type say what is exported; add --export")
    with invocation_of(context).ledger() as ledger:
        if export:
            for document in _ended(ledger, since, _KINDS if kind in (None, "all") else (kind,)):
                click.echo(json.dumps(document))
            return
        jobs = ledger.jobs(count)
    if as_json:
        click.echo(json.dumps({"jobs": [job.to_json() for job in jobs]}))
    elif jobs:
        show(jobs_table(jobs))
    else:
        click.echo("there was no job yet; `droveway evacuate HOST --plan` says what one would do")


def _ended(ledger: Ledger, since: float | None, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every job and move that has ended, by the time when it was asked for; two pages are held at a time."""
    jobs = ({"type": "job"} | job.to_json() for job in ledger.jobs_by_age())
    moves = ({"type": "move"} | Facts.of(move).to_json() for move in ledger.moves_by_age())
    asked = [found for kind, found in zip(_KINDS, (jobs, moves), strict=True) if kind in kinds]
    earliest = None if since is None else ledger.now() - since
    for each in merge(*asked, key=lambda document: float(document["created"])):
        finished = each["finished"]
        if finished is not None and (earliest is None or finished >= earliest):
            yield each
