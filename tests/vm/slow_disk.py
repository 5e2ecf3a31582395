"""A disk that answers late: the kernel holds back what one process reads from it, the pages to be read into pinned.

That is what makes the danger of block I/O beside the page tables visible: a disk of this machine's speed is done before
anyone could copy a page too early. QEMU's own throttling would not do, since it holds requests back before they pin.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import missing
from tests.until import until

#: Parameters of a move with many rounds beside the running guest: in each, some reads are under way.
MANY_ROUNDS = ("transport=tcp", "downtime-limit=1", "max-rounds=10", "on-stall=force")
_GROUPS = Path("/sys/fs/cgroup")


class SlowReads:
    """A control group whose processes read the disk that a file is on at a chosen rate."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def hold(self, pid: int) -> None:
        """From now on, and until it ends: all threads of that process."""
        (self._group / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def slow_reads(path: Path, bytes_per_second: int) -> Iterator[SlowReads]:
    """Make the group, for reads from the disk under `path`; its processes are let go at the end."""
    device = _disk_of(path)
    parent, key, value = _limit(device, bytes_per_second)
    group = parent / f"droveway-tests-{os.getpid()}"
    group.mkdir()
    try:
        try:
            (group / key).write_text(value)
        except OSError as error:
            missing(f"reads from the disk {device} cannot be slowed ({error.strerror})")
        yield SlowReads(group)
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(pid)
        until("the control group's end", lambda: _removed(group), 10)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:  # a process of it is still ending
        return False
    return True


def _disk_of(path: Path) -> str:
    """MAJOR:MINOR of the whole disk: a partition has no limits of its own."""
    number = path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    shown = Path("/sys/dev/block") / name
    if not shown.exists():
        missing(f"{path} is on no disk of its own, whose reads could be slowed")
    shown = shown.resolve()
    return ((shown.parent if (shown / "partition").exists() else shown) / "dev").read_text().strip()


def _limit(device: str, rate: int) -> tuple[Path, str, str]:
    """Where groups with such a limit are made, and the file and words that set it: cgroup v1 or v2."""
    old, controllers = _GROUPS / "blkio", _GROUPS / "cgroup.controllers"
    if (old / "blkio.throttle.read_bps_device").exists():
        return old, "blkio.throttle.read_bps_device", f"{device} {rate}"
    if not controllers.exists() or "io" not in controllers.read_text().split():
        missing("the kernel here cannot slow one process's reads (no blkio or io controller)")
    with contextlib.suppress(OSError):  # said when the limit is set
        (_GROUPS / "cgroup.subtree_control").write_text("+io")
    return _GROUPS, "io.max", f"{device} rbps={rate}"
