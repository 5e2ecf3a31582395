"""A virtual machine whose devices are all at work, moved to and fro, and what its witnesses found in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.cli.following import ending
from tasks.cli.rendering.facts import Facts
from tests.until import until
from tests.vm.disk_image import judge_disk, make_disk
from tests.vm.fleet import VmFleet
from tests.vm.machine import Console, end_disk_witness
from workers.guests.contract import RunState
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import Monitor

MIB = 1 << 20
#: MiB of the machine that its witness works on.
_WITNESSED = 16
#: Blocks that the disk's readers hold (ops/vm/disk.c), each of them checked before it is read anew.
_HELD = 4 * 64
#: Bytes that a machine with a balloon has, and those that it is told to do with at every other move: it can spare them.
_MEMORY, _LESS = 192 * MIB, 160 * MIB
_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """A machine. `disk` as in vm.toml, without its path; `how` its witness reads: direct or cached. `rate` in MiB/s."""

    name: str
    vcpus: int = 1
    rate: int = 10
    disk: dict[str, str] | None = None
    how: str = "direct"
    net: bool = False
    balloon: bool = False

    def shape(self, disk: Path | None) -> dict[str, Any]:
        """What `VmFleet.start` is to start."""
        words = {"disk": self.how if self.disk else "", "net": "10.0.2.2" * self.net, "balloon": "on" * self.balloon}
        return {
            "mib": _WITNESSED,
            "rate": self.rate,
            "vcpus": self.vcpus,
            "disks": [{"path": str(disk), **self.disk}] if self.disk else [],
            "nics": [{"mac": "52:54:00:00:00:01"}] if self.net else [],
            "balloon": self.balloon,
            "memory": _MEMORY if self.balloon else 128 * MIB,
            "words": " ".join(f"{name}={word}" for name, word in words.items() if word),
        }


@dataclass(frozen=True, slots=True)
class Move:
    """One move as its record says, in seconds, and the pages that were `bad` once all had been looked at again."""

    downtime: float
    total: float
    rounds: int
    bad: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What a machine went through. `bad_pages` are its memory's, `bad_blocks` its disk's; `unbroken` its counters."""

    moves: tuple[Move, ...]
    bad_pages: int
    bad_blocks: int
    writes: int
    reads: int
    pongs: int
    lost_pings: int
    unbroken: bool

    @property
    def clean(self) -> bool:
        """Nothing was lost or late, but for at most one ping a move, which no network promises to bring."""
        return not self.bad_pages and not self.bad_blocks and self.unbroken and self.lost_pings <= len(self.moves)


class WorkingMachine:
    """One machine of a fleet; `working_machine` starts and ends it."""

    def __init__(self, vms: VmFleet, case: Case, disk: Path | None, console: Console) -> None:
        self._vms, self._case, self._disk, self._console = vms, case, disk, console
        self.guest = vms.start(**case.shape(disk))
        console.follow(self.guest)
        self._moves: list[Move] = []
        until("the first look at everything", self._looked_again(), _SECONDS)

    def move(self, **asked: tuple[str, ...]) -> Move:
        """As `VmFleet.move`, and wait until all that was moved was looked at; fails if it did not arrive."""
        balloon = (_LESS, _MEMORY)[len(self._moves) % 2] if self._case.balloon else None

        def meanwhile() -> None:
            if balloon:  # which would be refused of a guest that is not moving yet
                _ask(self.guest, "balloon", value=balloon)

        record, host = self._vms.move(self.guest.name, **asked, meanwhile=meanwhile)
        assert ending(record) is None, record
        self.guest = self._vms.guest(host, self.guest.name)
        self._console.follow(self.guest)
        assert self.guest.status() is RunState.RUNNING
        until("a look at everything", self._looked_again(), _SECONDS)
        if balloon:
            until("the balloon", lambda: _ask(self.guest, "query-balloon")["actual"] == balloon, _SECONDS)
        facts, bad = Facts.of(record), self.bad() - sum(move.bad for move in self._moves)
        self._moves.append(Move(facts.seconds["downtime"], facts.seconds["total"], len(facts.finished), bad))
        return self._moves[-1]

    def bad(self) -> int:
        """Pages that were bad so far."""
        return self._console.said()[-1].bad + sum(line.bad for line in self._console.disk()[-1:])

    def end(self) -> Findings:
        """End the disk's witness, then the machine, and look at its disk."""
        if self._disk:
            end_disk_witness(self.guest)
            until("the end of the disk's witness", lambda: self._console.disk()[-1].ended, _SECONDS)
        said, disk, pongs = self._console.said(), self._console.disk(), self._console.pongs()
        bad = self.bad()
        self._vms.end()
        on_disk = judge_disk(self._disk) if self._disk else None
        missing = abs(disk[-1].writes - on_disk.writes) if on_disk else 0
        return Findings(
            moves=tuple(self._moves),
            bad_pages=bad,
            bad_blocks=max(on_disk.bad, missing) if on_disk else 0,
            writes=disk[-1].writes if disk else 0,
            reads=disk[-1].reads if disk else 0,
            pongs=len(pongs),
            lost_pings=pongs[-1] + 1 - len(pongs) if pongs else 0,
            unbroken=[line.tick for line in said] == list(range(len(said))) and pongs == sorted(set(pongs)),
        )

    def _looked_again(self) -> Callable[[], bool]:
        """Whether every page, every block that was held, and the network have been tried since this was called."""
        lines, reads, pongs = len(self._console.said()), self._reads(), len(self._console.pongs())
        checked = self._console.said()[-1].checked

        def looked() -> bool:
            # The line under way when the machine was moved may be the source's: one more.
            pages = self._console.said()[-1].checked - checked > _WITNESSED * 256
            blocks = not self._disk or self._reads() - reads > _HELD * 5 // 4
            return len(self._console.said()) > lines + 1 and pages and blocks and self._answered(pongs)

        return looked

    def _answered(self, before: int) -> bool:
        return not self._case.net or len(self._console.pongs()) > before + 1

    def _reads(self) -> int:
        return sum(line.reads for line in self._console.disk()[-1:])


@contextmanager
def working_machine(vms: VmFleet, case: Case, directory: Path) -> Iterator[WorkingMachine]:
    """Start it on the first host, its disk in `directory`; nothing of it is left at the end."""
    with ExitStack() as stack:
        disk = None
        if case.disk:
            disk = make_disk(directory / "disk.raw")
            stack.callback(disk.unlink)
        stack.callback(vms.end)
        yield WorkingMachine(vms, case, disk, stack.enter_context(closing(Console())))


def _ask(guest: QemuGuest, command: str, **arguments: Any) -> Any:
    with Monitor(guest.name, guest.places.status) as monitor:
        return monitor.execute(command, **arguments)
