"""Cores that a guest keeps busy, from two looks at its process."""

from __future__ import annotations

import os
from pathlib import Path

from workers.guests.load import Loads

TICKS = os.sysconf("SC_CLK_TCK")


class Proc:
    """A /proc of our own, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        self.loads = Loads(path, lambda: self.now)

    def spent(self, pid: int, seconds: float, begun: int = 1, name: str = "qemu (web) 0") -> None:
        (self.path / str(pid)).mkdir(exist_ok=True)
        ticks = round(seconds * TICKS)
        fields = ["S", *"0" * 10, str(ticks // 2), str(ticks - ticks // 2), *"0" * 6, str(begun)]
        (self.path / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)} 0 0")


def test_load_is_time_on_cores_between_two_looks(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.spent(1, 100)
    proc.spent(2, 5)
    assert proc.loads.look([1, 2]) == {1: 0.0, 2: 0.0}
    proc.now = 10
    proc.spent(1, 125)
    assert proc.loads.look([1, 2]) == {1: 2.5, 2: 0.0}


def test_a_second_look_at_once_says_what_the_first_one_said(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.spent(1, 0)
    proc.loads.look([1])
    proc.now = 10
    proc.spent(1, 10)
    assert proc.loads.look([1]) == {1: 1.0}
    proc.now = 10.001
    proc.spent(1, 10.01)
    assert proc.loads.look([1]) == {1: 1.0}
    proc.now = 20
    proc.spent(1, 10)
    assert proc.loads.look([1]) == {1: 0.0}


def test_another_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.spent(1, 100)
    proc.loads.look([1])
    proc.now = 10
    proc.spent(1, 130, begun=7)
    assert proc.loads.look([1]) == {1: 0.0}


def test_a_process_that_is_gone_has_no_load_and_is_forgotten(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    assert proc.loads.look([4711]) == {}


def test_a_real_process_that_works_is_seen_to(tmp_path: Path) -> None:
    now = 0.0
    loads = Loads(clock=lambda: now)
    loads.look([os.getpid()])
    spent = sum(os.times()[:2])
    while sum(os.times()[:2]) - spent < 0.1:
        pass
    now = 10.0
    assert 0.005 <= loads.look([os.getpid()])[os.getpid()] < 10
