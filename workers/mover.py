"""The mover: one process per migration and side. It owns the data path; its supervisor only watches its directory.

`python -m workers.mover DIRECTORY`, started by `Attempt.start`, in a session of its own, its settings in the
environment. SIGTERM asks it to cancel; after GIVEN it goes on to the end all the same. Its last words are a status with
an outcome; a mover that dies without one is settled from the journal by `reconcile`.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from config.capabilities import read_options
from config.errors import CancelledError, DrovewayError, UnresolvedError
from config.settings import Settings, load_settings
from workers import destination, logs, source
from workers.attempt import Attempt, Job
from workers.fault_injection import arm
from workers.guests.process_identity import own_age
from workers.metrics.timeline import Timeline
from workers.migration import Migration, Progress
from workers.pairing.contract import Side
from workers.pairing.redis import RedisPairing

#: Seconds that one thread may keep the others from running. Python's 5 ms would let digesting hold up the threads that
#: receive; 1 ms costs nothing measurable.
_SWITCH_INTERVAL = 0.001

log = logging.getLogger("droveway.mover")


def main(directory: Path) -> int:
    """Run the attempt in `directory` to its outcome. Returns the exit code: 0 only when it completed."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # No Event: its lock could be wanted by the handler of a second SIGTERM while that of the first one has it.
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever watches, not for the move
    arm()
    attempt = Attempt(directory)
    job = attempt.begin()
    progress = Progress(attempt)
    settings = load_settings()
    logs.configure(settings.worker)
    logs.about(job, "setup")
    with closing(RedisPairing(settings.redis, job.ticket, job.host)) as pairing:
        migration = _migration(attempt, job, settings, pairing, progress, lambda: bool(told))
        return _conclude(migration)


def _migration(
    attempt: Attempt,
    job: Job,
    settings: Settings,
    pairing: RedisPairing,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> Migration:
    capabilities, parameters = read_options(job.capabilities, job.parameters)
    timeline = Timeline(time.monotonic)
    started = own_age()
    timeline.add("start", started, -started)
    ears = cancelled, attempt.granted
    return Migration(job, settings, capabilities, parameters, pairing, timeline, progress, *ears)


def _conclude(migration: Migration) -> int:
    """Run the side and say how it ended."""
    job, progress = migration.job, migration.progress
    error: Exception | None = None
    try:
        log.info("%s of %s, epoch %d, with %s", job.side, job.guest, job.epoch, job.peer_host)
        (source if job.side is Side.SOURCE else destination).run(migration)
        outcome = "completed"
    except UnresolvedError as failure:
        outcome, error = "unresolved", failure
    except CancelledError as failure:
        outcome, error = "cancelled", failure
    except DrovewayError as failure:
        outcome, error = "failed", failure
    except Exception as failure:  # the last frame: a defect of ours must reach the record too
        log.exception("a defect")
        outcome, error = "failed", failure
    migration.timeline.add("total", migration.timeline.elapsed)
    migration.tell_times()
    ending: dict[str, object] = {"outcome": outcome, "phase": "ended"}
    ending["state"] = "device" if outcome == "unresolved" else outcome
    if error is not None:
        ending |= {"reason": getattr(error, "reason", "internal"), "message": str(error) or repr(error)}
    progress.update(ending, now=True)
    log.info("%s %s", outcome, error or "")
    return 0 if error is None else getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
