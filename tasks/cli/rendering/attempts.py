"""What each guest of a job went through: one line or one object for every move that was asked for. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tasks.cli.quantities import NOTHING, seconds
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.lines import state_words
from tasks.cli.rendering.live import STYLES
from tasks.cli.rendering.tables import table
from tasks.jobs import JobRecord
from tasks.records import MigrationRecord

_FORGOTTEN = "it is past its retention"


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """One move that a job asked for. `facts` None: its record is past its retention."""

    migration: str
    facts: Facts | None

    @property
    def waited(self) -> float | None:
        """Seconds from the request to its admission, or to its end if nobody admitted it."""
        if self.facts is None:
            return None
        record = self.facts.record
        until = record.finished if record.admitted is None else record.admitted
        return None if until is None else until - record.created

    @property
    def took(self) -> float | None:
        """Seconds from its admission to its end."""
        record = None if self.facts is None else self.facts.record
        if record is None or record.admitted is None or record.finished is None:
            return None
        return record.finished - record.admitted

    @property
    def downtime(self) -> float | None:
        """Seconds in which the guest did not run."""
        return None if self.facts is None else self.facts.seconds.get("downtime")


def attempts_of(job: JobRecord, records: Iterable[MigrationRecord]) -> Mapping[str, Sequence[AttemptFacts]]:
    """Guest → its attempts, the oldest first: also of guests that only made room for others."""
    known = {record.migration: record for record in records}
    oldest_first = sorted(job.moves, key=lambda each: (known[each].created if each in known else 0.0, each))
    found: dict[str, list[AttemptFacts]] = {}
    for migration in oldest_first:
        facts = Facts.of(known[migration]) if migration in known else None
        found.setdefault(job.moves[migration], []).append(AttemptFacts(migration, facts))
    return {guest: found[guest] for guest in sorted(found)}


def attempts_table(attempts: Mapping[str, Sequence[AttemptFacts]]) -> RenderableType:
    """A line for each attempt."""
    made = table("GUEST", "MIGRATION", "FROM", "TO", "ASKED FOR", ">WAITED", ">TOOK", ">DOWNTIME", "OUTCOME")
    for guest, each in ((guest, each) for guest, all_of_it in attempts.items() for each in all_of_it):
        if each.facts is None:
            made.add_row(guest, each.migration, *[NOTHING] * 6, Text(_FORGOTTEN))
            continue
        record = each.facts.record
        made.add_row(
            guest,
            each.migration,
            record.source.host,
            record.destination.host,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)),
            seconds(each.waited),
            seconds(each.took),
            seconds(each.downtime),
            Text(state_words(each.facts), style=STYLES.get(record.state, "cyan")),
        )
    return made


def attempts_json(attempts: Mapping[str, Sequence[AttemptFacts]]) -> dict[str, list[dict[str, Any]]]:
    """Seconds, and seconds since 1970; of what is past its retention only the id, and nothing for the rest."""
    return {guest: [_document(each) for each in all_of_it] for guest, all_of_it in attempts.items()}


def _document(attempt: AttemptFacts) -> dict[str, Any]:
    record = None if attempt.facts is None else attempt.facts.record
    return {
        "migration": attempt.migration,
        "source": record and record.source.host,
        "destination": record and record.destination.host,
        "created": record and record.created,
        "admitted": record and record.admitted,
        "finished": record and record.finished,
        "waited_seconds": attempt.waited,
        "took_seconds": attempt.took,
        "downtime_seconds": attempt.downtime,
        "state": record and record.state,
        "reason": record and record.reason,
        "message": record.message if record else _FORGOTTEN,
    }
