"""Follow a job to its end: a bar on a terminal, a line for each guest elsewhere; how it ends; what asks for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from config.errors import CancelledError, MigrationFailedError, UnreachableError
from tasks.bell import Bell
from tasks.cli.endings import EndedError
from tasks.cli.following import going_on
from tasks.cli.output import progress_console, show
from tasks.cli.rendering.plans import job_table
from tasks.jobs import JobRecord
from tasks.ledger.ledger import Ledger
from tasks.planning.job import Fate, Standing, State
from tasks.requests import PATIENCE
from tasks.steps import snapshot, take_step

#: What begins a job shares these; a plan of a file is read by tasks.plan_file.
wait_option = click.option(
    "--wait/--detach", default=True, help="Follow it to its end (default), or only begin it: the workers carry it on."
)
parallel_option = click.option(
    "--max-parallel",
    "most_at_once",
    type=click.IntRange(1),
    metavar="N",
    help="Moves at once; default: what slots allow.",
)
apply_option = click.option(
    "--apply",
    "kept",
    type=click.File("rb"),
    metavar="FILE",
    help="Make the moves of a plan that `--plan --json` printed; - reads it from standard input.",
)

#: Seconds between two looks.
_LOOK = 0.5


def follow(ledger: Ledger, bell: Bell, job: str, console: Console | None) -> JobRecord:
    """The job when it has ended. `console` None: say nothing. Raises UnreachableError when Redis stays away.

    Whoever follows takes steps as well: the job goes on though every worker were slow to.
    """
    with going_on(job, "show"):
        records = _looks(ledger, bell, job)
        if console is not None and console.is_terminal:
            return _with_bar(records, console)
        return _in_lines(records, console)


def carry_on(ledger: Ledger, bell: Bell, job: str, *, wait: bool, as_json: bool) -> None:
    """Follow a job that was just begun and conclude it, or say how to follow it. Raises what those raise."""
    if wait:
        conclude(follow(ledger, bell, job, progress_console(as_json)), as_json=as_json)
    elif as_json:
        click.echo(json.dumps(snapshot(ledger, job).to_json()))
    else:
        click.echo(job)
        click.echo(f"{snapshot(ledger, job).what} is under way; follow it: droveway show {job} --watch", err=True)


def conclude(record: JobRecord, *, as_json: bool) -> None:
    """Say what it came to. Raises EndedError unless every guest is where it was to be."""
    if not as_json:
        show(job_table(record))
    if record.state is not State.COMPLETED:
        kind = CancelledError if record.state is State.CANCELLED else MigrationFailedError
        message = f"{record.job} {record.state}: {record.reason}; `droveway show {record.job}` says why for each guest"
        raise EndedError(message, f"{record.kind}-{record.state}", kind.exit_code, record.to_json())
    if as_json:
        click.echo(json.dumps(record.to_json()))


def _looks(ledger: Ledger, bell: Bell, job: str) -> Iterator[JobRecord]:
    """The job after each look, until it has ended; rides out a Redis that is away."""
    heard = time.monotonic()
    while True:
        try:
            take_step(ledger, bell, job)
            record = snapshot(ledger, job)
            heard = time.monotonic()
        except UnreachableError:
            if time.monotonic() - heard > PATIENCE:
                raise
        else:
            yield record
            if record.ended:
                return
        time.sleep(_LOOK)


def _with_bar(records: Iterator[JobRecord], console: Console) -> JobRecord:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        for record in records:
            what = f"{record.what}: {record.count(Fate.MOVING)} moving"
            gone = record.count(Fate.MOVED, Fate.GONE)
            bar.update(task, description=what, total=len(record.guests) or None, completed=gone)
    return record


def _in_lines(records: Iterator[JobRecord], console: Console | None) -> JobRecord:
    before: dict[str, Standing] = {}
    for record in records:
        for name, each in sorted(record.guests.items()):
            if console is not None and (name not in before or before[name].fate is not each.fate):
                why = f": {each.reason}" if each.reason else ""
                console.print(f"{name} {each.fate}{why}", soft_wrap=True, markup=False, highlight=False)
        before = dict(record.guests)
    return record
