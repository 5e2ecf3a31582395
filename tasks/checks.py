"""A dry run of a move: what both hosts' workers see in its way. Asked by a Celery message, answered through Redis.

    producer ── CheckRequest ──► source worker       its blockers, and what it would tell a destination  ──► check:C
    producer ── CheckRequest ──► destination worker  reads that, and looks whether it has all of it      ──► check:C

Nothing is reserved, and nothing of the guest is started: the destination asks a QEMU without a machine, and opens the
guest's taps for a moment, by which their carrier comes and goes. Answers lie in Redis for ten minutes.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from config.capabilities import read_options
from config.errors import DrovewayError, MessageError, RefusedError, UnreachableError
from config.redis import coordination_client, reaching_redis
from config.settings import Settings
from tasks.admission import judge
from tasks.ledger.ledger import Ledger
from tasks.messages import DOORBELL_LIFETIME, CheckRequest, Message, MigrateRequest
from tasks.queues import queues_for
from tasks.records import Checked, Fleet, Obstacle
from workers.guests.blocker import Blocker, read_blockers, standing
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.pairing.contract import Side
from workers.pairing.engine import leaving
from workers.pairing.keys import Keys

#: Seconds in which a worker must have answered: it starts a QEMU to ask it, and may have other checks before this one.
ANSWER_SECONDS = 60.0
#: Seconds for which answers lie in Redis.
_KEPT = 600
_LOOK = 0.1
#: Bytes of one answer: a description is an offer's guest, at most 64 KiB, and blockers beside it.
_MAX_ANSWER = 256 << 10


class Checks:
    """Where answers lie. Every call raises UnreachableError when Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.redis
        self._client = coordination_client(settings.redis, "droveway-checks")
        self._keys = Keys(settings.redis.prefix)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def put(self, check: str, side: Side, answer: Mapping[str, Any]) -> None:
        """Answer for one side."""
        document = json.dumps(dict(answer)).encode()
        if len(document) > _MAX_ANSWER:
            raise MessageError(f"the answer to a check has {len(document)} bytes, more than {_MAX_ANSWER}.")
        with reaching_redis(self._settings), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.check(check), str(side), document)
            pipe.expire(self._keys.check(check), _KEPT)
            pipe.execute()

    def find(self, check: str, side: Side) -> dict[str, Any] | None:
        """One side's answer, None while there is none. Raises MessageError when it is not one."""
        with reaching_redis(self._settings):
            found = cast("bytes | None", self._client.hget(self._keys.check(check), str(side)))
        if found is None:
            return None
        try:
            answer = json.loads(found) if len(found) <= _MAX_ANSWER else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise MessageError(f"the {side}'s answer to a check is none; run the same release on all hosts.")
        return answer


# --- a worker answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Examiner:
    """Answers for one role of this host."""

    host: str
    side: Side
    guests: LocalGuests
    checks: Checks

    def answer(self, request: CheckRequest) -> None:
        """Look, and put the answer where the producer waits for it. Raises MessageError, UnreachableError."""
        if (request.host, request.side) != (self.host, self.side):
            raise MessageError(
                f"A check for the {request.side} on {request.host} came to the {self.side} on {self.host}; correct the"
                " queues of the workers."
            )
        try:
            look = self._leaving if self.side is Side.SOURCE else self._coming
            said = look(request)
        except DrovewayError as error:
            said = {"error": {"reason": error.reason, "message": str(error)}}
        self.checks.put(request.check, self.side, said)

    def _leaving(self, request: CheckRequest) -> dict[str, Any]:
        guest = self.guests.open(request.guest)
        try:
            engine, blockers = leaving(request.engine, guest.blockers(), guest.not_by_itself)
            if (status := guest.status()) is not RunState.RUNNING:
                paused = f"{request.guest} is {status}, not running"
                blockers.append(Blocker("not-running", paused, "let it run, or see `droveway reconcile`"))
            described = guest.description()
        finally:
            guest.close()
        return {"blockers": [each.to_json() for each in blockers], "description": described, "engine": engine.value}

    def _coming(self, request: CheckRequest) -> dict[str, Any]:
        said = self.checks.find(request.check, Side.SOURCE)
        if said is None or not isinstance(said.get("description"), dict):
            raise MessageError("the source has not described the guest; check again.")
        if self.guests.holds(request.guest):
            found = f"a guest named {request.guest} is on {self.host} already"
            return {"blockers": [Blocker("guest-exists", found, "stop it there, or go elsewhere").to_json()]}
        blockers = standing(self.guests.obstacles(said["description"]), by_qemu=said.get("engine") == "qemu")
        return {"blockers": [each.to_json() for each in blockers]}


# --- a producer asks --------------------------------------------------------------------------------------------------


def examine(
    settings: Settings,
    ledger: Ledger,
    send: Callable[[Message, str], None],
    request: MigrateRequest,
    seconds: float = ANSWER_SECONDS,
) -> Checked:
    """Ask both hosts and the record, and change nothing.

    Raises RefusedError (`unknown-guest`), RequestError, and UnreachableError when a worker that should be there does
    not answer within `seconds`, or a host's own error when it cannot look.
    """
    fleet = ledger.fleet()
    obstacles = _refused_by_admission(request, fleet)
    source = fleet.guests[request.guest].host
    check = secrets.token_hex(8)
    engine = read_options(request.capabilities, request.parameters)[1].engine
    with closing(Checks(settings)) as checks:
        for side, host in ((Side.SOURCE, source), (Side.DESTINATION, request.destination)):
            if host in fleet.hosts and side in fleet.hosts[host].alive and (side is Side.SOURCE or host != source):
                asked = CheckRequest(
                    check=check,
                    guest=request.guest,
                    host=host,
                    side=side,
                    engine=engine,
                    expires=time.time() + DOORBELL_LIFETIME,
                )
                obstacles += _asked(checks, send, asked, seconds)
            elif side is Side.SOURCE:
                break  # a destination can only be asked about a guest that was described
    return Checked(request.guest, source, request.destination, tuple(obstacles))


def _refused_by_admission(request: MigrateRequest, fleet: Fleet) -> list[Obstacle]:
    """The rule that would refuse the request, if one would. An unknown guest ends it: nobody could be asked."""
    try:
        judge(request, fleet)
    except RefusedError as refusal:
        if request.guest not in fleet.guests:
            raise
        what, _, remedy = str(refusal).rstrip(".").partition("; ")
        return [Obstacle(Blocker(refusal.reason, what, remedy))]
    return []


def _asked(checks: Checks, send: Callable[[Message, str], None], asked: CheckRequest, seconds: float) -> list[Obstacle]:
    for queue in queues_for(asked):
        send(asked, queue)
    deadline = time.monotonic() + seconds
    while (answer := checks.find(asked.check, asked.side)) is None:
        if time.monotonic() > deadline:
            raise UnreachableError(
                f"The {asked.side} worker of {asked.host} did not answer within {seconds:g} s; look at its log, and"
                " whether it is of this release."
            )
        time.sleep(_LOOK)
    if error := answer.get("error"):
        raise RefusedError(f"{asked.host} cannot look: {error['message']}", str(error["reason"]))
    try:
        return [Obstacle(each, asked.side, asked.host) for each in read_blockers(answer.get("blockers"))]
    except ValueError:
        raise MessageError(f"The answer of {asked.host} is none; run the same release on all hosts.") from None
