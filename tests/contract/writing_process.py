"""A guest in miniature, run as a process of its own: maps RAM files and writes pages on command.

Commands and answers are JSON lines on the inherited socket given as argument; a userfaultfd travels as SCM_RIGHTS.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import threading
from typing import Any

import numpy as np

from workers.dirty import kernel
from workers.ranges import PAGE_SIZE

#: Pages written between two pauses of a millisecond: some 100 MB/s, and the machine stays usable for others.
BATCH = 24


class WritingProcess:
    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []  # each of shape (pages, PAGE_SIZE), in ram_addr order
        self.thread: threading.Thread | None = None
        self.pausing = threading.Event()
        self.written = 0

    def map(self, files: list[str], piece: int, shared: bool = True) -> None:
        """Map each file in pieces of `piece` bytes, the last of them first, so that addresses run against offsets."""
        for path in files:
            fd = os.open(path, os.O_RDWR)
            size = os.fstat(fd).st_size
            flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
            found = [mmap.mmap(fd, min(piece, size - at), flags, offset=at) for at in reversed(range(0, size, piece))]
            self.pieces += [np.frombuffer(part, np.uint8).reshape(-1, PAGE_SIZE) for part in reversed(found)]
            os.close(fd)

    def page(self, index: int) -> np.ndarray:
        for piece in self.pieces:
            if index < len(piece):
                return piece[index]
            index -= len(piece)
        raise IndexError(index)

    def write(self, pages: list[int], value: int) -> None:
        for index in pages:
            self.page(index)[:8] = value

    def receive(self, page: int) -> str:
        """Let the kernel write the page, as read(2) does; answers with the errno's name, if any."""
        readable, writable = os.pipe()
        os.write(writable, b"k" * PAGE_SIZE)
        try:
            os.readv(readable, [self.page(page)])
        except OSError as error:
            return os.strerror(error.errno)
        finally:
            os.close(readable)
            os.close(writable)
        return ""

    def run(self, pattern: str, seed: int) -> None:
        self.pausing.clear()
        self.thread = threading.Thread(target=self._work, args=(pattern, seed))
        self.thread.start()

    def pause(self) -> int:
        """Stop writing; answers with the number of pages written so far."""
        if self.thread is not None:
            self.pausing.set()
            self.thread.join()
            self.thread = None
        return self.written

    def progress(self) -> int:
        return self.written

    def _work(self, pattern: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        total = sum(len(piece) for piece in self.pieces)
        at = 0
        while not self.pausing.wait(0.001):
            indices = random.integers(0, total, BATCH) if pattern == "random" else (at + np.arange(BATCH)) % total
            at += BATCH
            for index in indices.tolist():
                page = self.page(index)
                self.written += 1
                if pattern == "toggle":  # a lock that is taken and released again: the same bytes before and after
                    page[:] ^= 0xFF
                    self.pausing.wait(0.0002)
                    page[:] ^= 0xFF
                else:
                    page.view(np.uint64)[:] = self.written


def main() -> None:
    process = WritingProcess()
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("r") as commands:
        for line in commands:
            name, arguments = json.loads(line)
            if name == "userfaultfd":
                fd = kernel.userfaultfd()
                socket.send_fds(channel, [b"\n"], [fd])
                os.close(fd)
                continue
            answer: Any = getattr(process, name)(**arguments)
            channel.sendall(json.dumps(answer).encode() + b"\n")
    process.pause()


if __name__ == "__main__":
    main()
