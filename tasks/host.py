"""One role of one host: what its worker does beside waiting for messages.

It speaks for the host (heartbeat), takes up what another worker or a crash left (attempts on disk), and looks over the
fleet's record now and then. All of it is told to it as functions and values, so that it runs without Celery.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from config.errors import DrovewayError, HostError, MessageError
from tasks.bell import Bell
from tasks.ledger.ledger import Ledger
from tasks.messages import Doorbell
from tasks.planning.cluster import BANDWIDTH
from tasks.reconcile import reconcile
from tasks.records import LocalGuest, MigrationRecord
from tasks.requests import admit
from tasks.steps import BETWEEN_STEPS, take_steps
from tasks.supervise import Supervisor
from workers.attempt import Attempt, Job
from workers.metrics.exporter import Exporter
from workers.pairing.contract import Side
from workers.wire import WIRE

_T = TypeVar("_T")

log = logging.getLogger("droveway.host")

#: Seconds in which one look for what can be admitted is enough: every heartbeat asks for one, and a fleet has many.
_LOOKED = 1.0
#: The part of an interval in which one pass over the fleet is enough: a worker that is alone is not late for its own.
_OF_AN_INTERVAL = 0.9


@dataclass(frozen=True, slots=True)
class Offered:
    """What a host offers to migrations. Sizes in bytes; `memlock` None: no limit."""

    address: str
    version: str
    memory: int
    memlock: int | None
    capabilities: Sequence[str]
    transports: Sequence[str]
    trackers: Sequence[str]
    slots: Mapping[Side, int]
    cpus: float = 0.0
    #: Bytes/s of its link, and of the shared link behind it ("": none).
    bandwidth: int = BANDWIDTH
    uplink: str = ""
    uplink_bandwidth: int = 0
    labels: Sequence[str] = ()
    #: Migrations that may prepare while as many as there are slots send.
    ahead: int = 0
    #: Names of the processor models that its QEMU knows; empty: not known.
    cpu_models: Collection[str] = ()
    #: What its program speaks with other hosts.
    wire: int = WIRE

    def fields(self) -> dict[str, str]:
        """As the hash of tasks/ledger/prelude.lua."""
        return {
            "address": self.address,
            "version": self.version,
            "wire": str(self.wire),
            "memory": str(self.memory),
            "memlock": "" if self.memlock is None else str(self.memlock),
            "capabilities": json.dumps(sorted(self.capabilities)),
            "transports": json.dumps(list(self.transports)),
            "trackers": json.dumps(list(self.trackers)),
            "cpus": str(self.cpus),
            "bandwidth": str(self.bandwidth),
            "uplink": self.uplink,
            "uplink_bandwidth": str(self.uplink_bandwidth),
            "labels": json.dumps(list(self.labels)),
            "ahead": str(self.ahead),
            "cpu_models": json.dumps(sorted(self.cpu_models)),
            **{f"slots:{side}": str(self.slots[side]) for side in Side},
        }


@dataclass(slots=True)
class HostService:
    """See the module. Intervals in seconds."""

    host: str
    side: Side
    state_dir: Path
    ledger: Ledger
    bell: Bell
    supervisor: Supervisor
    metrics: Exporter
    offered: Offered
    #: Guests that this host owns by its journal, incoming ones left out.
    owned_guests: Callable[[], Sequence[LocalGuest]]
    #: What its journals vouch for: (guest, epoch, fact, migration).
    journal_facts: Callable[[], Iterable[tuple[str, int, str, str]]]
    heartbeat_interval: float
    reconcile_interval: float
    #: What is offered of these, as far as it is known now; it answers at once.
    cpu_models: Callable[[], Collection[str]] = frozenset
    #: Called with each tick: a worker whose ticks end is ill.
    ticked: Callable[[], object] = lambda: None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: int = -1
    _disputed: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Take up what is there, and begin to tick. Raises HostError when this role has a worker on this host."""
        self._lock = _take_role(self.state_dir, self.side)
        Attempt.sweep(self.state_dir)
        self.take_up()
        self._thread = threading.Thread(target=self._tick, name=f"host {self.side}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let go, quickly; movers go on. Harmless when repeated."""
        self._stopping.set()
        self.supervisor.detach()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None
            self._safely("resign", lambda: self.ledger.resign(self.host, self.side))
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- messages -----------------------------------------------------------------------------------------------------

    def answer(self, doorbell: Doorbell) -> None:
        """Take an attempt up, unless it is known here. Raises MessageError when the record says something else."""
        if (doorbell.host, doorbell.side) != (self.host, self.side):
            raise MessageError(
                f"A doorbell for the {doorbell.side} on {doorbell.host} rang at the {self.side} on {self.host};"
                " correct the queues of the workers."
            )
        record = self.ledger.find(doorbell.migration)
        if record is None or not _agrees(record, doorbell):
            raise MessageError(
                f"A doorbell for {doorbell.migration}, epoch {doorbell.epoch}, does not agree with the record;"
                " it was dropped, and nothing was started."
            )
        job = _job(record, self.side, self.host, secrets.token_hex(16))
        attempt = Attempt.of(self.state_dir, job.ticket)
        if record.ended or not attempt.prepare(job):
            self.metrics.duplicate(self.side)
            return
        if self.side is Side.SOURCE and record.admitted is not None:
            self.metrics.waited(record.admitted - record.created)
        self.supervisor.attach(attempt)

    def settle_own(self) -> None:
        """Take up every attempt of this side that nobody follows, also those that only the record remembers."""
        now = self.ledger.now()
        for record in self.ledger.open():
            there = record.side(self.side)
            lapsed = there.lease is None or there.lease < now
            if there.host == self.host and there.at_work and lapsed and not record.ended and there.nonce:
                job = _job(record, self.side, self.host, there.nonce)
                if Attempt.of(self.state_dir, job.ticket).adopt(job):
                    log.warning("%s: its directory is gone; it is settled from the journal", record.migration)
        self.take_up()

    # --- by itself ----------------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Follow every attempt of this side on disk."""
        for attempt in Attempt.all(self.state_dir):
            if _side_of(attempt) is self.side:
                self.supervisor.attach(attempt)

    def beat(self) -> None:
        """Say once what there is. Raises UnreachableError."""
        attempts = [attempt for attempt in Attempt.all(self.state_dir) if attempt.started()]
        jobs = [
            replace(attempt.job(), granted=attempt.granted()) for attempt in attempts if _side_of(attempt) is not None
        ]
        guests = self.owned_guests()
        offered = replace(self.offered, cpu_models=self.cpu_models())
        disputed = set(self.ledger.heartbeat(self.host, self.side, offered.fields(), jobs, guests))
        # Once is the time between a handover and its record; an operator need only know of what stays so.
        for guest in disputed & self._disputed:
            log.error("guest %s is here by this host's journal, the record has it elsewhere", guest)
        self._disputed = disputed
        self.ledger.retell(self.host, self.journal_facts())
        admit(self.ledger, self.bell, _LOOKED)

    def look_over(self) -> None:
        """One pass over this host's own attempts, and one over the fleet unless somebody has just made it.

        Raises UnreachableError.
        """
        if self.ledger.look_over(self.reconcile_interval * _OF_AN_INTERVAL):
            for finding in reconcile(self.ledger, self.bell).findings:
                log.info("%s: %s: %s", finding.migration, finding.action, finding.reason)
        self.settle_own()

    def _tick(self) -> None:
        beaten, looked = -math.inf, time.monotonic()
        while True:
            self.ticked()
            if time.monotonic() - beaten >= self.heartbeat_interval:
                beaten = time.monotonic()
                self._safely("heartbeat", self.beat)
            working = self._safely("jobs", lambda: take_steps(self.ledger, self.bell))
            if time.monotonic() - looked >= self.reconcile_interval:
                looked = time.monotonic()
                self._safely("reconcile", self.look_over)
            # A step asks for what can go next; between two of them links would fall idle.
            pause = min(self.heartbeat_interval, self.reconcile_interval, BETWEEN_STEPS if working else math.inf)
            if self._stopping.wait(pause):
                return

    def _safely(self, what: str, step: Callable[[], _T]) -> _T | None:
        """What it comes to; None when it could not be done. The next tick tries again, whatever it was."""
        try:
            return step()
        except DrovewayError as error:
            log.warning("%s: %s", what, error)
        except Exception:  # a defect in one step must not end the heartbeat
            log.exception("%s: a defect", what)
        return None


def _take_role(state_dir: Path, side: Side) -> int:
    """The lock of this role: two workers of one role on one host would both finish what one of them supervises."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(state_dir / f"{side}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise HostError(f"A {side} worker runs on this host already ({state_dir}); stop it first.") from None
    return lock


def _agrees(record: MigrationRecord, doorbell: Doorbell) -> bool:
    return (record.guest, record.epoch, record.source.host, record.destination.host) == (
        doorbell.guest,
        doorbell.epoch,
        doorbell.source,
        doorbell.destination,
    )


def _job(record: MigrationRecord, side: Side, host: str, nonce: str) -> Job:
    assert record.epoch is not None, "only what was admitted is ever rung for"
    return Job(
        migration=record.migration,
        guest=record.guest,
        epoch=record.epoch,
        side=side,
        nonce=nonce,
        host=host,
        peer_host=record.side(side.peer).host,
        memory=record.memory,
        capabilities=record.capabilities,
        parameters=record.parameters,
        granted=record.granted is not None,
    )


def _side_of(attempt: Attempt) -> Side | None:
    """None when it was removed meanwhile, or belongs to another release."""
    try:
        return attempt.job().side
    except HostError:
        return None
