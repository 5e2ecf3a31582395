"""What travels through Celery: frozen, versioned, size-capped, strictly checked. Pure.

A message is a doorbell: the record in Redis says what is to be done. Everything that matters is inside the body and
checked against the record, because the envelope (task name, id, queue) can be forged by whoever reaches the broker.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from config.capabilities import EngineChoice
from config.errors import MessageError
from config.names import check_name, validator
from config.settings import RebalanceSettings
from workers.pairing.contract import Side

VERSION = 1
SPOKEN = frozenset({VERSION, VERSION - 1} - {0})

#: Bytes of a body. A request with every capability and parameter there is takes 1 KiB.
MAX_BODY = 16 << 10

#: Seconds for which a doorbell may be answered. The epoch is what fences it; this only ends the life of a message that
#: lay in a queue nobody served. An hour, because hosts' clocks are compared here.
DOORBELL_LIFETIME = 3600.0

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError("use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or a digit")
    return value


Host = Annotated[str, AfterValidator(validator(partial(check_name, "host")))]
GuestName = Annotated[str, AfterValidator(validator(partial(check_name, "guest")))]
PolicyName = Annotated[str, AfterValidator(validator(partial(check_name, "policy")))]
MigrationId = Annotated[str, AfterValidator(_check_id)]
#: Seconds since 1970.
Moment = Annotated[float, Field(gt=0, lt=1e11)]


def new_migration_id() -> str:
    """A fresh id. Its submitter chooses it, so that a repeated submission is the same migration."""
    return f"m-{secrets.token_hex(8)}"


class Message(BaseModel):
    """What all messages are: a body of JSON with a version, good until it expires."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    task: ClassVar[str]
    version: Literal[1] = 1
    expires: Moment | None = None

    def to_json(self) -> dict[str, Any]:
        """The body, for `read`."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, body: object, now: float) -> Self:
        """The message in `body` (decoded JSON); `now` in seconds since 1970.

        Raises MessageError: not an object, too large, of another version, malformed, or expired.
        """
        document = _document(cls.task, body)
        try:
            message = cls.model_validate_json(document)
        except ValidationError as error:
            raise MessageError(_complaint(cls.task, error)) from None
        if message.expires is not None and message.expires < now:
            raise MessageError(
                f"A message {cls.task} expired {now - message.expires:.0f} s ago; nothing was done, send a new one."
            )
        return message


class MigrateRequest(Message):
    """What a producer asks for. Capabilities and parameters as `config.capabilities.read_options` takes them."""

    task = "droveway.migrate"

    #: Chosen by the producer (`new_migration_id`): a message that is delivered twice is one migration.
    migration: MigrationId
    guest: GuestName
    destination: Host
    #: Where the guest is; checked when given, else looked up.
    source: Host | None = None
    capabilities: dict[str, Any] | list[Any] | None = None
    parameters: dict[str, Any] | list[Any] | None = None
    #: `background`: whatever else wants the same slots goes first.
    priority: Literal["user", "background"] = "user"


class Doorbell(Message):
    """To one side's worker: this attempt waits for you. `side` repeats what the task's name says."""

    migration: MigrationId
    guest: GuestName
    epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    source: Host
    destination: Host
    side: Side

    @property
    def host(self) -> str:
        """Whom it is for."""
        return self.source if self.side is Side.SOURCE else self.destination


class SourceDoorbell(Doorbell):
    """To the source."""

    task = "droveway.migrate.source"
    side: Literal[Side.SOURCE] = Side.SOURCE


class DestinationDoorbell(Doorbell):
    """To the destination."""

    task = "droveway.migrate.destination"
    side: Literal[Side.DESTINATION] = Side.DESTINATION


class Reconcile(Message):
    """Look for what was lost or cut off: on one host when `host` is given, else in the fleet's record."""

    task = "droveway.reconcile"

    host: Host | None = None


class Rebalance(Message):
    """A policy is due: look whether guests should be moved. Which due moment this is, the server's clock says."""

    task = "droveway.rebalance"

    policy: PolicyName
    #: What it says, so that workers need no settings of their own.
    terms: RebalanceSettings


class CheckRequest(Message):
    """To one host's worker of one role: look whether this guest could leave, or come. Answered through Redis."""

    task = "droveway.check"

    #: Names the answers; two requests of one check go to the two hosts, the source's first.
    check: MigrationId
    guest: GuestName
    host: Host
    side: Side
    #: As the parameter `engine` of a migration: what only keeps us from moving a guest does not keep QEMU.
    engine: EngineChoice = EngineChoice.AUTO


def _document(task: str, body: object) -> bytes:
    """The body as JSON again, once its size and version are known to be ours."""
    if not isinstance(body, Mapping):
        raise MessageError(f"A message {task} is a {type(body).__name__}, not an object; it was dropped.")
    try:
        document = json.dumps(body).encode()
    except (TypeError, ValueError, RecursionError):
        raise MessageError(f"A message {task} is not JSON; it was dropped.") from None
    if len(document) > MAX_BODY:
        raise MessageError(f"A message {task} has {len(document)} bytes, more than {MAX_BODY}; it was dropped.")
    version = body.get("version")
    if type(version) is not int or version not in SPOKEN:
        spoken = " and ".join(str(each) for each in sorted(SPOKEN))
        raise MessageError(
            f"A message {task} is of version {version!r:.20}, this worker speaks {spoken}; upgrade the older side."
        )
    return document


def _complaint(task: str, error: ValidationError) -> str:
    """The first complaint, without the value: it may be anything."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"A message {task} is malformed at {where!r:.80} ({said:.200}); it was dropped."
