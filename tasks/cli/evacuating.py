"""Follow an evacuation to its end: a bar on a terminal, a line for each guest elsewhere; and how it ends."""

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
from tasks.cli.output import show
from tasks.cli.rendering.plans import job_table
from tasks.evacuate import snapshot, take_step
from tasks.jobs import JobRecord
from tasks.ledger.ledger import Ledger
from tasks.planning.evacuating import Fate, Standing, State
from tasks.requests import PATIENCE

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


def conclude(record: JobRecord, *, as_json: bool) -> None:
    """Say what it came to. Raises EndedError unless the hosts are empty."""
    if not as_json:
        show(job_table(record))
    if record.state is not State.COMPLETED:
        kind = CancelledError if record.state is State.CANCELLED else MigrationFailedError
        message = f"{record.job} {record.state}: {record.reason}; `droveway show {record.job}` says why for each guest"
        raise EndedError(message, f"evacuation-{record.state}", kind.exit_code, record.to_json())
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
            what = f"{', '.join(sorted(record.asked.hosts))}: {record.count(Fate.MOVING)} moving"
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
