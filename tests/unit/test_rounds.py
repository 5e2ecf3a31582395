"""The loop of rounds and its pacing, with everything that acts replaced by lists."""

import pytest

from workers.ranges import EMPTY, PAGE_SIZE, RangeTable
from workers.rounds.contract import Round
from workers.rounds.convergence import Ruling, Verdict
from workers.rounds.iterative import run_rounds
from workers.rounds.pacing import Pacer, batch_size


def pages(*numbers: int) -> RangeTable:
    return RangeTable([(number * PAGE_SIZE, (number + 1) * PAGE_SIZE) for number in numbers])


def test_everything_dirty_is_sent_until_the_verdict_and_the_last_look_is_handed_back() -> None:
    sent: list[tuple[int, str, RangeTable]] = []
    looks = iter([pages(1, 2), pages(2), pages(3)])
    verdicts = iter([Ruling.CONTINUE, Ruling.CONTINUE, Ruling.SWITCH_OVER])
    seen: list[int] = []

    def send(index: int, kind: str, ranges: RangeTable) -> Round:
        sent.append((index, kind, ranges))
        return Round(index, kind, ranges.size, ranges.size, 1.0)

    ending = run_rounds(
        pages(0, 1, 2, 3),
        send,
        lambda: next(looks),
        lambda rounds, surveys: Verdict(next(verdicts), f"{len(rounds)} rounds, {len(surveys)} looks", 0.1),
        lambda round_, dirty, verdict: seen.append(dirty.size),
        lambda: 0.0,
    )

    assert [(index, kind) for index, kind, _ in sent] == [(0, "bulk"), (1, "dirty"), (2, "dirty")]
    assert [ranges for _, _, ranges in sent] == [pages(0, 1, 2, 3), pages(1, 2), pages(2)]
    assert ending.remaining == pages(3), "what was found last is still to be sent"
    assert ending.verdict.reason == "3 rounds, 3 looks"
    assert seen == [2 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE]


def test_an_empty_guest_goes_straight_to_the_verdict() -> None:
    ending = run_rounds(
        EMPTY,
        lambda index, kind, ranges: Round(index, kind, 0, 0, 0.0),
        lambda: EMPTY,
        lambda rounds, surveys: Verdict(Ruling.SWITCH_OVER, "", 0.0),
        lambda *_: None,
        lambda: 0.0,
    )
    assert len(ending.rounds) == 1


def test_the_mean_rate_holds_over_batches_larger_than_the_bucket() -> None:
    now, pacer = 0.0, Pacer(100.0, 0.0)
    for _ in range(10):
        now += pacer.delay(50, now)
    assert now == pytest.approx((10 * 50 - 10) / 100, abs=0.01), "the burst of 0.1 s is all that came for free"


def test_an_idle_link_saves_up_no_more_than_the_burst() -> None:
    pacer = Pacer(100.0, 0.0)
    pacer.delay(10, 0.0)
    assert pacer.delay(20, 1000.0) == pytest.approx(0.1)


def test_a_slow_link_gets_small_batches_and_never_less_than_a_chunk() -> None:
    mib = 1 << 20
    assert batch_size(0, 16 * mib, mib) == 16 * mib
    assert batch_size(80 * mib, 16 * mib, mib) == 8 * mib
    assert batch_size(8 * mib, 16 * mib, mib) == mib
    assert batch_size(0, 16 * mib, 64 * mib) == 64 * mib


def test_no_limit_never_waits() -> None:
    assert Pacer(0.0, 0.0).delay(1 << 40, 0.0) == 0.0
