"""What one record says of its move, put in one place: the source measures, the destination adds its own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.capabilities import PARAMETERS, Parameter
from tasks.cli.rendering.timeline import phases
from tasks.records import MigrationRecord, SideRecord
from workers.rounds.contract import PHASES

#: Spans of the source's mover, in the order in which they are shown. Registration is what the transfer waited for it,
#: a part of the survey under rdma-pin-all and of the bulk round without.
SPANS = ("pairing", "links", "survey", "registration", "bulk", "rounds", "downtime", "deregistration", "total")


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """A round, finished or under way. Units: bytes, seconds, bytes/s; `seconds` is None while it is under way."""

    index: int
    kind: str
    done: int
    total: int
    sent: int | None = None
    seconds: float | None = None
    dirty: int | None = None
    verdict: str | None = None
    reason: str | None = None
    #: Found zero, and not sent.
    zero: int = 0
    #: Of what was sent, what went as differences.
    delta: int = 0

    @property
    def rate(self) -> float | None:
        """What went over the wire, per second."""
        return self.sent / self.seconds if self.sent is not None and self.seconds else None


@dataclass(frozen=True, slots=True)
class Facts:
    """One move as far as it is known. Units: bytes, seconds, bytes/s."""

    record: MigrationRecord
    phase: str | None
    finished: tuple[RoundFacts, ...]
    current: RoundFacts | None
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    rates: Mapping[str, float]
    choices: Mapping[str, Any]

    @classmethod
    def of(cls, record: MigrationRecord) -> Facts:
        """Read the progress that the two sides left in the record."""
        source = record.source.progress or {}
        finished = tuple(_finished(entry) for entry in source.get("rounds", ()))
        sizes = source.get("bytes", {})
        return cls(
            record,
            source.get("phase"),
            finished,
            _current(source.get("phase"), finished, sizes),
            source.get("seconds", {}),
            sizes,
            source.get("rates", {}),
            source.get("choices", {}),
        )

    @property
    def way(self) -> str:
        """Guest, from where, to where."""
        return f"{self.record.guest} {self.record.source.host}→{self.record.destination.host}"

    @property
    def transferred(self) -> int:
        """Bytes that went over the wire in all rounds."""
        return sum(each.sent or 0 for each in self.finished)

    @property
    def sending_seconds(self) -> float:
        """Seconds in which rounds were sent."""
        return sum(each.seconds or 0.0 for each in self.finished)

    @property
    def rate(self) -> float | None:
        """Mean rate over all rounds."""
        return self.transferred / self.sending_seconds if self.sending_seconds else None

    @property
    def queue_wait(self) -> float | None:
        """From the submission to the admission."""
        record = self.record
        return None if record.admitted is None else record.admitted - record.created

    @property
    def notes(self) -> list[str]:
        """Where the move differed from what was asked, and why."""
        return [f"{note['about']}: {note['reason']}" for note in self.choices.get("notes", ())]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Name and value of each that is not at its default."""
        given = self.record.parameters
        rows = [row for row in PARAMETERS if row.name in given and given[row.name] != row.default]
        return [(row.name, _formatted(row, given[row.name])) for row in rows]

    def sides(self) -> tuple[tuple[str, SideRecord], ...]:
        """Both sides with their names."""
        return ("source", self.record.source), ("destination", self.record.destination)

    def to_json(self) -> dict[str, Any]:
        """The record, and beside it what was measured: the shape of every migration in `--json`."""
        return self.record.to_json() | {
            "seconds": {"queue": self.queue_wait} | {name: self.seconds.get(name) for name in SPANS},
            "transferred_bytes": self.transferred,
            "bytes_per_second": self.rate,
            "timeline": [each.to_json() for each in phases(self.record)],
            "rounds": [dict(entry) for entry in (self.record.source.progress or {}).get("rounds", ())],
            "choices": dict(self.choices),
        }


def _formatted(row: Parameter, value: int | str) -> str:
    try:
        return row.kind.format(row.kind.read(value))
    except ValueError:  # a newer release allows it
        return str(value)


def _finished(entry: Mapping[str, Any]) -> RoundFacts:
    return RoundFacts(
        entry["index"],
        entry["kind"],
        entry["bytes"],
        entry["bytes"],
        entry["sent"],
        entry["seconds"],
        entry.get("dirty"),
        entry.get("verdict"),
        entry.get("reason"),
        max(0, entry.get("zero", entry["bytes"] - entry["sent"])),
        entry.get("delta", 0),
    )


def _current(phase: str | None, finished: tuple[RoundFacts, ...], sizes: Mapping[str, int]) -> RoundFacts | None:
    """The round under way. The mover's count belongs to the round before until this one's first batch is through."""
    kind = next((kind for kind, its in PHASES.items() if its == phase), None)
    if kind is None or (finished and (kind == "bulk" or finished[-1].kind == "final")):
        return None
    counted = sizes.get("round_total")
    if counted is None or (finished and counted == finished[-1].total):
        return RoundFacts(len(finished), kind, 0, sizes.get("remaining" if finished else "populated", 0))
    return RoundFacts(len(finished), kind, sizes.get("round_done", 0), counted)
