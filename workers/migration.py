"""A whole migration on one screen. Each side is one process, the mover; both walk the same stages.

    stage         source.py                                   destination.py
    setup         open the guest, choose a tracker            check that this host can take the guest
    pairing       offer ──────────── record in Redis ───────► start the incoming twin from the offer
                  ◄───────────────────────────────────────── offer
                  connect, greet                              connect, greet
    links         wait until admission lets it onto them      wait, the twin started
    active        track; register by policy; bulk round;      register what is asked for, digest what was written
                  dirty rounds until the verdict
    device        pause; last round; device state + digests ► compare, load, READY
                  GIVEN ────────────────────────────────────► TAKEN, resume
    completed     let go of the guest, deregister             deregister

From `pairing` on neither needs Redis or Celery. Whatever fails before GIVEN ends with the guest at the source; whatever
fails after it leaves the guest where the journals say (handover/).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from config.capabilities import Capabilities, MigrationParameters
from config.errors import CancelledError
from config.settings import Settings
from workers import logs
from workers.attempt import Attempt, Job, Status
from workers.fault_injection import point
from workers.metrics.timeline import Timeline
from workers.pairing.contract import Pairing

#: Seconds between two writes of the status file: what an operator's eye can use.
_REPORT_INTERVAL = 0.2

log = logging.getLogger("droveway.mover")


class Progress:
    """What this mover says of itself: one Status, written to the attempt's directory when it is worth it."""

    def __init__(self, attempt: Attempt, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt = attempt
        self._clock = clock
        self._written = 0.0
        self.status = Status()

    def update(self, changes: Mapping[str, Any], *, now: bool = False) -> None:
        """Change fields of the status. `now` writes at once: at each change of state or phase, and at the end."""
        self.status = dataclasses.replace(self.status, **changes)
        if now or self._clock() - self._written >= _REPORT_INTERVAL:
            try:
                self._attempt.report(self.status)
            except OSError as error:  # a full disk must not end a move that goes well: only the view of it stands still
                log.warning("the status is not written: %s", error)
            self._written = self._clock()

    def merge(self, field: str, values: Mapping[str, Any]) -> None:
        """Add to one of the status's mappings."""
        self.update({field: {**getattr(self.status, field), **values}})


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """One attempt on one side: what its stages share."""

    job: Job
    settings: Settings
    capabilities: Capabilities
    parameters: MigrationParameters
    pairing: Pairing
    timeline: Timeline
    progress: Progress
    #: Whether SIGTERM came: the supervisor's word for cancel.
    cancelled: Callable[[], bool]
    #: Whether admission has let it onto the links.
    granted: Callable[[], bool]

    def check(self) -> None:
        """Raise CancelledError when the attempt was cancelled. Called between batches and while waiting."""
        if self.cancelled():
            raise CancelledError(
                f"migration {self.job.migration} was cancelled; {self.job.guest} goes on at the source"
            )

    @contextmanager
    def phase(self, name: str, state: str) -> Iterator[float]:
        """Be in QEMU's `state` and in our phase `name` for the time of the body, and measure it under that name.

        Gives when it began, on this side's timeline.
        """
        self.progress.update({"state": state, "phase": name}, now=True)
        logs.about(self.job, name)
        point(f"{self.job.side}.{name}")
        with self.timeline.span(name) as began:
            yield began
        self.tell_times()

    def tell_times(self) -> None:
        """Put what the timeline has measured so far into the status."""
        timeline, seconds = self.timeline, self.progress.status.seconds
        times = {
            "seconds": {**seconds, **timeline.seconds},
            "began": {**timeline.began},
            "moments": {**timeline.moments},
        }
        self.progress.update(times)
