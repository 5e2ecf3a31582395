"""The trial at start-up must catch a kernel, or a tracker, that misses a write or hangs one."""

from __future__ import annotations

import threading

import pytest

from config.errors import HostError
from workers.dirty import trial as trials
from workers.dirty.content import ContentTracker
from workers.dirty.forgetful import Forgetful
from workers.dirty.scripted import ScriptedTracker
from workers.dirty.trial import OwnMemory, trial
from workers.ranges import EMPTY, PAGE_SIZE, PageRange, RangeTable

FIRST, SECOND = RangeTable([(0, PAGE_SIZE)]), RangeTable([(8192, 12288)])


class Blind(ContentTracker):
    """Reports everything but one stretch of the trial's memory."""

    blind = EMPTY

    def collect(self) -> RangeTable:
        return RangeTable([(0, self._ram.size)]) - self.blind


@pytest.mark.parametrize(
    ("stretch", "missed"),
    [
        (0, "never populated"),
        (1, "a write to a populated page"),
        (2, "MADV_DONTNEED"),
        (3, "hole punch"),
        (4, "a write to a huge page"),
        (5, "collapsed"),
        (6, "by the kernel"),
    ],
)
def test_each_way_of_writing_is_tried(stretch, missed, monkeypatch):
    page = stretch * (2 << 20)
    monkeypatch.setattr(Blind, "blind", RangeTable([PageRange(page, page + PAGE_SIZE)]))
    with pytest.raises(HostError, match=missed):
        trial(Blind)


def test_a_tracker_that_reports_everything_passes():
    trial(Blind)


def test_a_write_that_hangs_is_a_reason_and_not_a_hang(monkeypatch):
    closed = threading.Event()

    class Hanging(Blind):
        def close(self) -> None:
            closed.set()

    monkeypatch.setattr(trials, "_PATIENCE", 0.05)
    monkeypatch.setattr(OwnMemory, "fill", lambda self, start, end, value: value == 1 or closed.wait())
    with pytest.raises(HostError, match="hangs a first write"):
        trial(Hanging)


def test_a_script_is_followed_and_then_nothing_is_dirty():
    tracker = ScriptedTracker([FIRST, SECOND])
    tracker.start()
    assert [tracker.collect() for _ in range(3)] == [FIRST, SECOND, EMPTY]
    tracker.close()
    assert tracker.calls == ["start", "collect", "collect", "collect", "close"]


def test_the_forgetful_tracker_never_hands_on_the_last_table():
    wrapped = ScriptedTracker([FIRST, SECOND])
    tracker = Forgetful(wrapped)
    tracker.start()
    assert [tracker.collect(), tracker.collect()] == [EMPTY, FIRST]
    tracker.close()
    assert wrapped.calls == ["start", "collect", "collect", "close"]
