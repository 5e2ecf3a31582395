"""Follow a migration to its end: bars on a terminal, lines elsewhere, and the error that its end amounts to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from config.errors import CancelledError, MigrationFailedError, UnreachableError, UnresolvedError
from tasks.cli.endings import EndedError
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.lines import changes
from tasks.cli.rendering.live import live
from tasks.ledger.ledger import Ledger
from tasks.records import MigrationRecord
from tasks.requests import watch

#: Seconds for which a handover that was cut off is left to the workers' own reconciling, and workers to come back,
#: before the watcher goes.
_PATIENCE = 90.0

Beside = Callable[[], Sequence[str]]
"""What else is to be shown while a move is followed, line by line."""


class RoundRate:
    """The rate of the round under way, from what was seen of it: the mover measures only finished rounds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._index: int | None = None
        self._first = (0.0, 0)
        self.rate: float | None = None

    def see(self, facts: Facts) -> None:
        """Take another look at the move."""
        current = facts.current
        if current is None or current.index != self._index:
            self._index = current.index if current else None
            self._first = (self._clock(), current.done if current else 0)
            self.rate = None
            return
        passed, moved = self._clock() - self._first[0], current.done - self._first[1]
        if passed > 0 and moved > 0:
            self.rate = moved / passed


@dataclass
class Screen:
    """What a terminal shows of one move; rich asks for it several times a second."""

    facts: Facts | None
    rate: RoundRate
    beside: Beside

    def __call__(self) -> RenderableType:
        """The move as it is now."""
        move = live(self.facts, self.rate.rate) if self.facts else ""
        return Group(move, *(Text(f"  {line}", style="cyan", no_wrap=True) for line in self.beside()))


def follow(ledger: Ledger, migration: str, console: Console | None, beside: Beside = lambda: ()) -> MigrationRecord:
    """The record when the move has ended and both sides have let go. `console` None: say nothing.

    `beside`: asked for the lines to show below the move each time that something is shown.

    Raises UnresolvedError when the handover was cut off and stays so, and what `watch` raises.
    """
    records = bounded(watch(ledger, migration))
    if console is None:
        return _last(records)
    return _on_terminal(records, console, beside) if console.is_terminal else _in_lines(records, console, beside)


def _last(records: Iterator[MigrationRecord]) -> MigrationRecord:
    record = next(records)
    for record in records:  # noqa: B007  # the last one is wanted
        pass
    return record


def _on_terminal(records: Iterator[MigrationRecord], console: Console, beside: Beside) -> MigrationRecord:
    screen = Screen(None, RoundRate(), beside)
    with Live(get_renderable=screen, console=console, refresh_per_second=8, transient=False):
        for record in records:
            screen.facts = Facts.of(record)
            screen.rate.see(screen.facts)
    return record


def _in_lines(records: Iterator[MigrationRecord], console: Console, beside: Beside) -> MigrationRecord:
    before = None
    for record in records:
        now = Facts.of(record)
        said = list(changes(before, now))
        for line in [*said, *beside()] if said else []:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        before = now
    return record


def bounded(
    records: Iterable[MigrationRecord], clock: Callable[[], float] = time.monotonic
) -> Iterator[MigrationRecord]:
    """The same, until a cut-off handover has stayed unresolved, or an admitted move without a word, for too long."""
    last: MigrationRecord | None = None
    changed = clock()
    since: float | None = None
    for record in records:
        yield record
        if record != last:
            last, changed = record, clock()
        words = unresolved(record)
        since = (clock() if since is None else since) if words else None
        if since is not None and clock() - since > _PATIENCE:
            raise UnresolvedError(f"{record.migration} stays unresolved ({words}): run `droveway reconcile`")
        # A worker renews its lease, in the record, several times in that time, whatever its mover does.
        if record.epoch is not None and not record.settled and clock() - changed > _PATIENCE:
            raise UnreachableError(
                f"nobody has spoken of {record.migration} for {_PATIENCE:g} s: see that the workers of "
                f"{record.source.host} and {record.destination.host} run, then follow it again"
            )


def unresolved(record: MigrationRecord) -> str | None:
    """Why nobody knows yet where the guest of this migration is; None when that is known."""
    if record.ended:
        return None
    for side in (record.source, record.destination):
        if side.outcome is None and (side.progress or {}).get("outcome") == "unresolved":
            return str((side.progress or {}).get("message") or "the handover was cut off")
    return None


def ending(record: MigrationRecord) -> EndedError | None:
    """The error that an ended migration amounts to for whoever waited for it; None when the guest has moved."""
    if record.state == "completed":
        return None
    kind = CancelledError if record.state == "cancelled" else MigrationFailedError
    message = record.message or f"{record.migration} {record.state}; {record.guest} goes on at {record.source.host}"
    return EndedError(message, record.reason or kind.reason, kind.exit_code, Facts.of(record).to_json())


@contextmanager
def going_on(what: str, followed_by: str = "status") -> Iterator[None]:
    """On Ctrl-C say that it goes on, the command that follows it, and how to end it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\n{what} goes on. Follow it: droveway {followed_by} {what} --watch\n"
            f"{' ' * len(what)}    End it:    droveway cancel {what}",
            err=True,
        )
        raise
