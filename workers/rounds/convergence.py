"""The verdict after each round: switch over, go on, or stalled; always with its reason. No I/O, no clock.

Criteria, in this order:
 1. nothing is left → switch over;
 2. what is left can be moved within the downtime limit → switch over, unless another round is worth it: it would at
    least halve the pause, and no limit forbids it. QEMU pauses the guest for as long as it may; one more round takes
    less time than that pause, and the guest runs meanwhile;
 3. the round limit, the completion timeout or the progress timeout is reached → stalled: what then, the task chose;
 4. otherwise go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from workers.rounds.contract import Round

#: What a switch-over costs beside moving bytes: pause, device state, two journal writes, two round trips. Measured
#: with memory guests over loopback TCP: 10 to 15 ms.
_FIXED_SECONDS = 0.015
#: Weight of the newest round in the estimated rate (KubeVirt's stall detector, VEP 248, uses the same).
_NEWEST = 0.4
#: Rounds below this many bytes say more about latency than about the link.
_TELLING_BYTES = 4 << 20
#: Another round is worth it when it leaves at most this part of what is left now,
_WORTH = 0.5
#: and when the pause is not mostly made of fixed costs already.
_WORTH_SECONDS = 2 * _FIXED_SECONDS
#: Less is left than ever before by this factor: that is progress (VEP 248: 1 to 4 %).
_PROGRESS = 0.98


class Ruling(StrEnum):
    """What to do next."""

    SWITCH_OVER = "switch-over"
    CONTINUE = "continue"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the task set. Seconds; `completion_timeout` is for this guest, 0 means no limit."""

    downtime: float
    max_rounds: int
    completion_timeout: float
    progress_timeout: float


@dataclass(frozen=True, slots=True)
class Survey:
    """One look after one round. `remaining` in bytes; `at` in seconds since the bulk round began."""

    remaining: int
    at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ruling, its reason in words, and the downtime that a switch-over now would cost, in seconds."""

    ruling: Ruling
    reason: str
    expected_downtime: float


def expected_rate(rounds: Sequence[Round]) -> float:
    """Bytes/s that the next round can expect: the telling rounds, the newest weighing most."""
    telling = [round_ for round_ in rounds if round_.bytes >= _TELLING_BYTES] or list(rounds)
    rate = telling[0].rate
    for round_ in telling[1:]:
        rate += _NEWEST * (round_.rate - rate)
    return rate


def judge(rounds: Sequence[Round], surveys: Sequence[Survey], limits: Limits) -> Verdict:
    """The verdict on `rounds` (at least the bulk round) and on what each look after them found; the last is now."""
    remaining = surveys[-1].remaining
    rate = expected_rate(rounds)
    downtime = (remaining / rate if rate else 0.0) + _FIXED_SECONDS
    fits = remaining == 0 or downtime <= limits.downtime
    stalled = _stalled(rounds, surveys, limits)
    if stalled and not fits:
        return Verdict(Ruling.STALLED, stalled, downtime)
    left = f"{remaining} bytes are left, {downtime * 1e3:.0f} ms"
    allowed = f"the {limits.downtime * 1e3:.0f} ms allowed"
    if not fits:
        return Verdict(Ruling.CONTINUE, f"{left}, above {allowed}", downtime)
    if not stalled and downtime > _WORTH_SECONDS and (after := _left_after(rounds[-1], surveys, rate)) is not None:
        return Verdict(Ruling.CONTINUE, f"{left} of {allowed}; another round leaves about {after:.0f} bytes", downtime)
    return Verdict(Ruling.SWITCH_OVER, f"{left} of {allowed}" if remaining else "nothing is left to send", downtime)


def _left_after(last: Round, surveys: Sequence[Survey], rate: float) -> float | None:
    """Bytes that the guest would write during another round; None unless that is little enough to be worth it.

    What the last round took beside moving its bytes, the next one takes as well: once that is most of a round, rounds
    shrink no more (30 of them, until max-rounds, on a machine where each took 2 s to be looked for).
    """
    before = surveys[-2].at if len(surveys) > 1 else 0.0
    now = surveys[-1]
    spent = now.at - before
    if not rate or spent <= 0:
        return None
    beside = max(0.0, spent - last.bytes / rate)
    written = now.remaining / spent * (now.remaining / rate + beside)
    return written if written <= now.remaining * _WORTH else None


def _stalled(rounds: Sequence[Round], surveys: Sequence[Survey], limits: Limits) -> str | None:
    now = surveys[-1]
    if len(rounds) >= limits.max_rounds:
        return f"{now.remaining} bytes are still left after {len(rounds)} rounds (max-rounds)"
    if limits.completion_timeout and now.at >= limits.completion_timeout:
        return f"{now.remaining} bytes are still left after {now.at:.0f} s (completion-timeout-per-gib)"
    stuck = now.at - last_progress(surveys)
    if limits.progress_timeout and stuck >= limits.progress_timeout:
        return f"no progress for {stuck:.0f} s (progress-timeout): the guest writes as fast as its memory is moved"
    return None


def last_progress(surveys: Sequence[Survey]) -> float:
    """When less was left than ever before; `surveys` are at least one."""
    best, at = surveys[0].remaining, surveys[0].at
    for survey in surveys[1:]:
        if survey.remaining < best * _PROGRESS:
            best, at = survey.remaining, survey.at
    return at
