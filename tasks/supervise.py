"""Following attempts: one thread each, between a mover's directory on this host and its record in Redis.

A supervisor decides nothing. It starts a mover when the claim is won, carries what the mover says to the record and the
record's wish to cancel to the mover, and takes the outcome to the record when the mover ended. Whether Redis is there
only changes when it does so. It may be cut off anywhere: a directory says all that the next one must know.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config.errors import DrovewayError
from tasks.ledger.ledger import Answer, Ledger
from workers import logs
from workers.attempt import MOVER, Attempt, Job, Status
from workers.metrics.exporter import Exporter
from workers.pairing.contract import Side
from workers.rounds.contract import PHASES

log = logging.getLogger("droveway.supervise")

#: Seconds between two looks of a source that is prepared, and waits to be let onto the links: they are idle meanwhile.
_LOOK_FOR_LINKS = 0.2

#: Reasons of an end that only the mover's own log explains, and that log goes with the attempt.
_UNEXPLAINED = (DrovewayError.reason, "mover-died")

#: Finishes what a mover that died left behind, from this host's journal; the status that says how it ended, or
#: `unresolved`. Raises DrovewayError: then it is tried again later.
Settle = Callable[[Attempt], Status]


@dataclass(slots=True)
class _Told:
    """What was carried so far."""

    status: Status | None = None
    renewed: float = float("-inf")
    lost: bool = False
    #: Rounds that were logged.
    rounds: int = 0


@dataclass(slots=True)
class Supervisor:
    """Follows the attempts of one role of one host. `poll` and `lease` in seconds, `finished` after each outcome."""

    ledger: Ledger
    settle: Settle
    metrics: Exporter
    environment: Mapping[str, str]
    poll: float
    lease: float
    finished: Callable[[], object] = lambda: None
    command: Sequence[str] = MOVER
    clock: Callable[[], float] = time.monotonic
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: dict[Path, threading.Thread] = field(default_factory=dict)
    #: Taken again by `detach` where a signal comes while `attach` has it.
    _guard: threading.RLock = field(default_factory=threading.RLock)

    def attach(self, attempt: Attempt) -> bool:
        """Follow this attempt from wherever it stands; False when it is followed already."""
        with self._guard:
            if attempt.directory in self._threads or self._stopping.is_set():
                return False
            name = f"supervise {attempt.directory.name}"
            thread = threading.Thread(target=self._run, args=(attempt,), name=name, daemon=True)
            self._threads[attempt.directory] = thread
        thread.start()
        return True

    def detach(self, seconds: float = 10.0) -> None:
        """Stop following; movers go on, and the next worker takes them up."""
        self._stopping.set()
        with self._guard:
            threads = list(self._threads.values())
        deadline = self.clock() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - self.clock()))

    def _run(self, attempt: Attempt) -> None:
        try:
            self._supervise(attempt)
        except DrovewayError as error:
            log.warning("%s is left for later: %s", attempt.directory.name, error)
        except Exception:  # the thread's last frame: a defect must not pass unseen, and the attempt is tried again
            log.exception("%s is left for later: a defect", attempt.directory.name)
        finally:
            logs.about_nothing()
            with self._guard:
                del self._threads[attempt.directory]

    def _supervise(self, attempt: Attempt) -> None:
        job = attempt.job()
        logs.about(job, "setup")
        if not attempt.started() and not self._begin(attempt, job):
            return
        name = attempt.directory.name
        self.metrics.began(job.side, name)
        try:
            told = self._follow(attempt, job)
            if self._stopping.is_set():
                return
            status = attempt.status()
            if status.outcome in (None, "unresolved"):
                status = self.settle(attempt)
            _tell(job, told, status)
            if status.outcome == "unresolved":
                self.ledger.renew(job.ticket, status)
            elif self._finish(job, status):
                self.metrics.ended(job.side, status)
                _tell_last_words(attempt, status)
                attempt.remove()
        finally:
            self.metrics.left(job.side, name)
        self.finished()

    def _begin(self, attempt: Attempt, job: Job) -> bool:
        """Claim and start the mover; False when it is not ours to start."""
        answer = self._until_answered(lambda: self.ledger.claim(job.ticket))
        if answer is None:
            return False
        if answer is not Answer.OK:
            log.info("%s is not started: %s", attempt.directory.name, answer)
            self.metrics.duplicate(job.side)
            attempt.remove()
            return False
        process = attempt.start(self.environment, self.command)
        # Whoever starts a child must bury it, also when nobody follows it any more.
        threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
        log.info("%s: mover %d started", attempt.directory.name, process.pid)
        return True

    def _follow(self, attempt: Attempt, job: Job) -> _Told:
        """Until the mover ended, or this worker stops."""
        told = _Told(rounds=len(attempt.status().rounds))  # what a worker before this one has told is not told again
        while not attempt.wait(self._pause(attempt, job)) and not self._stopping.is_set():
            self._carry(attempt, job, told)
        return told

    def _pause(self, attempt: Attempt, job: Job) -> float:
        waits = job.side is Side.SOURCE and not attempt.granted()
        return min(self.poll, _LOOK_FOR_LINKS) if waits else self.poll

    def _carry(self, attempt: Attempt, job: Job, told: _Told) -> None:
        """One look: progress and lease to the record, the wish to cancel to the mover. Redis may be away."""
        status = attempt.status()
        self.metrics.saw(job.side, attempt.directory.name, status)
        _tell(job, told, status)
        changed = status != told.status
        try:
            answer, state = self.ledger.renew(job.ticket, status if changed else None)
        except DrovewayError as error:
            log.warning("%s goes on without its record: %s", attempt.directory.name, error)
            return
        if answer in (Answer.OK, Answer.CANCEL):
            told.status = status
        if answer is Answer.OK and state == "go" and not attempt.granted():
            attempt.grant()
        if answer is Answer.FENCED and not told.lost:
            told.lost = True
            self.metrics.lease_lost(job.side)
            log.error("%s: the record gave its claim to another; its mover is asked to cancel", attempt.directory.name)
        # Asking to cancel is always safe: after GIVEN the mover goes on to the end all the same. The source's mover
        # tells the other one: were both asked, the source might hear first that its peer is gone, and call that a
        # failure.
        wanted = answer is Answer.CANCEL and job.side is Side.SOURCE
        if wanted or answer is Answer.FENCED or (answer is Answer.ENDED and state != "completed"):
            attempt.cancel()

    def _finish(self, job: Job, status: Status) -> bool:
        """Take the outcome to the record; False when this worker stops before the record has it."""
        forgotten_at = None
        while True:
            answer = self._until_answered(lambda: self.ledger.finish(job.ticket, status))
            if answer is None:
                return False
            if answer is not Answer.GONE:
                break
            # Redis forgot the record: the next heartbeat of this host, which still has the attempt, writes it back.
            forgotten_at = forgotten_at or self.clock()
            if self.clock() - forgotten_at > self.lease or self._stopping.wait(self.poll):
                break
        level = logging.INFO if answer is Answer.OK else logging.ERROR
        log.log(
            level, "%s %s %s: %s (%s)", job.migration, job.side, status.outcome, answer, status.reason or "no reason"
        )
        return True

    def _until_answered(self, ask: Callable[[], Answer]) -> Answer | None:
        """What the record says, however long Redis is away; None when this worker stops first."""
        while True:
            try:
                return ask()
            except DrovewayError as error:
                log.warning("waiting for Redis: %s", error)
            if self._stopping.wait(self.poll):
                return None


def _tell(job: Job, told: _Told, status: Status) -> None:
    """One line for each round that was finished since, in the phase in which it was: by now there may be another."""
    for each in status.rounds[told.rounds :]:
        logs.about(job, PHASES.get(each.get("kind", ""), status.phase))
        figures = {name: each.get(name) for name in ("kind", "bytes", "sent", "began", "seconds", "dirty", "verdict")}
        log.info("round %d: %s", each["index"], each.get("reason", "done"), extra=figures)
    logs.about(job, status.phase)
    told.rounds = len(status.rounds)


def _tell_last_words(attempt: Attempt, status: Status) -> None:
    if status.reason in _UNEXPLAINED and (said := attempt.last_words()):
        log.error("%s: the last words of its mover:\n%s", attempt.directory.name, said)
