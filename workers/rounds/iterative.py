"""The loop: bulk, then dirty rounds until the verdict says otherwise. Everything that it does is handed to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.ranges import RangeTable
from workers.rounds.contract import Round
from workers.rounds.convergence import Ruling, Survey, Verdict


@dataclass(frozen=True, slots=True)
class Ending:
    """How the live rounds ended: what is still to be sent, all rounds, the last verdict."""

    remaining: RangeTable
    rounds: tuple[Round, ...]
    verdict: Verdict


def run_rounds(
    populated: RangeTable,
    send: Callable[[int, str, RangeTable], Round],
    collect: Callable[[], RangeTable],
    judge: Callable[[tuple[Round, ...], tuple[Survey, ...]], Verdict],
    observe: Callable[[Round, RangeTable, Verdict], None],
    elapsed: Callable[[], float],
) -> Ending:
    """Send all that holds data, then what was written meanwhile, until `judge` does not say *continue*.

    `collect` must see every write since tracking began, which was before `populated` was taken. `observe` is told of
    each round, what was found dirty after it, and the verdict.
    """
    rounds: tuple[Round, ...] = (send(0, "bulk", populated),)
    surveys: tuple[Survey, ...] = ()
    while True:
        dirty = collect()
        surveys += (Survey(dirty.size, elapsed()),)
        verdict = judge(rounds, surveys)
        observe(rounds[-1], dirty, verdict)
        if verdict.ruling is not Ruling.CONTINUE:
            return Ending(dirty, rounds, verdict)
        rounds += (send(len(rounds), "dirty", dirty),)
