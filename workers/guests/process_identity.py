"""Which process is meant, so that a reused process id is never mistaken for it, nor killed in its place."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path


def boot_id() -> str:
    """The kernel's name for this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def own_age() -> float:
    """Seconds since this process was started, as exact as the kernel's note of that: to 10 ms."""
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, now - me.start_time / os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of this host; `start_time` in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this id now; None when there is none, or only its zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *rest = stat.rpartition(")")[2].split()  # the command's name may hold anything, also ')'
        return None if state in "ZX" else cls(pid, int(rest[18]), boot_id())

    @classmethod
    def read(cls, path: Path) -> ProcessIdentity | None:
        """What `write` left; None when there is no such file or it is not whole."""
        try:
            raw = json.loads(path.read_bytes())
            return cls(int(raw["pid"]), int(raw["start_time"]), str(raw["boot_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(path)

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most so long; True when it has."""
        with contextlib.ExitStack() as stack:
            descriptor = self._open(stack)
            return descriptor is None or _ended(descriptor, seconds)

    def kill(self, seconds: float = 5.0) -> bool:
        """SIGKILL and wait; True when it has ended."""
        with contextlib.ExitStack() as stack:
            descriptor = self._open(stack)
            if descriptor is None:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return _ended(descriptor, seconds)

    def _open(self, stack: contextlib.ExitStack) -> int | None:
        """A pidfd of this very process: opened first and compared then, so that the id cannot change hands between."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        stack.callback(os.close, descriptor)
        return descriptor if self.alive() else None


def _ended(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
