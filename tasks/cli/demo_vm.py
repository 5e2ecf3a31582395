"""`droveway demo --vm`: the same with a virtual machine, whose console says that it goes on wherever it is."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console

from config.errors import HostError, MigrationFailedError, RequestError
from config.settings import Settings
from tasks.bell import Bell
from tasks.cli.demo_fleet import GUEST, MOVES, demo_fleet, tell
from tasks.cli.endings import EndedError
from tasks.cli.following import ending, follow
from tasks.cli.guest import announce
from tasks.cli.invocation import bell_for
from tasks.cli.migrate import begin, request_for
from tasks.cli.quantities import size
from tasks.cli.rendering.comparison import DemoMove
from tasks.cli.rendering.facts import Facts
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.one_machine.witness import Tick, longest_gap, machine, ticks
from workers.guests.qemu.console import ConsoleListener
from workers.guests.qemu.spec import QemuGuestSpec
from workers.ranges import PAGE_SIZE

#: Its kernel, unpacked, and what it starts with; the witness has three quarters of the rest.
_LEAST, _KERNEL = 128 << 20, 64 << 20
#: Milliseconds between two numbers on the console.
_TICK = 5
#: Of 512 words of a page those that are rewritten: an emulated processor is too slow for more at 200 MiB/s.
_WORDS = 64
#: Seconds without a word after which a guest that was booting, or has moved, is given up.
_SILENCE = 60.0
_FILL_SECONDS_PER_GIB = 120.0
_CONSOLE_LINES = 2
#: Lines among which there is one of the witness's, once it speaks: the kernel has less to say than that.
_RECENT = 50


def spec_of(memory: int, rate: int) -> QemuGuestSpec:
    """The demo's machine: bytes and bytes/s. Raises RequestError, and HostError: something is missing."""
    if memory < _LEAST or memory % (1 << 20):
        raise RequestError(f"a virtual machine needs whole MiB of memory, {size(_LEAST)} at least: change --memory")
    spec = machine(GUEST, memory, work=_work(memory), rate=rate, tick=_TICK, words=_WORDS)
    if os.geteuid():
        raise HostError("the writes of a virtual machine can only be followed by root: run this as root, or by sudo")
    return spec


def _work(memory: int) -> int:
    return (memory - _KERNEL) * 3 // 4 >> 20 << 20


@dataclass(frozen=True, slots=True)
class Counter:
    """What the guest counted on its console; `missing`: numbers between the first and the last that never came."""

    first: int
    last: int
    missing: int

    @classmethod
    def of(cls, said: list[Tick]) -> Counter:
        """Of at least one tick."""
        pairs = itertools.pairwise(each.number for each in said)
        return cls(said[0].number, said[-1].number, sum(abs(after - before - 1) for before, after in pairs))

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


class VmDemo:
    """One run: what is done with the fleet while it is there. `counter` is known after it."""

    def __init__(self, settings: Settings, spec: QemuGuestSpec, said: Console | None) -> None:
        self._settings = settings
        self._spec = spec
        self._said = said
        self.counter: Counter | None = None

    def run(self) -> list[DemoMove]:
        """Both moves. Raises what went wrong; everything is cleared up by then."""

        def told(what: str) -> None:
            tell(self._said, what)

        with demo_fleet(self._settings.redis, 2 * self._spec.memory, told) as fleet:
            consoles = [host.state_dir.resolve() / "guests" / GUEST / "console" for host in fleet.hosts.values()]
            with ConsoleListener(consoles) as console, closing(Ledger(fleet.settings)) as ledger:
                run = _Run(fleet, ledger, bell_for(fleet.settings), console, self._said)
                run.start(self._spec)
                moves = [run.move(destination, pinned) for _, destination, pinned in MOVES]
                self.counter = Counter.of(run.ticks())
                return moves


class _Run:
    """The guest in its fleet."""

    def __init__(
        self, fleet: LocalFleet, ledger: Ledger, bell: Bell, console: ConsoleListener, said: Console | None
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._bell = bell
        self._console = console
        self._said = said

    def start(self, spec: QemuGuestSpec) -> None:
        """Boot it, and wait until it has filled its memory."""
        host = self._fleet.hosts[MOVES[0][0]]
        announce(self._ledger, host.settings, host.guests.start_qemu(spec))
        tell(self._said, f"a virtual machine of {size(spec.memory)} boots on {host.name}: {spec.append}")
        seconds = _SILENCE + _FILL_SECONDS_PER_GIB * spec.memory / (1 << 30)
        if not _happens(lambda: bool(self.ticks()), seconds):
            raise HostError(f"the virtual machine was not up after {seconds:g} s: look at this machine's load")
        tell(self._said, "it is up, counts on its console, and checks its memory")

    def move(self, destination: str, pinned: str) -> DemoMove:
        """To the other host, and wait there until it has checked every page."""
        before = self._console.heard()
        bad = self._latest().bad
        request = request_for(GUEST, destination, (f"rdma-pin-all={pinned}",))
        begin(self._ledger, self._bell, request)
        record = follow(self._ledger, request.migration, self._said, self._shown)
        if error := ending(record):
            raise error
        checked = self._checked_everything(destination)
        moved = list(ticks(self._console.heard(len(before) - 1)))
        return DemoMove(Facts.of(record), checked, moved[-1].bad - bad, longest_gap(moved))

    def ticks(self) -> list[Tick]:
        """All that the witness has said so far."""
        return list(ticks(self._console.heard()))

    def _latest(self) -> Tick:
        return list(ticks(self._console.last(_RECENT)))[-1]

    def _checked_everything(self, host: str) -> int:
        """How many pages it has checked since it arrived, once that is all of them. Raises EndedError: it is silent."""
        first = last = self._latest()
        pages = _work(self._memory(host)) // PAGE_SIZE
        while last.checked - first.checked < pages:
            if not _happens(partial(self._has_gone_on, last.number), _SILENCE):
                message = f"CORRUPT: the guest has said nothing for {_SILENCE:g} s since it moved to {host}."
                raise EndedError(message, "corrupt", MigrationFailedError.exit_code)
            last = self._latest()
        return last.checked - first.checked

    def _has_gone_on(self, known: int) -> bool:
        return self._latest().number > known

    def _memory(self, host: str) -> int:
        return self._fleet.hosts[host].guests.open(GUEST).block_files()[0].block.size

    def _shown(self) -> list[str]:
        names = list(self._fleet.hosts)
        return [f"console of {names[each.place]}: {each.line}" for each in self._console.last(_CONSOLE_LINES)]


def _happens(look: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
