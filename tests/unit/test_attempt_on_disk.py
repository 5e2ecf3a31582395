"""What a mover writes of itself, on disks that are full or lost their power."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from config.errors import HostError
from workers.attempt import Attempt, Job, Status
from workers.migration import Progress
from workers.pairing.contract import Side

JOB = Job("m-1", "vm", 1, Side.SOURCE, "nonce", "a", "b", 1 << 20, {}, {})


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt.of(tmp_path, JOB.ticket)
    assert made.prepare(JOB)
    return made


def test_a_full_disk_ends_no_move_that_goes_well(attempt: Attempt) -> None:
    progress = Progress(attempt)
    with patch.object(Attempt, "report", side_effect=OSError(28, "No space left on device")):
        progress.update({"phase": "bulk"}, now=True)
    progress.update({"state": "active"}, now=True)
    assert (attempt.status().phase, attempt.status().state) == ("bulk", "active")


def test_a_status_that_does_not_fit_leaves_no_half_of_it(attempt: Attempt) -> None:
    before = sorted(attempt.directory.iterdir())
    with patch("json.dump", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError, match="space"):
        attempt.report(Status())
    assert sorted(attempt.directory.iterdir()) == before


@pytest.mark.parametrize("text", ["", "\0\0\0", '{"state": "act'])
def test_a_status_that_lost_its_text_with_the_power_says_nothing(attempt: Attempt, text: str) -> None:
    (attempt.directory / "status.json").write_text(text)
    assert attempt.status() == Status()


@pytest.mark.parametrize("text", ["", "\0\0", '{"pid": 0}'])
def test_a_pid_that_lost_its_text_with_the_power_keeps_nobody_from_settling(attempt: Attempt, text: str) -> None:
    """Nor does a number that is a thread's by now, or that no process can have."""
    (attempt.directory / "pid").write_text(text)
    attempt.cancel()
    assert attempt.wait(60)


def test_a_job_that_cannot_be_read_is_named(attempt: Attempt) -> None:
    (attempt.directory / "job.json").write_text("")
    with pytest.raises(HostError, match=r"job\.json is damaged"):
        attempt.job()
