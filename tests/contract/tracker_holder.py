"""A worker that can be killed: tracks the process with the given id, whose userfaultfd it inherited, and collects.

Arguments: tracker class, process id, userfaultfd, RAM file, size. Prints a line for each table collected.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from workers.dirty.choose import TRACKERS
from workers.ram import BlockFile, Ram, RamBlock


class HeldGuest:
    def __init__(self, pid: int, uffd: int, path: Path, size: int) -> None:
        self.pid = pid
        self._uffd = uffd
        self._files = [BlockFile(RamBlock("ram0", size), path)]

    def block_files(self) -> list[BlockFile]:
        return self._files

    def userfaultfd(self) -> int:
        return self._uffd


def main() -> None:
    kind, pid, uffd, path, size = sys.argv[1:]
    guest = HeldGuest(int(pid), int(uffd), Path(path), int(size))
    (factory,) = [tracker for tracker in TRACKERS if tracker.kind == kind]
    tracker = factory(guest, Ram(guest.block_files()))
    tracker.start()
    while True:
        print(tracker.collect().size, flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
