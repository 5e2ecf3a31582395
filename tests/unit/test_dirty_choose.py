"""The choice of a tracker says what was passed over and why."""

from __future__ import annotations

import pytest

from config.capabilities import DirtyTrackerChoice
from config.errors import HostError, RequestError
from workers.dirty.choose import KINDS, choose


def tracker(name: str, why_not: str | None = None, sees: bool = True) -> type:
    class Fake:
        kind = name
        sees_kernel_writes = sees

        @staticmethod
        def self_test() -> None:
            if why_not:
                raise HostError(why_not)

    return Fake


def test_the_first_that_works_is_taken_and_the_reason_names_those_before_it():
    trackers = [tracker("best", "kernel too old"), tracker("second"), tracker("third")]
    choice = choose(trackers=trackers)
    assert (choice.kind, choice.factory) == ("second", trackers[1])
    assert choice.reason == "not best: kernel too old; second works here"


def test_one_that_breaks_writes_by_the_kernel_is_taken_only_for_a_guest_without_them():
    trackers = [tracker("served", sees=False), tracker("content")]
    assert choose(trackers=trackers).kind == "content"
    assert "kernel writes" in choose(trackers=trackers).reason
    assert choose(trackers=trackers, kernel_writes=False).kind == "served"
    with pytest.raises(HostError, match="asked for"):
        choose("served", trackers=trackers)


def test_a_forced_kind_that_does_not_work_is_an_error_and_nothing_else_is_tried():
    with pytest.raises(HostError, match="best was asked for and does not work here: kernel too old"):
        choose("best", trackers=[tracker("best", "kernel too old"), tracker("second")])


def test_a_forced_kind_is_taken_though_a_better_one_works():
    assert choose("second", trackers=[tracker("best"), tracker("second")]).kind == "second"


def test_an_unknown_kind_is_the_callers_error_and_names_the_known_ones():
    with pytest.raises(RequestError, match="pagemap-scan, userfaultfd, content"):
        choose("dirty-ring")


def test_when_nothing_works_every_reason_is_given():
    with pytest.raises(HostError, match="not a: one; not b: two"):
        choose(trackers=[tracker("a", "one"), tracker("b", "two")])


def test_best_comes_first():
    assert KINDS == ("pagemap-scan", "userfaultfd", "content")


def test_every_tracker_can_be_asked_for_by_the_parameters_own_word():
    assert {choice.value for choice in DirtyTrackerChoice} == {"auto", *KINDS}
