"""What `blocker`, `cordon`, `uncordon` and `evacuate` share: words that are given, and answers of the ledger."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from config.errors import RefusedError, RequestError
from config.names import check_name, nearest
from config.units import SECONDS
from tasks.cli.invocation import Command
from tasks.ledger.ledger import Answer, Ledger
from tasks.records import Kept, Pin

#: Characters of a reason: it is shown in one line, beside what it is about.
_LONGEST = 200


def pin(ledger: Ledger, kept: Kept, name: str, reason: str, seconds: float | None, *, replace: bool = False) -> Pin:
    """Keep it there for so many seconds. Raises RequestError, RefusedError (`pinned`, `cordoned`, unknown names)."""
    said = check_reason(reason)
    _known(ledger, kept, name)
    now = ledger.now()
    expires = None if seconds is None else now + seconds
    if standing := ledger.pin(kept, name, said, expires, replace=replace):
        word = "cordoned" if kept is Kept.CORDON else "pinned"
        raise RefusedError(
            f"{name} is {word} already: {standing.reason}; --replace puts your reason in place of it.", word
        )
    return Pin(kept, name, said, now, expires)


def check_reason(reason: str) -> str:
    """`reason` when it is a line that can be shown beside what it is about. Raises RequestError."""
    if not reason.strip() or len(reason) > _LONGEST or not reason.isprintable():
        raise RequestError(f"a reason is one line of 1 to {_LONGEST} characters; say why in fewer words")
    return reason.strip()


def unpin(ledger: Ledger, kept: Kept, name: str) -> bool:
    """Let it move again; whether anything kept it."""
    return ledger.unpin(kept, name) is Answer.OK


def kept_and_name(kept: str, name: str) -> tuple[Kept, str]:
    """The words of a command line, checked. Raises RequestError."""
    return Kept(kept), check_name("guest" if kept == Kept.GUEST else "host", name)


def _known(ledger: Ledger, kept: Kept, name: str) -> None:
    """A mistyped name would keep nothing where it is, and nobody would know."""
    if kept is Kept.GUEST:
        check_known("guest", name, ledger.fleet().guests)
    else:  # also one whose workers are away: it shall take no guests when they are back
        check_known("host", name, ledger.hosts())


def check_known(kind: str, name: str, known: Collection[str]) -> None:
    """Raises RefusedError (`unknown-host`, `unknown-guest`) unless `name` is among those that the fleet knows."""
    if name not in known:
        raise RefusedError(
            f"No {kind} {name} is known{nearest(name, known)} (`droveway hosts` shows hosts, `droveway guest list` on a"
            " host its guests).",
            f"unknown-{kind}",
        )


class _Duration(click.ParamType[float]):
    """Seconds, as people write them."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        try:
            seconds = float(SECONDS.parse(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail("it would be over at once", param, ctx)
        return seconds


DURATION = _Duration()


def expires_option(command: Command) -> Command:
    """--expires, as `expires` in seconds from now."""
    about = "Like 2h or 30m: over by itself then. Default: until it is taken back."
    return click.option("--expires", type=DURATION, metavar="TIME", help=about)(command)
