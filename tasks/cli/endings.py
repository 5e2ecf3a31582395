"""How a call ends: the exit codes, and the one sentence that says what went wrong."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import click

from config.errors import (
    CancelledError,
    DrovewayError,
    HostError,
    MigrationFailedError,
    RefusedError,
    RequestError,
    UnreachableError,
    UnresolvedError,
)

INTERRUPTED = 130

#: Exit code, when. Those of errors are the classes' own (config/errors.py).
EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done"),
    (DrovewayError.exit_code, "a defect of droveway's own: please report it"),
    (RequestError.exit_code, "the request is wrong: unknown option, capability, parameter or value"),
    (RefusedError.exit_code, "the fleet refuses it now: unknown guest or host, no worker, busy, no room"),
    (HostError.exit_code, "a host's settings or limits must be changed first"),
    (UnreachableError.exit_code, "Redis, or a host, cannot be reached"),
    (
        MigrationFailedError.exit_code,
        "the migration failed, and the guest goes on at its source; or a check found harm",
    ),
    (CancelledError.exit_code, "the migration was cancelled, and the guest goes on at its source"),
    (UnresolvedError.exit_code, "something stays unresolved: `droveway reconcile` says what"),
    (INTERRUPTED, "interrupted by Ctrl-C; what was started goes on"),
)


class EndedError(DrovewayError):
    """Something else than this call failed or was cancelled, and its own words for that are known.

    `document` is what the call would have printed with --json, had it ended well: the error then stands beside it.
    """

    def __init__(self, message: str, reason: str, exit_code: int, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason = reason  # type: ignore[misc]  # another program's word, as with RefusedError
        self.exit_code = exit_code  # type: ignore[misc]
        self.document = dict(document or {})


def run(command: Callable[[], object], *, as_json: bool, debug: Callable[[], bool]) -> int:
    """Run the call and say how it ended; the exit code."""
    try:
        result = command()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # Whoever read us has seen enough; the interpreter must not stumble over the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last frame: a defect gets its sentence too
        if debug():
            traceback.print_exc()
        return _say(understood(error), as_json)
    return result if isinstance(result, int) else 0


def understood(error: Exception) -> DrovewayError:
    """The error in our words: click's are wrong requests, anything unknown is a defect."""
    if isinstance(error, DrovewayError):
        return error
    if isinstance(error, click.UsageError):
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return RequestError(f"{error.format_message().rstrip('.')}{where}.")
    if isinstance(error, click.ClickException):
        return RequestError(error.format_message())
    hint = "DROVEWAY_WORKER__LOG_LEVEL=debug shows where; please report it"
    return DrovewayError(f"a defect ({type(error).__name__}: {error}): {hint}.")


def _say(error: DrovewayError, as_json: bool) -> int:
    if as_json:
        said = {"reason": error.reason, "message": str(error), "exit_code": error.exit_code}
        beside = error.document if isinstance(error, EndedError) else {}
        click.echo(json.dumps(beside | {"error": said}))
    else:
        click.echo(f"droveway: {error}", err=True)
    return error.exit_code
