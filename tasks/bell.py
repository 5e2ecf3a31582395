"""Ringing: how those who write the record wake those who act on it. Losing a ring costs time, nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from tasks.messages import DOORBELL_LIFETIME, DestinationDoorbell, Doorbell, Message, Reconcile, SourceDoorbell
from tasks.queues import queues_for
from tasks.records import MigrationRecord
from workers.pairing.contract import Side


class Bell(Protocol):
    """What may be rung."""

    def ring(self, record: MigrationRecord, side: Side) -> None:
        """Tell one side's worker that an admitted attempt waits for it. Raises UnreachableError."""
        ...

    def reconcile(self, host: str) -> None:
        """Ask a host's workers to look after their own attempts. Raises UnreachableError."""
        ...


#: Puts a message in a queue. Raises UnreachableError.
Send = Callable[[Message, str], None]


class MessageBell:
    """Rings by sending messages."""

    def __init__(self, send: Send, clock: Callable[[], float] = time.time) -> None:
        self._send = send
        self._clock = clock

    def ring(self, record: MigrationRecord, side: Side) -> None:
        """See Bell."""
        self._put(doorbell_for(record, side, self._clock() + DOORBELL_LIFETIME))

    def reconcile(self, host: str) -> None:
        """See Bell."""
        self._put(Reconcile(host=host, expires=self._clock() + DOORBELL_LIFETIME))

    def _put(self, message: Message) -> None:
        for queue in queues_for(message):
            self._send(message, queue)


def doorbell_for(record: MigrationRecord, side: Side, expires: float) -> Doorbell:
    """The doorbell of one side of an admitted record."""
    assert record.epoch is not None, "only what was admitted has an epoch"
    kind = SourceDoorbell if side is Side.SOURCE else DestinationDoorbell
    return kind(
        migration=record.migration,
        guest=record.guest,
        epoch=record.epoch,
        source=record.source.host,
        destination=record.destination.host,
        expires=expires,
    )
