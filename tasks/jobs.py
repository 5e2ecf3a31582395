"""What Redis knows of jobs, as values: evacuations, rebalancings, restores. Pure; times are the server's, in seconds
since 1970."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from config.errors import NewerReleaseError
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import Solver
from tasks.planning.job import ENDED, Attempt, Fate, Standing, State
from tasks.planning.moves import Move
from tasks.planning.relocating import Relocation
from tasks.records import MigrationRecord, Priority

Asked = Evacuation | Relocation


class Kind(StrEnum):
    """What a job is for. All but an evacuation are relocations."""

    EVACUATION = "evacuation"
    REBALANCE = "rebalance"
    #: Brings back to a host the guests that an evacuation moved away from it.
    RESTORE = "restore"


#: What ids begin with: one sees what it is.
_LETTERS = {Kind.EVACUATION: "e", Kind.REBALANCE: "r", Kind.RESTORE: "b"}


@dataclass(frozen=True, slots=True)
class Order:
    """A job to begin. `imbalance` of a rebalancing: before its moves and after them, as planned."""

    kind: Kind
    asked: Asked
    #: Why: whoever is refused a place on a host that is emptied reads it.
    message: str
    imbalance: tuple[float, float] | None = None
    #: The policy whose tick began a rebalancing; "": somebody did.
    policy: str = ""

    @property
    def priority(self) -> Priority:
        """Of its moves, where others want the same slots."""
        if self.kind is Kind.REBALANCE:
            return Priority.SCHEDULED if self.policy else Priority.REBALANCE
        return Priority.EVACUATION if self.kind is Kind.EVACUATION else Priority.USER


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job: what was asked, what it came to, how each of its guests stands, which moves it asked for."""

    order: Order
    state: State
    reason: str
    created: float
    finished: float | None
    guests: Mapping[str, Standing]
    #: Migration → its guest.
    moves: Mapping[str, str]

    @property
    def asked(self) -> Asked:
        """What its steps are taken for."""
        return self.order.asked

    @property
    def job(self) -> str:
        """Its id."""
        return self.asked.job

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return self.order.kind

    @property
    def message(self) -> str:
        """Why it was begun."""
        return self.order.message

    @property
    def what(self) -> str:
        """In a few words: the hosts that it empties, or what else it does."""
        hosts = ", ".join(sorted(self.asked.hosts))
        return hosts if self.kind is Kind.EVACUATION else f"{self.kind} {hosts}".strip()

    @property
    def ended(self) -> bool:
        """Whether no step is taken any more."""
        return self.state in ENDED

    def count(self, *fates: Fate) -> int:
        """How many guests stand so."""
        return sum(each.fate in fates for each in self.guests.values())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        before, after = self.order.imbalance or (None, None)
        wanted = self.asked.moves if isinstance(self.asked, Relocation) else ()
        return {
            "job": self.job,
            "kind": str(self.kind),
            "hosts": sorted(self.asked.hosts),
            "state": str(self.state),
            "reason": self.reason,
            "message": self.message,
            "policy": self.order.policy or None,
            "created": self.created,
            "finished": self.finished,
            "deadline": self.asked.deadline,
            "cancelling": self.asked.cancelled and not self.ended,
            "max_parallel": self.asked.most_at_once or None,
            "attempts": self.asked.attempts,
            "imbalance_before": before,
            "imbalance_after": after,
            "moves": [asdict(move) for move in wanted],
            "solver": str(self.asked.solver) if isinstance(self.asked, Evacuation) else None,
            "guests": {name: asdict(each) for name, each in sorted(self.guests.items())},
            "migrations": sorted(self.moves),
        }


def new_job_id(kind: Kind) -> str:
    """A fresh id, chosen by who asks: a repeated request is the same job."""
    return f"{_LETTERS[kind]}-{secrets.token_hex(8)}"


def request_of(order: Order) -> dict[str, Any]:
    """What does not change of it, for `read_job`."""
    asked = order.asked
    request: dict[str, Any] = {
        "max_parallel": asked.most_at_once,
        "attempts": asked.attempts,
        "reason": order.message,
    }
    if isinstance(asked, Relocation):
        request["moves"] = [[move.guest, move.source, move.destination] for move in asked.moves]
    else:
        request["solver"] = str(asked.solver)
        if asked.planned:
            request["planned"] = dict(asked.planned)
    if order.imbalance is not None:
        request["imbalance"] = list(order.imbalance)
    if order.policy:
        request["policy"] = order.policy
    return request


def read_job(
    job: str, fields: Mapping[bytes, bytes], guests: Mapping[bytes, bytes], moves: Mapping[bytes, bytes]
) -> JobRecord:
    """The job in the hashes that prelude.lua describes.

    Raises NewerReleaseError when this release does not know what stands there.
    """
    try:
        return _read(job, fields, guests, moves)
    except (ValueError, KeyError, TypeError) as error:
        raise NewerReleaseError(
            f"What Redis has of {job} cannot be read by this release ({error}): a newer one most likely began it, whose"
            " workers carry it on. Upgrade Droveway here to see it."
        ) from error


def attempts_of(records: Iterable[MigrationRecord]) -> list[Attempt]:
    """The moves of one job so far, numbered for each guest by their age."""
    had: dict[str, int] = {}
    found = []
    for record in sorted(records, key=lambda each: (each.created, each.migration)):
        number = had[record.guest] = had.get(record.guest, 0) + 1
        end = record.destination.host, number, not record.ended, record.state == "completed", record.reason or ""
        found.append(Attempt(record.guest, *end, queued=record.granted is None))
    return found


def _read(
    job: str, fields: Mapping[bytes, bytes], guests: Mapping[bytes, bytes], moves: Mapping[bytes, bytes]
) -> JobRecord:
    request = json.loads(fields[b"request"])
    standings = {name.decode(): _standing(json.loads(said)) for name, said in guests.items()}
    kind = Kind(fields.get(b"kind", b"evacuation").decode())
    imbalance = request.get("imbalance")
    return JobRecord(
        Order(
            kind,
            _asked(job, kind, fields, request, standings),
            request["reason"],
            (imbalance[0], imbalance[1]) if imbalance else None,
            request.get("policy", ""),
        ),
        State(fields[b"state"].decode()),
        fields[b"reason"].decode(),
        int(fields[b"created"]) / 1000,
        int(fields[b"finished"]) / 1000 if b"finished" in fields else None,
        standings,
        {move.decode(): guest.decode() for move, guest in moves.items()},
    )


def _asked(
    job: str,
    kind: Kind,
    fields: Mapping[bytes, bytes],
    request: Mapping[str, Any],
    standings: Mapping[str, Standing],
) -> Asked:
    hosts = frozenset(json.loads(fields[b"hosts"]))
    deadline = int(fields[b"deadline"]) / 1000 if fields[b"deadline"] else None
    limits = request["max_parallel"], request["attempts"], deadline, b"cancel" in fields
    if kind is Kind.EVACUATION:
        homes = {name: each.home for name, each in standings.items() if each.home}
        # Jobs of before there was a choice name no solver.
        solver = Solver(request.get("solver", Solver.GREEDY))
        return Evacuation(job, hosts, frozenset(standings), *limits, homes, request.get("planned", {}), solver)
    moves = tuple(Move(*move) for move in request["moves"])
    return Relocation(job, moves, hosts, *limits, fields.get(b"gave_way", b"").decode())


def _standing(said: Mapping[str, Any]) -> Standing:
    return Standing(Fate(said["fate"]), said["reason"], said["host"], said["attempts"], said.get("home", ""))
