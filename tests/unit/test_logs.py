"""What must stand in no line of a log, for whomever it is drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from config.settings import WorkerSettings
from workers import logs

SECRET = "redis://droveway:s3cret%40@redis.example:6379/0"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was written to standard error; logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_holds_a_password_or_a_frame_s_variables(form: str, said: Callable[[], str]) -> None:
    logs.configure(WorkerSettings.model_validate({"log_format": form}))
    kept_to_itself = "".join(["hunter", "2"])
    try:
        raise ValueError(f"no answer from {SECRET}, {len(kept_to_itself)}")
    except ValueError:
        logging.getLogger("droveway.x").exception("lost %s", SECRET)
    written = said()
    assert "s3cret" not in written
    assert "hunter2" not in written
    assert written.count("redis://droveway:***@redis.example") == 2
    assert "Traceback" in written


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("rediss://u:p:w@h and redis://v:pw@h", "rediss://u:***@h and redis://v:***@h"),
        ("rediss://u:p@ss@w@h:6379/0 lost", "rediss://u:***@h:6379/0 lost"),
        ("redis://:a@h/0,redis://:b@g/0", "redis://:***@h/0,redis://:***@g/0"),
        ("unix://u:pw@/run/redis.sock?db=1", "unix://u:***@/run/redis.sock?db=1"),
        ("redis://h:6379/0 lost", "redis://h:6379/0 lost"),
        ("redis://h:6379 told admin@example.org", "redis://h:6379 told admin@example.org"),
    ],
)
def test_only_the_password_of_a_url_is_masked(text: str, masked: str) -> None:
    assert logs.masked(text) == masked
