"""`droveway show`: everything about one migration or job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Group, RenderableType

from config.errors import RequestError
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.job_following import conclude, follow
from tasks.cli.output import progress_console, show
from tasks.cli.rendering.attempts import attempts_json, attempts_of, attempts_table
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.plans import job_table
from tasks.cli.rendering.tables import full
from tasks.jobs import JobRecord
from tasks.records import MigrationRecord
from tasks.requests import snapshot


@click.command(cls=SettingsCommand)
@click.argument("what", metavar="MIGRATION|JOB")
@click.option("--watch", is_flag=True, help="Follow a job to its end first; exit code 0 when all went well.")
@json_option
@click.pass_context
def command(context: click.Context, what: str, watch: bool, as_json: bool) -> None:
    """Everything about MIGRATION or JOB: each round with its verdict; each guest with its fate and the reason, and each
    attempt to move it with its times.

    \b
    Examples:
      droveway show m-0123456789abcdef --json | jq .rounds
      droveway show e-0123456789abcdef --watch
      droveway show e-0123456789abcdef --json | jq '.attempts_by_guest.web[] | {destination, took_seconds, message}'
    """
    invocation = invocation_of(context)
    with invocation.ledger() as ledger:
        job = ledger.find_job(what)
        if watch and job is None:
            raise RequestError(f"{what} is no job; `droveway status {what} --watch` follows a migration")
        if watch:
            conclude(follow(ledger, bell_for(invocation.settings), what, progress_console(as_json)), as_json=as_json)
            return
        document, shown = _job(job, ledger.moves_of(job)) if job else _migration(snapshot(ledger, what))
    if as_json:
        click.echo(json.dumps(document))
    else:
        show(shown)


def _job(record: JobRecord, moves: Sequence[MigrationRecord]) -> tuple[dict[str, Any], RenderableType]:
    attempts = attempts_of(record, moves)
    shown = Group(attempts_table(attempts), job_table(record)) if attempts else job_table(record)
    return record.to_json() | {"attempts_by_guest": attempts_json(attempts)}, shown


def _migration(record: MigrationRecord) -> tuple[dict[str, Any], RenderableType]:
    facts = Facts.of(record)
    return facts.to_json(), full(facts)
