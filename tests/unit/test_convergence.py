"""The verdict after each round, on facts alone."""

import dataclasses

import pytest

from workers.rounds.contract import Round
from workers.rounds.convergence import Limits, Ruling, Survey, expected_rate, judge

MIB = 1 << 20
LIMITS = Limits(downtime=0.3, max_rounds=30, completion_timeout=0, progress_timeout=60)


def a_round(index: int, size: int, seconds: float) -> Round:
    return Round(index, "bulk" if index == 0 else "dirty", size, size, seconds)


def test_what_fits_the_downtime_limit_is_switched_over() -> None:
    bulk = (a_round(0, 1000 * MIB, 1.0),)
    verdict = judge(bulk, (Survey(200 * MIB, 0.2),), LIMITS)
    assert verdict.ruling is Ruling.SWITCH_OVER
    assert verdict.expected_downtime == pytest.approx(0.215, abs=0.001)
    assert "215 ms of the 300 ms" in verdict.reason


def test_a_round_that_halves_the_pause_is_worth_it() -> None:
    bulk = (a_round(0, 1000 * MIB, 1.0),)
    verdict = judge(bulk, (Survey(100 * MIB, 1.0),), LIMITS)
    assert verdict.ruling is Ruling.CONTINUE, "100 MiB a second are written, 1000 moved"
    assert "another round leaves about" in verdict.reason


def test_a_round_that_hardly_helps_is_not_worth_it() -> None:
    bulk = (a_round(0, 1000 * MIB, 1.0),)
    verdict = judge(bulk, (Survey(100 * MIB, 0.1),), LIMITS)
    assert verdict.ruling is Ruling.SWITCH_OVER, "1000 MiB a second are written, 1000 moved"


def test_rounds_that_take_long_beside_their_bytes_are_not_repeated_in_hope() -> None:
    """Two seconds for a round whose bytes take 10 ms: the next one finds as much again."""
    rounds = (a_round(0, 1000 * MIB, 1.0), a_round(1, 10 * MIB, 0.01))
    verdict = judge(rounds, (Survey(100 * MIB, 1.0), Survey(100 * MIB, 3.0)), LIMITS)
    assert verdict.ruling is Ruling.SWITCH_OVER


def test_no_round_is_added_beyond_the_limits_or_for_fixed_costs() -> None:
    bulk = (a_round(0, 1000 * MIB, 1.0),)
    one_round = dataclasses.replace(LIMITS, max_rounds=1)
    assert judge(bulk, (Survey(100 * MIB, 1.0),), one_round).ruling is Ruling.SWITCH_OVER
    assert judge(bulk, (Survey(10 * MIB, 1.0),), LIMITS).ruling is Ruling.SWITCH_OVER


def test_what_does_not_fit_goes_on_and_says_by_how_much() -> None:
    verdict = judge((a_round(0, 1000 * MIB, 1.0),), (Survey(400 * MIB, 1.0),), LIMITS)
    assert verdict.ruling is Ruling.CONTINUE
    assert "415 ms, above the 300 ms" in verdict.reason


def test_fixed_costs_count_even_when_almost_nothing_is_left() -> None:
    tight = dataclasses.replace(LIMITS, downtime=0.010)
    assert judge((a_round(0, 1000 * MIB, 1.0),), (Survey(4096, 1.0),), tight).ruling is Ruling.CONTINUE


def test_nothing_left_is_switched_over_whatever_the_limit() -> None:
    verdict = judge((a_round(0, 0, 0.0),), (Survey(0, 0.0),), dataclasses.replace(LIMITS, downtime=0.001))
    assert verdict.ruling is Ruling.SWITCH_OVER


def test_the_round_limit_stalls() -> None:
    rounds = tuple(a_round(index, 1000 * MIB, 1.0) for index in range(30))
    surveys = tuple(Survey((900 - index * 10) * MIB, float(index)) for index in range(30))
    verdict = judge(rounds, surveys, LIMITS)
    assert verdict.ruling is Ruling.STALLED
    assert "max-rounds" in verdict.reason


def test_the_completion_timeout_stalls() -> None:
    limits = dataclasses.replace(LIMITS, completion_timeout=100.0)
    verdict = judge((a_round(0, 1000 * MIB, 1.0),), (Survey(900 * MIB, 101.0),), limits)
    assert verdict.ruling is Ruling.STALLED
    assert "completion-timeout-per-gib" in verdict.reason


def test_no_new_lowest_for_the_progress_timeout_stalls_but_a_dip_resets_it() -> None:
    rounds = tuple(a_round(index, 1000 * MIB, 1.0) for index in range(4))
    steady = tuple(Survey(900 * MIB, at) for at in (1.0, 30.0, 50.0, 62.0))
    assert judge(rounds, steady, LIMITS).ruling is Ruling.STALLED
    dipping = (*steady[:2], Survey(800 * MIB, 50.0), Survey(900 * MIB, 62.0))
    assert judge(rounds, dipping, LIMITS).ruling is Ruling.CONTINUE


def test_a_dip_within_the_noise_is_no_progress() -> None:
    rounds = tuple(a_round(index, 1000 * MIB, 1.0) for index in range(3))
    surveys = (Survey(900 * MIB, 1.0), Survey(895 * MIB, 40.0), Survey(890 * MIB, 62.0))
    assert judge(rounds, surveys, LIMITS).ruling is Ruling.STALLED


def test_tiny_rounds_do_not_spoil_the_estimate_of_the_link() -> None:
    rounds = (a_round(0, 1000 * MIB, 1.0), a_round(1, 4096, 0.1))
    assert expected_rate(rounds) == 1000 * MIB


def test_the_newest_round_weighs_most() -> None:
    slower = (a_round(0, 1000 * MIB, 1.0), a_round(1, 100 * MIB, 1.0))
    assert expected_rate(slower) == pytest.approx((1000 - 0.4 * 900) * MIB)
