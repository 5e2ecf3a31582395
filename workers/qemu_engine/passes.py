"""QEMU's passes over memory as rounds, and whether they lead anywhere. Pure: figures and times are handed to it.

A look at all of memory (`dirty-sync-count`) ends a pass and finds what the next one has to send. QEMU itself decides
when to switch over; what is judged here is only whether that can still be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workers.guests.qemu.figures import Figures
from workers.rounds.contract import Round
from workers.rounds.convergence import Limits, Ruling, Survey, judge


@dataclass(frozen=True, slots=True)
class Finished:
    """One pass that ended: its round, what it left behind in bytes, and why that is a stall, or None."""

    round: Round
    left: int
    stalled: str | None

    def to_json(self, *, given_up: bool) -> dict[str, Any]:
        """A line of the report."""
        ruling = Ruling.STALLED if self.stalled and given_up else Ruling.CONTINUE
        reason = self.stalled or f"{self.left} bytes are left"
        return self.round.to_json() | {"dirty": self.left, "verdict": ruling.value, "reason": reason}


class Passes:
    """What QEMU's figures amount to so far. Seconds are since the migration began."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rounds: tuple[Round, ...] = ()
        self._surveys: tuple[Survey, ...] = ()
        self._looks = 1  # the one at the beginning
        self._begun = 0.0
        self._before = Figures("none")

    @property
    def count(self) -> int:
        """Passes that ended."""
        return len(self._rounds)

    def see(self, figures: Figures, at: float) -> Finished | None:
        """The pass that has ended since the last call, if any."""
        if figures.looks <= self._looks:
            return None
        # Passes that nobody saw count towards max-rounds all the same.
        unseen = figures.looks - self._looks - 1
        self._limits = replace(self._limits, max_rounds=max(1, self._limits.max_rounds - unseen))
        self._looks = figures.looks
        ended = self._ended(figures, at, "dirty" if self._rounds else "bulk", figures.looks - 2)
        self._begun, self._before = at, figures
        self._rounds += (ended,)
        self._surveys += (Survey(figures.remaining, at),)
        verdict = judge(self._rounds, self._surveys, self._limits)
        stalled = verdict.reason if verdict.ruling is Ruling.STALLED else None
        return Finished(ended, figures.remaining, stalled)

    def last(self, figures: Figures, at: float) -> Round:
        """The pass under way as it ends now. Its index is by QEMU's count of looks, so that none is left out."""
        return self._ended(figures, at, "final", max(self.count, figures.looks - 1))

    def _ended(self, figures: Figures, at: float, kind: str, index: int) -> Round:
        before = self._before
        size = before.remaining if self._rounds else figures.total
        sent, zero, delta = figures.sent - before.sent, figures.zero - before.zero, figures.delta - before.delta
        return Round(index, kind, size, sent, at - self._begun, zero, delta or None)
