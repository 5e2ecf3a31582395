"""`droveway report`: one migration or job as a page that can be kept, sent, and read without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from config.errors import HostError
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.attempts import attempts_json, attempts_of, attempts_table
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.plans import job_table
from tasks.cli.rendering.report import job as of_job
from tasks.cli.rendering.report import migration as of_migration
from tasks.cli.rendering.report.page import html
from tasks.cli.rendering.tables import full
from tasks.requests import snapshot


@click.command(cls=SettingsCommand)
@click.argument("what", metavar="MIGRATION|JOB")
@click.option(
    "--html",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one self-contained page there; it replaces what is there.",
)
@json_option
@click.pass_context
def command(context: click.Context, what: str, path: Path | None, as_json: bool) -> None:
    """What happened in MIGRATION or JOB: when each phase was, how much moved and how fast, the downtime, each decision
    with its reason. Times of `timeline` are in seconds, `began` since the migration was asked for.

    \b
    Examples:
      droveway report m-0123456789abcdef --html move.html
      droveway report e-0123456789abcdef --html evacuation.html
      droveway report m-0123456789abcdef --json | jq '.timeline, .rounds'
    """
    with invocation_of(context).ledger() as ledger:
        job = ledger.find_job(what)
        if job is not None:
            attempts = attempts_of(job, ledger.moves_of(job))
            content, document = of_job.page_of(job, attempts), job.to_json()
            document |= {"attempts_by_guest": attempts_json(attempts)}
            shown = [attempts_table(attempts), job_table(job)]
        else:
            facts = Facts.of(snapshot(ledger, what))
            content, document, shown = of_migration.page_of(facts), facts.to_json(), [full(facts)]
    if path is not None:
        _write(path, html(content))
    if as_json:
        click.echo(json.dumps(document))
    elif path is not None:
        click.echo(str(path))
    else:
        for each in shown:
            show(each)


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a page that was there stays until the new one is whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written ({error.strerror}); choose another place with --html.") from None
