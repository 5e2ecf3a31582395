"""One move of one machine, measured from outside and in the same way whoever makes it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from tasks.one_machine.witness import Tick, longest_gap, machine, ticks
from tests.benchmarks.vm.cases import MEMORY, TICK, WORDS, WORK, Case
from tests.benchmarks.vm.engine import Engine, NotMovedError, Place
from tests.benchmarks.vm.processor import VirtualProcessors, used_by_descendants
from workers.guests.qemu.console import ConsoleListener
from workers.ranges import PAGE_SIZE

#: Seconds for booting and for filling its memory: 18 on an idle core.
_FILL_SECONDS = 300.0
#: Seconds that the guest is watched before it is moved, and after.
_BEFORE, _AFTER = 3.0, 2.0
#: Seconds without a word after which a guest has not survived its move.
_SILENT = 15.0


def measure(engine: Engine, name: str, case: Case) -> dict[str, Any]:
    """Start a machine, let it fill its memory, move it once, end it: the measurement, as the results keep it.

    Whether the guest arrived whole is a part of it: `bad` pages that are not as it wrote them, or `silent` for good.
    Raises RuntimeError when something fails to run.
    """
    spec = machine(name, MEMORY, work=WORK, rate=case.rate, tick=TICK, words=WORDS)
    try:
        with ConsoleListener(engine.consoles) as console:

            def said() -> list[Tick]:
                return list(ticks(console.heard()))

            source = engine.start(spec)
            _await(lambda: bool(said()), _FILL_SECONDS, "the guest has not filled its memory")
            time.sleep(_BEFORE)
            moved = _moved(engine, source)
            silent = not _happens(lambda: said()[-1].at > moved["ended"] + _AFTER, _SILENT)
            return moved | _heard(said(), moved["began"], moved["ended"]) | {"silent": silent}
    finally:
        engine.end()


def _moved(engine: Engine, source: Place) -> dict[str, Any]:
    """The move: what it says of itself, and what it cost."""
    with VirtualProcessors("source", source.status, source.pid) as virtual:
        before = used_by_descendants()
        began = time.monotonic()
        try:
            outcome: dict[str, Any] = asdict(engine.move())
        except NotMovedError as error:
            outcome = {"not_moved": str(error)}
        ended = time.monotonic()
        used, own = used_by_descendants() - before, virtual.used()
        if "not_moved" not in outcome:
            there = engine.destination()
            own += VirtualProcessors("destination", there.status, there.pid).used_ever()
    load = round(os.getloadavg()[0], 1)
    times = {"began": began, "ended": ended, "total": ended - began, "cpu": used, "guest_cpu": own}
    return outcome | times | {"host_load": load}


def _heard(said: list[Tick], began: float, ended: float) -> dict[str, Any]:
    """What the guest's words tell: how long it did not run, and what it wrote. Seconds and bytes/s."""
    before = [tick for tick in said if began - _BEFORE * 2 / 3 <= tick.at < began]
    around = [tick for tick in said if began <= tick.at <= ended + _AFTER]
    usual = [after.at - earlier.at for earlier, after in itertools.pairwise(before)]
    skipped = sum(after.number != earlier.number + 1 for earlier, after in itertools.pairwise(said))
    arrived = any(tick.place for tick in around)
    return {
        "felt": longest_gap(around) if arrived else None,
        "bad": said[-1].bad,
        "usual_tick": median(usual),
        "longest_tick_before": max(usual),
        "lost_words": skipped,
        "written_before": _rate(before),
        "written_meanwhile": _rate([tick for tick in around if tick.at <= ended]),
    }


def _rate(said: list[Tick]) -> float:
    pages, seconds = said[-1].written - said[0].written, said[-1].at - said[0].at
    return pages * PAGE_SIZE / seconds


def _await(happened: Callable[[], bool], seconds: float, otherwise: str) -> None:
    if not _happens(happened, seconds):
        raise RuntimeError(f"{otherwise} after {seconds:g} s")


def _happens(happened: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
