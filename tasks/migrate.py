"""What the tasks do: read the body, hand it on. Each is short; movers work elsewhere, for as long as it takes.

A message that is refused is dropped, counted and logged: there is nobody to answer, and sending it again would not
help. One that could not be acted on because Redis is away is dropped too; reconcile rings again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from config.errors import DrovewayError, MessageError, RefusedError
from tasks.bell import Bell
from tasks.host import HostService
from tasks.ledger.ledger import Ledger
from tasks.messages import CheckRequest, DestinationDoorbell, MigrateRequest, Rebalance, Reconcile, SourceDoorbell
from tasks.reconcile import reconcile
from tasks.requests import admit, record_refused, submit
from tasks.scheduled import tick
from workers.metrics.exporter import Exporter

log = logging.getLogger("droveway.tasks")

Handler = Callable[[object], None]


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks of one worker, by name in `handlers`."""

    ledger: Ledger
    bell: Bell
    host: HostService
    metrics: Exporter
    #: Answers for this host and role whether a guest could move.
    examine: Callable[[CheckRequest], None]
    #: Seconds since 1970.
    clock: Callable[[], float] = time.time

    def handlers(self) -> Mapping[str, Handler]:
        """Task name → what it does with a body."""
        return {
            MigrateRequest.task: self._guarded(self.migrate),
            SourceDoorbell.task: self._guarded(self.source),
            DestinationDoorbell.task: self._guarded(self.destination),
            Reconcile.task: self._guarded(self.reconcile),
            Rebalance.task: self._guarded(self.rebalance),
            CheckRequest.task: self._guarded(self.check),
        }

    def migrate(self, body: object) -> None:
        """A producer asks for a migration. A refusal ends up in its record, where the producer looks."""
        request = MigrateRequest.read(body, self.clock())
        try:
            submit(self.ledger, request)
        except (RefusedError, MessageError) as refusal:
            said = refusal if isinstance(refusal, RefusedError) else RefusedError(str(refusal))
            record_refused(self.ledger, request, said)
            raise
        admit(self.ledger, self.bell)

    def source(self, body: object) -> None:
        """An attempt waits for its source."""
        self.host.answer(SourceDoorbell.read(body, self.clock()))

    def destination(self, body: object) -> None:
        """An attempt waits for its destination."""
        self.host.answer(DestinationDoorbell.read(body, self.clock()))

    def reconcile(self, body: object) -> None:
        """Look after this host's attempts, or the fleet's record."""
        message = Reconcile.read(body, self.clock())
        if message.host is None:
            reconcile(self.ledger, self.bell)
        else:
            self.host.settle_own()

    def rebalance(self, body: object) -> None:
        """A policy is due."""
        tick(self.ledger, self.bell, Rebalance.read(body, self.clock()))

    def check(self, body: object) -> None:
        """A producer asks whether a guest could move."""
        self.examine(CheckRequest.read(body, self.clock()))

    def _guarded(self, handler: Handler) -> Handler:
        def run(body: object) -> None:
            try:
                handler(body)
            except MessageError as error:
                self.metrics.refused_message()
                log.warning("refused: %s", error)
            except DrovewayError as error:
                log.warning("%s: %s", error.reason, error)

        return run
