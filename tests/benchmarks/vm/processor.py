"""Processor time of everything that a benchmark started, the ended as well as the living."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.guests.qemu.monitor import Monitor

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
#: Seconds between two looks at a virtual processor, whose thread may end at any time.
_LOOK = 0.02


def adopt_orphans() -> None:
    """From now on what our descendants leave behind becomes our child: QEMUs, movers. So nothing is lost to count.

    Raises OSError where the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def bury(pid: int) -> None:
    """An adopted child that has ended leaves the list of processes; harmless when it lives, or is none of ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def used_by_descendants() -> float:
    """Seconds of processor time, user and system, of every descendant, ended or not, from its start to now.

    After `adopt_orphans` each of them is alive, a zombie, or was buried by one of us, who then has its time. Ask when
    none of them ends at that moment. This process's own is not in it. Exact to 10 ms a process.
    """
    spent = os.times()
    total = spent.children_user + spent.children_system
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if (found := _stat(path)) is not None:
            pid = int(path.parent.name)
            # Fields of proc(5), from the third on: state, ppid, …, utime, stime, cutime, cstime.
            parents[pid], seconds[pid] = int(found[1]), sum(map(int, found[11:15])) / _TICKS
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return total + sum(seconds[pid] for pid in family - {os.getpid()})


class VirtualProcessors:
    """What a QEMU's virtual processors have used: the guest's own time, its emulation included; also after its end.

    Under KVM or emulation a virtual processor is a thread of QEMU's; everything else that QEMU does is in other ones.
    """

    def __init__(self, name: str, status: Path, pid: int) -> None:
        """`status`: a monitor socket that nobody else holds. Raises HostError."""
        with Monitor(name, status) as monitor:
            threads = [each["thread-id"] for each in monitor.execute("query-cpus-fast")]
        self._paths = [Path(f"/proc/{pid}/task/{thread}/stat") for thread in threads]
        self._seconds = [0.0] * len(threads)
        self._ended = threading.Event()
        self._look()
        self._began = sum(self._seconds)
        self._thread = threading.Thread(target=self._watch, name="virtual processors", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def used(self) -> float:
        """Seconds since this was made, or until shortly before it ended."""
        self._look()
        return sum(self._seconds) - self._began

    def used_ever(self) -> float:
        """Seconds since QEMU was started."""
        self._look()
        return sum(self._seconds)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            self._look()

    def _look(self) -> None:
        for number, path in enumerate(self._paths):
            if (found := _stat(path)) is not None:
                self._seconds[number] = sum(map(int, found[11:13])) / _TICKS


def _stat(path: Path) -> list[str] | None:
    """The fields after the name, which may hold anything; None when it is gone."""
    try:
        return path.read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
