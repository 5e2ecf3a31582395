"""The ledger: what may be asked of the fleet's record, one method a script, and the reads beside them.

Every call may be repeated: a reply can be lost after Redis did the work. Every call raises UnreachableError when Redis
does not answer, HostError when it refuses to serve.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, cast

from redis.exceptions import NoPermissionError

from config.errors import NewerReleaseError, RefusedError
from config.redis import coordination_client, reaching_redis
from config.settings import Settings
from tasks.inventory import live
from tasks.jobs import JobRecord, Kind, Order, read_job, request_of
from tasks.planning.cluster import Cluster
from tasks.planning.job import Step
from tasks.records import (
    Fields,
    Fleet,
    Kept,
    LocalGuest,
    MigrationRecord,
    Pin,
    PolicyRecord,
    Submission,
    read_guest,
    read_host,
    read_migration,
    read_pin,
    read_policy,
)
from workers.attempt import Job, Status
from workers.pairing.contract import Side, Ticket
from workers.pairing.events import Events
from workers.pairing.keys import Keys

log = logging.getLogger("droveway.ledger")

#: Records that are read at once where all are wanted: a few MiB.
_PAGE = 200


class Answer(StrEnum):
    """What a script says; which of these each may say stands in its head."""

    OK = "OK"
    GONE = "GONE"
    FENCED = "FENCED"
    TAKEN = "TAKEN"
    ENDED = "ENDED"
    CANCEL = "CANCEL"
    CONFLICT = "CONFLICT"
    CLAIMED = "CLAIMED"
    EARLY = "EARLY"
    ASKED = "ASKED"
    CANCELLED = "CANCELLED"
    EXISTS = "EXISTS"
    OTHER = "OTHER"
    UNKNOWN = "UNKNOWN"
    BUSY = "BUSY"
    MOVED = "MOVED"
    OCCUPIED = "OCCUPIED"
    FULL = "FULL"


class Ledger:
    """The fleet's record, over one connection pool; any thread may use it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.redis
        self._client = coordination_client(settings.redis, "droveway-ledger")
        self._keys = Keys(settings.redis.prefix)
        self._retention = round(settings.history.retention * 1000)
        self._lease = round(settings.worker.lease * 1000)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    # --- the life of a migration --------------------------------------------------------------------------------------

    def submit(self, submission: Submission, refusal: RefusedError | None = None) -> tuple[Answer, str]:
        """OK | EXISTS | OTHER | UNKNOWN | BUSY, migration | MOVED, host | ENDED, FULL (its job).

        With `refusal` the record ends at once.
        """
        args: list[Any] = [
            submission.migration,
            submission.guest,
            submission.source,
            submission.destination,
            submission.memory,
            json.dumps(dict(submission.capabilities)),
            json.dumps(dict(submission.parameters)),
            "" if submission.expires is None else round(submission.expires * 1000),
            int(submission.priority),
            submission.job,
        ]
        if refusal is not None:
            args += [refusal.reason, str(refusal)]
        return self._answered("submit", *args)

    def admit(self, unless_looked: float = 0.0) -> list[str]:
        """Admit whatever can be, and let onto the links what may send; the migrations admitted by this call.

        `unless_looked`: leave it when somebody has done so within so many seconds (0: in any case).
        """
        admitted, _granted = self._run("admit", round(unless_looked * 1000) or "")
        return [_decoded(migration) for migration in admitted]

    def rung(self, migration: str) -> None:
        """Remember that the doorbells of `migration` were rung now."""
        self._run("rung", migration)

    def claim(self, ticket: Ticket) -> Answer:
        """Take a side: OK | TAKEN | FENCED | ENDED | GONE."""
        args = (ticket.migration, ticket.side, ticket.nonce, ticket.epoch, self._lease)
        return Answer(_decoded(self._run("claim", *args)))

    def renew(self, ticket: Ticket, progress: Status | None = None) -> tuple[Answer, str]:
        """Renew the lease, say how far it is: OK, `go` once it may send | CANCEL | ENDED, state | FENCED | GONE."""
        state, document = ("", "") if progress is None else (progress.state, json.dumps(asdict(progress)))
        args = (ticket.migration, ticket.side, ticket.nonce, ticket.epoch, self._lease, state, document)
        return self._answered("renew", *args)

    def finish(self, ticket: Ticket, status: Status) -> Answer:
        """Say how the side ended (`status.outcome` is final): OK | CONFLICT | FENCED | GONE."""
        args = (
            ticket.migration,
            ticket.side,
            ticket.nonce,
            ticket.epoch,
            status.outcome,
            status.reason or "",
            status.message or "",
            json.dumps(asdict(status)),
        )
        return Answer(_decoded(self._run("finish", *args)))

    def cancel(self, migration: str, message: str) -> tuple[Answer, str]:
        """Ask for the end: CANCELLED | ASKED | ENDED, state | GONE."""
        return self._answered("cancel", migration, message)

    def abandon(self, migration: str, epoch: int, grace: float, message: str) -> Answer:
        """End what its source never took up in `grace` seconds: OK | CLAIMED | EARLY | ENDED | FENCED | GONE."""
        return Answer(_decoded(self._run("abandon", migration, epoch, round(grace * 1000), message)))

    def release(self, migration: str) -> list[Side]:
        """Take back what an ended migration holds for sides that nobody renews."""
        return [Side(_decoded(side)) for side in self._run("release", migration)]

    def free_links(self, migration: str, silence: float) -> Answer:
        """Give back its share of shared links when nobody has spoken for either side in `silence` seconds.

        OK | EARLY | GONE (nothing is counted).
        """
        return Answer(_decoded(self._run("free_links", migration, round(silence * 1000))))

    # --- hosts --------------------------------------------------------------------------------------------------------

    def heartbeat(
        self,
        host: str,
        side: Side,
        offered: Mapping[str, str],
        attempts: Iterable[Job],
        guests: Sequence[LocalGuest],
    ) -> list[str]:
        """What one worker says of its host. Returns the guests that the record has elsewhere, under no lower epoch."""
        return self._heartbeat(host, side, offered, attempts, guests, complete=True)

    def announce(self, host: str, guest: LocalGuest) -> None:
        """A guest was started on `host`: known at once, not only with the next heartbeat."""
        self._heartbeat(host, "", {}, [], [guest], complete=False)

    def gone(self, host: str, guest: str) -> Answer:
        """A guest was stopped on `host`: OK | UNKNOWN | MOVED | BUSY, where heartbeats are left to find out."""
        return self._answered("gone", guest, host, self._lease)[0]

    def retell(self, host: str, facts: Iterable[tuple[str, int, str, str]]) -> None:
        """Tell again what a host's journals vouch for: (guest, epoch, fact, migration)."""
        told = [[guest, f"{epoch}.{fact}.{migration}"] for guest, epoch, fact, migration in facts]
        if told:
            self._run("retell", host, json.dumps(told))

    def resign(self, host: str, side: Side) -> None:
        """The worker of a role stops."""
        self._run("resign", host, side)

    def look_over(self, seconds: float) -> bool:
        """Whether it is the caller's turn to look over the whole record; nobody else's for so many seconds then."""
        return Answer(_decoded(self._run("look_over", max(1, round(seconds * 1000))))) is Answer.OK

    def prune(self) -> None:
        """Drop from the indexes what is gone."""
        self._run("prune")

    def _heartbeat(
        self,
        host: str,
        side: str,
        offered: Mapping[str, str],
        attempts: Iterable[Job],
        guests: Sequence[LocalGuest],
        *,
        complete: bool,
    ) -> list[str]:
        listed = [_guest_json(guest) for guest in guests]
        args = (
            host,
            side,
            self._lease,
            json.dumps(dict(offered)),
            json.dumps([_attempt_json(job) for job in attempts]),
            json.dumps(listed),
            "1" if complete else "",
        )
        return [_decoded(name) for name in self._run("heartbeat", *args)]

    # --- what operators keep where it is ------------------------------------------------------------------------------

    def pin(
        self, kept: Kept, name: str, reason: str, expires: float | None = None, *, replace: bool = False
    ) -> Pin | None:
        """Keep it there, until `expires` (the server's clock). Returns the pin of another reason that stands already.

        With `replace`, or under the same reason, this one takes its place.
        """
        until = 0 if expires is None else round(expires * 1000)
        answer = self._run("block", f"{kept}:{name}", reason, until, "1" if replace else "")
        return None if Answer(_decoded(answer[0])) is Answer.OK else read_pin(f"{kept}:{name}", answer[1])

    def unpin(self, kept: Kept, name: str, reason: str = "") -> Answer:
        """Let it move again: OK | GONE | OTHER (with `reason`, where another one stands)."""
        return Answer(_decoded(self._run("unblock", f"{kept}:{name}", reason)))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def begin_job(self, order: Order) -> tuple[Answer, str]:
        """Write a job down, and close or open its hosts: OK | EXISTS | BUSY, job | UNKNOWN, host."""
        asked = order.asked
        hosts, request = json.dumps(sorted(asked.hosts)), json.dumps(request_of(order))
        deadline = "" if asked.deadline is None else round(asked.deadline * 1000)
        return self._answered("begin_job", asked.job, order.kind, hosts, request, order.message, deadline)

    def note_job(self, job: str, found: Step) -> tuple[Answer, str]:
        """What a step came to: OK | ENDED | GONE | OCCUPIED, by what (it said that this is the end, and it is not)."""
        standings = {name: asdict(each) for name, each in found.guests.items()}
        return self._answered("note_job", job, found.state, found.reason, json.dumps(standings))

    def cancel_job(self, job: str) -> tuple[Answer, str]:
        """Ask for the end: ASKED | ENDED, state | GONE."""
        return self._answered("cancel_job", job)

    def turn(self, job: str, seconds: float, *, again: bool = False) -> bool:
        """Whether it is the caller's turn to take a step; nobody else's for so many seconds then.

        `again`: it was the caller's turn, and shall be nobody's for so long from now.
        """
        interval = max(1, round(seconds * 1000))
        return Answer(_decoded(self._run("turn", job, interval, "1" if again else ""))) is Answer.OK

    def find_job(self, job: str) -> JobRecord | None:
        """One job; None when there is none (never was, or past its retention). Raises NewerReleaseError for one
        that this release cannot read."""
        return next((read_job(job, *hashes) for job, hashes in self._hashes_of([job])), None)

    def moves_of(self, job: JobRecord) -> list[MigrationRecord]:
        """Every migration that it asked for and that is remembered."""
        return list(self._records(list(job.moves)).values())

    def open_jobs(self, *kinds: Kind) -> list[str]:
        """Jobs that have not ended; of these kinds, if any is named."""
        found = self._members(self._keys.open_jobs())
        return [record.job for record in self.readable_jobs(found) if record.kind in kinds] if kinds else found

    def jobs(self, count: int = 20) -> list[JobRecord]:
        """The latest jobs, newest first."""
        with reaching_redis(self._settings):
            names = cast("list[bytes]", self._client.zrevrange(self._keys.jobs(), 0, count - 1))
        return self.readable_jobs([name.decode() for name in names])

    def jobs_by_age(self) -> Iterator[JobRecord]:
        """Every evacuation that is remembered, the oldest first, read a page at a time."""
        for page in self._pages(self._keys.jobs()):
            yield from self.readable_jobs(page)

    def readable_jobs(self, names: Sequence[str]) -> list[JobRecord]:
        """Those of them that this release can read. Of any other the log says so, once."""
        found = []
        for job, hashes in self._hashes_of(names):
            try:
                found.append(read_job(job, *hashes))
            except NewerReleaseError as error:
                _say_once(str(error))
        return found

    def _hashes_of(self, names: Sequence[str]) -> list[tuple[str, tuple[Fields, Fields, Fields]]]:
        with self._pipeline() as pipe:
            for job in names:
                pipe.hgetall(self._keys.job(job))
                pipe.hgetall(self._keys.job_guests(job))
                pipe.hgetall(self._keys.job_moves(job))
            answers = iter(pipe.execute())
        found = [(job, (next(answers), next(answers), next(answers))) for job in names]
        return [(job, hashes) for job, hashes in found if hashes[0]]

    # --- policies by which guests are spread out ----------------------------------------------------------------------

    def policies(self, names: Sequence[str]) -> dict[str, PolicyRecord]:
        """What was judged of each; one that never was has a record all the same."""
        with self._pipeline() as pipe:
            for name in names:
                pipe.hgetall(self._keys.policy(name))
            return {name: read_policy(fields) for name, fields in zip(names, pipe.execute(), strict=True)}

    def judged(self, policy: str, before: PolicyRecord, due: float, over: int, imbalance: float, reason: str) -> Answer:
        """Write the judgement of a due moment down: OK | TAKEN, when `before` is not the latest any more."""
        moments = round(before.due * 1000), round(due * 1000)
        return Answer(_decoded(self._run("judged", policy, *moments, over, imbalance, reason)))

    def acted(self, policy: str, due: float, over: int, job: str, reason: str) -> Answer:
        """Write down the job that a tick began ("": none): OK | TAKEN, when a later moment was judged."""
        return Answer(_decoded(self._run("acted", policy, round(due * 1000), over, job, reason)))

    # --- reading ------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The server's clock, in seconds since 1970: the one that leases are measured by."""
        with reaching_redis(self._settings):
            seconds, microseconds = self._client.time()
        return seconds + microseconds / 1e6

    def find(self, migration: str) -> MigrationRecord | None:
        """One record; None when there is none (never was, or past its retention)."""
        return self._records([migration]).get(migration)

    def open(self) -> list[MigrationRecord]:
        """Every migration that has not ended or still holds a slot, oldest first."""
        with reaching_redis(self._settings):
            names = cast("set[bytes]", self._client.smembers(self._keys.open()))
        return sorted(self._records([name.decode() for name in names]).values(), key=lambda record: record.created)

    def history(self, count: int = 50) -> list[MigrationRecord]:
        """The latest migrations, newest first."""
        with reaching_redis(self._settings):
            names = cast("list[bytes]", self._client.zrevrange(self._keys.migrations(), 0, count - 1))
        return list(self._records([name.decode() for name in names]).values())

    def moves_by_age(self) -> Iterator[MigrationRecord]:
        """Every migration that is remembered, the oldest first, read a page at a time."""
        for page in self._pages(self._keys.migrations()):
            yield from self._records(page).values()

    def moves_since(self, since: float) -> set[str]:
        """Every migration that is remembered and was asked for since then."""
        with reaching_redis(self._settings):
            found = self._client.zrangebyscore(self._keys.migrations(), round(since * 1000), "+inf")
        return {name.decode() for name in cast("list[bytes]", found)}

    def move_states(self, migrations: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(guest, state) of each that is remembered: much less than its record."""
        return self._pairs([(name, self._keys.migration(name)) for name in migrations], "guest", "state")

    def job_names(self) -> set[str]:
        """Every job that is remembered."""
        with reaching_redis(self._settings):
            found = self._client.zrange(self._keys.jobs(), 0, -1)
        return {name.decode() for name in cast("list[bytes]", found)}

    def job_states(self, jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(kind, state) of each that is remembered: much less than its record."""
        found = self._pairs([(name, self._keys.job(name)) for name in jobs], "kind", "state")
        return {name: (kind or Kind.EVACUATION, state) for name, (kind, state) in found.items()}

    def durability(self) -> dict[str, bool]:
        """Whether the server keeps what it answered, by setting. `appendfsync` only where our user may read it."""
        with reaching_redis(self._settings):
            info = self._client.info()
            found = {
                "appendonly": bool(info.get("aof_enabled")),
                "maxmemory_policy": info.get("maxmemory_policy", "noeviction") == "noeviction",
            }
            with suppress(NoPermissionError):
                synced = self._client.config_get("appendfsync").get("appendfsync", b"")
                found["appendfsync"] = _decoded(synced) == "always"
        return found

    def _pairs(self, keys: Sequence[tuple[str, str]], first: str, second: str) -> dict[str, tuple[str, str]]:
        """Two fields of each of these (name, key of its hash); what is gone has no second, and is left out."""
        found: dict[str, tuple[str, str]] = {}
        for at in range(0, len(keys), _PAGE):
            page = keys[at : at + _PAGE]
            with self._pipeline() as pipe:
                for _, key in page:
                    pipe.hmget(key, [first, second])
                for (name, _), (one, other) in zip(page, pipe.execute(), strict=True):
                    if other is not None:
                        found[name] = _decoded(one or b""), _decoded(other)
        return found

    def waiting_on(self, migration: str) -> Waiter:
        """A cursor on one migration's events."""
        return Waiter(self, Events(self._client, self._keys.events(migration)))

    def hosts(self) -> list[str]:
        """Every host that was heard of and is not forgotten yet, whether a worker speaks for it or not."""
        return self._members(self._keys.hosts())

    def fleet(self) -> Fleet:
        """All hosts and guests, and what operators keep where it is."""
        now = self.now()
        keys = self._keys
        hosts, guests = self._members(keys.hosts()), self._members(keys.guests())
        with self._pipeline() as pipe:
            for host in hosts:
                pipe.hgetall(keys.host(host))
                pipe.hvals(keys.residents(host))
                pipe.hvals(keys.reserved(host))
                for side in Side:
                    pipe.scard(keys.streams(host, side))
                    pipe.scard(keys.slots(host, side))
            for guest in guests:
                pipe.hgetall(keys.guest(guest))
            pipe.hgetall(keys.blockers())
            pipe.hgetall(keys.measured())
            pipe.hgetall(keys.overheads())
            *said, measured, overheads = pipe.execute()
        answers, read = iter(said), {}
        for host in hosts:
            fields, resident, reserved = next(answers), next(answers), next(answers)
            taken = {side: (next(answers), next(answers)) for side in Side}
            busy, admitted = ({side: taken[side][each] for side in Side} for each in (0, 1))
            if fields:
                fields[b"measured"] = measured.get(host.encode(), b"0")
                fields[b"overheads"] = overheads.get(host.encode(), b"[]")
                held = sum(map(int, resident)), sum(map(int, reserved))
                read[host] = read_host(host, fields, now, *held, busy, admitted)
        there = {guest: read_guest(guest, fields) for guest in guests if (fields := next(answers))}
        pins = [read_pin(subject.decode(), said) for subject, said in next(answers).items()]
        standing = [pin for pin in pins if pin.expires is None or pin.expires > now]
        return Fleet(read, there, {(pin.kept, pin.name): pin for pin in standing})

    def cluster(self) -> Cluster:
        """The fleet as plans see it. What is under way is read first: a move that ends meanwhile still counts."""
        under_way, fleet = self.open(), self.fleet()
        return live.cluster(fleet, under_way, self.now())

    def _members(self, key: str) -> list[str]:
        with reaching_redis(self._settings):
            return sorted(member.decode() for member in cast("set[bytes]", self._client.smembers(key)))

    def _pages(self, index: str) -> Iterator[list[str]]:
        """What an index by creation time has now, the oldest first.

        A page goes on from the time of the last one, not from its place: those before it may go meanwhile.
        """
        since, seen, until = 0, frozenset[bytes](), round(self.now() * 1000)
        while True:
            with reaching_redis(self._settings):
                page = self._client.zrangebyscore(index, since, until, 0, _PAGE + len(seen), withscores=True)
            found = cast("list[tuple[bytes, float]]", page)
            if not (fresh := [name for name, _ in found if name not in seen]):
                return
            yield [name.decode() for name in fresh]
            since = round(found[-1][1])
            seen = frozenset(name for name, created in found if created == since)

    def _records(self, migrations: Sequence[str]) -> dict[str, MigrationRecord]:
        with self._pipeline() as pipe:
            for migration in migrations:
                pipe.hgetall(self._keys.migration(migration))
            found: list[Fields] = pipe.execute()
        return {
            migration: read_migration(migration, fields)
            for migration, fields in zip(migrations, found, strict=True)
            if fields
        }

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        with reaching_redis(self._settings), self._client.pipeline(transaction=False) as pipe:
            yield pipe

    def _answered(self, script: str, *args: Any) -> tuple[Answer, str]:
        """What scripts say that answer with a word and what it is about."""
        answer = self._run(script, *args)
        return Answer(_decoded(answer[0])), _decoded(answer[1]) if len(answer) > 1 else ""

    def _run(self, script: str, *args: Any) -> Any:
        with reaching_redis(self._settings):
            run = self._client.register_script(_source(script))
            return run(keys=[self._keys.prefix], args=[self._retention, *args])

    def wait(self, events: Events, seconds: float) -> None:
        """Return when something happened, or after `seconds`, at most 5."""
        with reaching_redis(self._settings):
            events.wait(seconds)


class Waiter:
    """Waits for a migration's next event."""

    def __init__(self, ledger: Ledger, events: Events) -> None:
        self._ledger = ledger
        self._events = events

    def wait(self, seconds: float) -> None:
        """Return when something happened since the last call, or after `seconds`, at most 5."""
        self._ledger.wait(self._events, seconds)


def _guest_json(guest: LocalGuest) -> dict[str, str]:
    """Numbers as text, as below; what was not looked at is not there, and stays as it was."""
    rules = {"anti_affinity": guest.anti_affinity, "needs": guest.needs, "cpu_model": guest.cpu_model}
    said = {"name": guest.name, "bytes": str(guest.memory), "epoch": str(guest.epoch), "rules": json.dumps(rules)}
    return said if guest.load is None else said | {"load": f"{guest.load:.3f}"}


def _attempt_json(job: Job) -> dict[str, str]:
    """Numbers as text: Lua would make doubles of them."""
    return {
        "migration": job.migration,
        "guest": job.guest,
        "epoch": str(job.epoch),
        "side": job.side,
        "nonce": job.nonce,
        "source": job.source,
        "destination": job.destination,
        "memory": str(job.memory),
        "capabilities": json.dumps(dict(job.capabilities)),
        "parameters": json.dumps(dict(job.parameters)),
        "granted": "1" if job.granted else "",
    }


@cache
def _say_once(said: str) -> None:
    log.warning("%s", said)


@cache
def _source(script: str) -> str:
    here = Path(__file__).parent
    return (here / "prelude.lua").read_text() + (here / f"{script}.lua").read_text()


def _decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
