"""How workers and movers log: one line an event, for a terminal or as JSON.

A line that concerns a migration carries `migration`, `guest`, `host`, `role` and `phase` (`about`), so that one
question to whatever collects the lines of all hosts tells a migration from end to end. Levels are by who reads them:
info tells the course of things, warning what heals by itself, error what somebody has to look at. No line holds the
password of a Redis URL, whoever quotes it, nor a variable's value that nobody asked to log.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from config.settings import WorkerSettings
from workers.attempt import Job

_PASSWORD = re.compile(r"(\b(?:rediss?|unix)://[^:@/\s]*:)[^/\s]+(?=@)")


def configure(settings: WorkerSettings) -> None:
    """Send everything that is logged in this process to standard error."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Before it is drawn: structlog would show people each frame's variables, in colours that hide a URL.
            structlog.processors.format_exc_info,
            _mask,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)  # a line that is no JSON ends whatever reads them


def masked(text: str) -> str:
    """The text without the passwords of Redis URLs in it."""
    return _PASSWORD.sub(r"\1***", text)


def _mask(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: masked(value) if isinstance(value, str) else value for name, value in line.items()}


def about(job: Job, phase: str) -> None:
    """What this thread logs from here on is about this side of this migration, in this phase."""
    structlog.contextvars.bind_contextvars(
        migration=job.migration, guest=job.guest, host=job.host, role=str(job.side), epoch=job.epoch, phase=phase
    )


def about_nothing() -> None:
    """And from here on about none."""
    structlog.contextvars.clear_contextvars()
