"""Virtual machines for tests: the lab's kernel, an initrd with a witness that checks its memory, and what it says."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tests.requirements import missing
from tests.until import until
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.spec import QemuGuestSpec

_LAB = Path(__file__).resolve().parents[2] / ".lab"
_SAID = re.compile(r"tick=(\d+) bad=(\d+) written=(\d+) checked=(\d+)\r?$")
_DISK_SAID = re.compile(r"^disk reads=(\d+) writes=(\d+) bad=(\d+)( ended)?\r?$", re.MULTILINE)
_PONG = re.compile(r"^\d+ bytes from \S+ seq=(\d+) .*$", re.MULTILINE)
_TICK_SECONDS = 600.0  # an emulated boot takes 2 on an idle core


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the witness; `bad` pages were not as it had left them."""

    tick: int
    bad: int
    written: int
    checked: int


@dataclass(frozen=True, slots=True)
class DiskSaid:
    """One line of the disk's witness: blocks read and written, and pages that were `bad`."""

    reads: int
    writes: int
    bad: int
    ended: bool


def vm_spec(name: str, *, mib: int = 32, rate: int = 10, words: str = "", **more: Any) -> QemuGuestSpec:
    """A machine of 128 MiB whose witness works on `mib` of them and writes `rate` MiB a second.

    `words` are further ones for its kernel's command line: ops/vm/init knows them.
    """
    if not (_LAB / "vm-initrd").exists() or shutil.which("qemu-system-x86_64") is None:
        missing("no QEMU, or nothing for it to boot (`make lab` prepares both)")
    if os.geteuid():
        missing("a system call can only be made inside QEMU by root")
    shape = {"name": name, "memory": "128M", "accel": "tcg", "kernel": str(_LAB / "linux")}
    shape |= {"initrd": str(_LAB / "vm-initrd"), "append": f"console=ttyS0 quiet mib={mib} rate={rate} {words}"}
    return QemuGuestSpec.from_json(shape | more)


#: A shape that QEMU itself may move. A little more than 128 MiB: see workers/guests/qemu/own_settings.py.
FOR_QEMU: Mapping[str, Any] = {"memory": "131080K"}
#: The same, and nobody else can.
ANONYMOUS: Mapping[str, Any] = {**FOR_QEMU, "memory_backend": "anonymous"}


class Console:
    """All that a guest's console says across its moves, each host's QEMU a part of it."""

    def __init__(self) -> None:
        self._parts: list[BinaryIO] = []

    def follow(self, guest: QemuGuest) -> None:
        """After each move; the log can be read to its end although its directory is gone by then."""
        self._parts.append(guest.places.console_log.open("rb"))

    def said(self) -> list[Said]:
        """The witness's whole lines. One that a move cut in two, a half on each host, is whole again."""
        return _said(self._text())

    def disk(self) -> list[DiskSaid]:
        """The lines of the disk's witness."""
        found = _DISK_SAID.findall(self._text())
        return [DiskSaid(int(reads), int(writes), int(bad), bool(ended)) for reads, writes, bad, ended in found]

    def pongs(self) -> list[int]:
        """The numbers of the pings that were answered."""
        return [int(number) for number in _PONG.findall(self._text())]

    def _text(self) -> str:
        text = ""
        for part in self._parts:
            part.seek(0)
            text += part.read().decode("utf-8", "replace")
        return text

    def close(self) -> None:
        for part in self._parts:
            part.close()


def end_disk_witness(guest: QemuGuest) -> None:
    """A line on its console tells it to check all that it holds, and to flush the disk."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(guest.places.console))
        console.sendall(b"\n")


def said(guest: QemuGuest) -> list[Said]:
    """What the witness said on this host, whole lines only."""
    return _said(guest.console_log())


def _said(text: str) -> list[Said]:
    lines = text.split("\n")[:-1]
    return [Said(*map(int, found.groups())) for line in lines if (found := _SAID.fullmatch(line))]


def await_ticks(guest: QemuGuest, more: int, seconds: float = _TICK_SECONDS) -> list[Said]:
    """Wait until the witness has said so much more than now."""
    wanted = len(said(guest)) + more
    return until(f"{guest.name}'s witness", lambda: found if len(found := said(guest)) >= wanted else None, seconds)
