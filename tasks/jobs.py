"""What Redis knows of evacuations, as values. Pure; times are the server's, in seconds since 1970."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.planning.evacuating import ENDED, Attempt, Evacuation, Fate, Standing, State
from tasks.planning.evacuation import Solver
from tasks.records import MigrationRecord


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One evacuation: what was asked, what it came to, how each of its guests stands, which moves it asked for."""

    asked: Evacuation
    state: State
    reason: str
    #: Why the hosts are emptied; whoever is refused a place there reads it.
    message: str
    created: float
    finished: float | None
    guests: Mapping[str, Standing]
    moves: Sequence[str]

    @property
    def job(self) -> str:
        """Its id."""
        return self.asked.job

    @property
    def ended(self) -> bool:
        """Whether no step is taken any more."""
        return self.state in ENDED

    def count(self, *fates: Fate) -> int:
        """How many guests stand so."""
        return sum(each.fate in fates for each in self.guests.values())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "job": self.job,
            "hosts": sorted(self.asked.hosts),
            "state": str(self.state),
            "reason": self.reason,
            "message": self.message,
            "created": self.created,
            "finished": self.finished,
            "deadline": self.asked.deadline,
            "cancelling": self.asked.cancelled and not self.ended,
            "max_parallel": self.asked.most_at_once or None,
            "attempts": self.asked.attempts,
            "solver": str(self.asked.solver),
            "guests": {name: asdict(each) for name, each in sorted(self.guests.items())},
            "migrations": sorted(self.moves),
        }


def new_job_id() -> str:
    """A fresh id, chosen by who asks: a repeated request is the same evacuation."""
    return f"e-{secrets.token_hex(8)}"


def request_of(asked: Evacuation, reason: str) -> dict[str, Any]:
    """What does not change of it, for `read_job`."""
    return {
        "max_parallel": asked.most_at_once,
        "attempts": asked.attempts,
        "reason": reason,
        "solver": str(asked.solver),
    }


def read_job(job: str, fields: Mapping[bytes, bytes], guests: Mapping[bytes, bytes], moves: Sequence[str]) -> JobRecord:
    """The job in the hashes that prelude.lua describes."""
    request = json.loads(fields[b"request"])
    standings = {name.decode(): _standing(json.loads(said)) for name, said in guests.items()}
    deadline = fields[b"deadline"]
    return JobRecord(
        Evacuation(
            job,
            frozenset(json.loads(fields[b"hosts"])),
            frozenset(standings),
            request["max_parallel"],
            request["attempts"],
            int(deadline) / 1000 if deadline else None,
            b"cancel" in fields,
            # Jobs of before there was a choice do not name it.
            Solver(request.get("solver", Solver.GREEDY)),
        ),
        State(fields[b"state"].decode()),
        fields[b"reason"].decode(),
        request["reason"],
        int(fields[b"created"]) / 1000,
        int(fields[b"finished"]) / 1000 if b"finished" in fields else None,
        standings,
        moves,
    )


def attempts_of(records: Iterable[MigrationRecord]) -> list[Attempt]:
    """The moves of one evacuation so far, numbered for each guest by their age."""
    had: dict[str, int] = {}
    found = []
    for record in sorted(records, key=lambda each: (each.created, each.migration)):
        number = had[record.guest] = had.get(record.guest, 0) + 1
        end = record.destination.host, number, not record.ended, record.state == "completed", record.reason or ""
        found.append(Attempt(record.guest, *end, queued=record.state == "queued"))
    return found


def _standing(said: Mapping[str, Any]) -> Standing:
    return Standing(Fate(said["fate"]), said["reason"], said["host"], said["attempts"])
