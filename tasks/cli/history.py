"""`droveway history`: jobs, the latest first."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, count_option, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.plans import jobs_table


@click.command(cls=SettingsCommand)
@count_option
@json_option
@click.pass_context
def command(context: click.Context, count: int, as_json: bool) -> None:
    """List evacuations, rebalancings and restores, the latest first, and what they came to; moves: `droveway list`.

    \b
    Examples:
      droveway history
      droveway history --all --json | jq '.jobs[] | select(.state == "partial") | .reason'
    """
    with invocation_of(context).ledger() as ledger:
        jobs = ledger.jobs(count)
    if as_json:
        click.echo(json.dumps({"jobs": [job.to_json() for job in jobs]}))
    elif jobs:
        show(jobs_table(jobs))
    else:
        click.echo("there was no job yet; `droveway evacuate HOST --plan` says what one would do")
