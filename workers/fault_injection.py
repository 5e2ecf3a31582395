"""Faults on request, for the fault tests and for controls: what DROVEWAY_FAULT says, and nothing when it is not set.

    drop-final-dirty      the tracker forgets what was written last: the guest's own check must then see it
    damage-state          a byte of the guest's device state is turned round on its way
    no-drain              pages are copied while a disk may still write to them: the guest must see it too
    stop-to-drain         QEMU's empty transaction is taken for one that does not drain
    stop-at=POINT         the mover stops itself (SIGSTOP) when it reaches POINT, so that a test can kill whom it likes
    file=PATH             read the above from PATH, anew for every mover

Several are parted by spaces. Points are `SIDE.PHASE` (entering it), `SIDE.connecting` (both offers known),
`SIDE.sending` (after the first batch of a round; with engine=qemu while QEMU sends), `source.device` (with engine=qemu:
QEMU was told to switch over), `source.protecting` (the guest is stopped while its disks are drained), `source.saved`
(its device state has gone out), `SIDE.ACTION` (before an action of the handover's table) and `SIDE.STATE` (after the
step into it).
"""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

_armed = False


def arm() -> None:
    """Faults are the movers' alone: a worker that settles after one takes the same steps, and must not stop there."""
    global _armed  # noqa: PLW0603  # one process, one mover
    _armed = True


@cache
def _asked() -> frozenset[str]:
    if not _armed:
        return frozenset()
    fault = os.environ.get("DROVEWAY_FAULT", "")
    if fault.startswith("file="):
        path = Path(fault.removeprefix("file="))
        fault = path.read_text() if path.exists() else ""
    return frozenset(fault.split())


def drops_final_dirty() -> bool:
    """Whether the tracker is to forget what was written last."""
    return "drop-final-dirty" in _asked()


def damages_state() -> bool:
    """Whether the device state is to arrive damaged."""
    return "damage-state" in _asked()


def leaves_out_drain() -> bool:
    """Whether disks are not to be waited for between protecting a page and copying it."""
    return "no-drain" in _asked()


def stops_to_drain() -> bool:
    """Whether disks are to be drained by stopping the guest, as where nothing else can be relied upon."""
    return "stop-to-drain" in _asked()


def point(name: str) -> None:
    """Stop here if a test asked for it; the first time only, so that whoever is continued goes on to the end."""
    if f"stop-at={name}" in _asked():
        _stop()


@cache
def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
