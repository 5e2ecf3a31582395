"""The test's handle on a writing process: as much of a Guest as a tracker asks for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from workers.guests.contract import RunState
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE, RangeTable

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class TrackedGuest:
    kind = "writing-process"
    name = "tracked"

    def __init__(self, *sizes: int, piece: int = 1 << 40, shared: bool = True) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="droveway-test-", dir="/dev/shm")
        self._files = []
        for number, size in enumerate(sizes):
            path = Path(self._directory.name) / f"ram{number}"
            path.touch()
            os.truncate(path, size)
            self._files.append(BlockFile(RamBlock(f"ram{number}", size), path))
        self._channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.writing_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        self._answers = self._channel.makefile("rb")
        self._status = RunState.PAUSED
        self.ask("map", files=[str(file.path) for file in self._files], piece=piece, shared=shared)

    @property
    def pid(self) -> int:
        return self.process.pid

    def block_files(self) -> list[BlockFile]:
        return self._files

    def ask(self, name: str, **arguments: Any) -> Any:
        self._channel.sendall(json.dumps([name, arguments]).encode() + b"\n")
        return json.loads(self._answers.readline())

    def userfaultfd(self) -> int:
        self._channel.sendall(json.dumps(["userfaultfd", {}]).encode() + b"\n")
        _, (fd,), _, _ = socket.recv_fds(self._channel, 1, 1)
        return fd

    def write(self, pages: list[int], value: int) -> RangeTable:
        """Write those pages; returns what a tracker must report."""
        self.ask("write", pages=pages, value=value)
        return RangeTable.from_pages(np.array(pages))

    def status(self) -> RunState:
        return self._status

    def run(self, pattern: str) -> None:
        self.ask("run", pattern=pattern, seed=7)
        self._status = RunState.RUNNING

    def stop(self) -> int:
        written = self.ask("pause")
        self._status = RunState.PAUSED
        return written

    def quit(self) -> None:
        self._answers.close()
        self._channel.close()
        self.process.kill()
        self.process.wait()
        self._directory.cleanup()


class Copy:
    """The destination's memory: a copy that follows a tracker's tables."""

    def __init__(self, ram: Ram) -> None:
        self._source = np.frombuffer(ram.view, np.uint8)
        self.memory = np.zeros(ram.size, np.uint8)

    def follow(self, table: RangeTable) -> None:
        for start, end in table:
            self.memory[start:end] = self._source[start:end]

    def differing_pages(self) -> int:
        ours, theirs = (memory.view(np.uint64).reshape(-1, PAGE_SIZE // 8) for memory in (self.memory, self._source))
        return int((ours != theirs).any(axis=1).sum())
