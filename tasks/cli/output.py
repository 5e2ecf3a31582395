"""Where words go: tables to standard output, progress beside them."""

from __future__ import annotations

from rich.console import Console, RenderableType

#: Columns for whoever reads us through a pipe; a terminal says its own.
_PIPE_WIDTH = 160


def console(*, stderr: bool = False) -> Console:
    """Standard output or error, as wide as its reader can take."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=_PIPE_WIDTH)


def show(what: RenderableType) -> None:
    """Print it to standard output."""
    console().print(what, soft_wrap=isinstance(what, str))


def progress_console(as_json: bool) -> Console | None:
    """Where progress goes: standard output; with --json standard error, if somebody looks at it, else nowhere."""
    made = console(stderr=as_json)
    return None if as_json and not made.is_terminal else made
