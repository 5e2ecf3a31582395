"""What is made of a trial of the drain: of how far a copy had come before and after a transaction, and its time."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from config.errors import HostError
from workers.guests.qemu.draining import drains, known_to_drain, tried
from workers.guests.qemu.monitor import Monitor


class Answering:
    """A QEMU whose copy has come so far, before a transaction that takes so many seconds and after it."""

    def __init__(self, before: int, seconds: float, after: int) -> None:
        self.now, self.seconds, self.after, self.progress = 100.0, seconds, after, before

    def execute(self, command: str, **arguments: Any) -> Any:
        if command == "query-jobs":
            return [{"id": "copy", "current-progress": self.progress, "total-progress": 1 << 20}]
        if command == "transaction":
            assert arguments == {"actions": []}
            self.now += self.seconds
            self.progress = self.after
        return None

    ask = execute

    def result(self, asked: Any, seconds: float, what: str) -> Any:
        return asked

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("before", "seconds", "after", "told"),
    [
        (0, 1.9, 1 << 20, True),
        (0, 0.002, 0, False),
        (0, 5.0, 0, False),
        (0, 0.002, 1 << 20, None),  # held up between the look and the transaction: it may have ended by itself
        (1 << 20, 0.002, 1 << 20, None),  # held up before the look
        (1 << 20, 1.9, 1 << 20, None),
    ],
)
def test_only_a_transaction_that_was_seen_to_wait_is_one_that_drains(
    before: int, seconds: float, after: int, told: bool | None
) -> None:
    qemu = Answering(before, seconds, after)
    assert tried(cast("Monitor", qemu), qemu.clock) is told


def test_what_is_in_doubt_is_tried_again_and_then_it_does_not_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(*told: bool | None) -> tuple[bool, int]:
        left = list(told)
        monkeypatch.setattr("workers.guests.qemu.draining.probed", lambda binary: nullcontext())
        monkeypatch.setattr("workers.guests.qemu.draining.tried", lambda monitor, clock: left.pop(0))
        return drains(Path("qemu")), len(left)

    assert outcome(None, None, True) == (True, 0)
    assert outcome(False, True, True) == (False, 2)
    assert outcome(None, None, None, True) == (False, 1)


def test_a_qemu_that_cannot_be_tried_does_not_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(binary: str) -> None:
        raise HostError("it ended")

    monkeypatch.setattr("workers.guests.qemu.draining.probed", gone)
    assert drains(Path("qemu")) is False


def test_a_binary_that_drains_is_tried_once_and_another_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    told = iter((False, True, True))

    def drains(binary: Path) -> bool:
        tries.append(binary.name)
        return next(told)

    monkeypatch.setattr("workers.guests.qemu.draining.drains", drains)
    notes, old, new = (tmp_path / name for name in ("notes", "old", "new"))
    old.write_bytes(b"old")
    new.write_bytes(b"newer")
    assert not known_to_drain(old, notes)
    assert [known_to_drain(each, notes) for each in (old, old, new, new, old)] == [True] * 5
    assert tries == ["old", "old", "new"]
    assert not list(tmp_path.glob("notes.*"))
    assert not known_to_drain(tmp_path / "gone", notes)


@pytest.mark.parametrize("harmed", [b"", b"{}", b"\xff", b"[1, 2"])
def test_notes_that_were_harmed_are_no_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmed: bytes) -> None:
    told = iter((False, True))
    monkeypatch.setattr("workers.guests.qemu.draining.drains", lambda binary: next(told))
    notes, binary = tmp_path / "notes", tmp_path / "qemu"
    notes.write_bytes(harmed)
    binary.write_bytes(b"qemu")
    assert not known_to_drain(binary, notes)
    assert known_to_drain(binary, notes)
    assert known_to_drain(binary, notes)
