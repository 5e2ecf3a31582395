"""Whether an empty `transaction` waits for all block I/O of a QEMU: tried, since no document promises it.

Another QEMU of the same binary, without a machine, copies between two invented disks that take their time; what was
under way when the transaction began must be done when it is answered. 2.2 s, and the guest notices nothing. A binary
that drains always will, and is noted down; one that does not, or stays in doubt, is tried again at the next move.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.errors import HostError
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.probing import probed

log = logging.getLogger("droveway.qemu")

#: Seconds that one request of the invented disk takes: far longer than an answer (2 ms).
_LATENCY = 2.0
#: Seconds that a transaction takes at least which waits for it. One that took less although the request has ended tells
#: nothing: we were held up before it, and the request may have ended by itself.
_WAITED = 1.0
_TRIES = 3
_ANSWER = 30.0
_SIZE = 1 << 20
#: Binaries that are remembered: a host has one, and during an upgrade two.
_MOST = 8


def known_to_drain(binary: Path, notes: Path) -> bool:
    """`drains`, unless `notes`, a file of ours, says of this very binary that it does."""
    try:
        found = binary.stat()
    except OSError:  # its process is gone, which others tell better
        return False
    this = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
    known = _noted(notes)
    if this in known:
        return True
    if not drains(binary):
        return False
    with contextlib.suppress(OSError):  # then it is tried again
        fresh = notes.with_name(f"{notes.name}.{os.getpid()}")
        fresh.write_text(json.dumps([this, *known][:_MOST]))
        fresh.replace(notes)
    return True


def _noted(notes: Path) -> list[Any]:
    try:
        known = json.loads(notes.read_bytes())
    except (OSError, ValueError):
        return []
    return known if isinstance(known, list) else []


def drains(binary: Path) -> bool:
    """Try it with this binary. False also where it stays in doubt, or cannot be tried."""
    told: bool | None = None
    why = "it was not seen to"
    try:
        for _ in range(_TRIES):
            with probed(str(binary)) as monitor:
                told = tried(monitor, time.monotonic)
            if told is not None:
                break
    except HostError as error:
        why = str(error)
    if not told:
        log.warning("an empty transaction of %s drains no disks, so each round pauses the guest: %s", binary, why)
    return bool(told)


def tried(monitor: Monitor, clock: Callable[[], float]) -> bool | None:
    """Whether it waits for a request that is under way; None when that cannot be told. Raises HostError."""
    monitor.execute("blockdev-add", driver="null-co", node_name="slow", size=_SIZE, latency_ns=int(_LATENCY * 1e9))
    monitor.execute("blockdev-add", driver="null-co", node_name="sink", size=_SIZE)
    # A job that has ended is kept in the list, to be asked how far it came.
    monitor.execute("blockdev-backup", job_id="copy", device="slow", target="sink", sync="full", auto_dismiss=False)
    before = _far(monitor.execute("query-jobs"))
    began = clock()
    # Asked both at once: QEMU goes from one to the other without us, however long we are held up in between.
    drained, after = monitor.ask("transaction", actions=[]), monitor.ask("query-jobs")
    monitor.result(drained, _ANSWER, "transaction")
    took = clock() - began
    if _far(monitor.result(after, _ANSWER, "query-jobs")) == 0:
        return False
    return True if before == 0 and took > _WAITED else None


def _far(jobs: list[dict[str, Any]]) -> int:
    (job,) = jobs
    return int(job["current-progress"])
