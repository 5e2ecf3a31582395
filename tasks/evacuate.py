"""Emptying hosts: begun here, carried on by `steps`. The judgement is tasks.planning.evacuating's."""

from __future__ import annotations

from config.errors import RefusedError
from tasks.jobs import Kind, Order
from tasks.ledger.ledger import Answer, Ledger
from tasks.planning.evacuating import Evacuation


def begin(ledger: Ledger, asked: Evacuation, reason: str) -> None:
    """Write an evacuation down; its hosts take no guests from here on, and rebalancing gives way to it.

    Raises RefusedError (`unknown-host`, `busy`), UnreachableError.
    """
    answer, detail = ledger.begin_job(Order(Kind.EVACUATION, asked, reason))
    match answer:
        case Answer.UNKNOWN:
            raise RefusedError(f"No host {detail} is known; `droveway hosts` shows what there is.", "unknown-host")
        case Answer.BUSY:
            raise RefusedError(
                f"{detail} empties one of these hosts already; follow it (`droveway show {detail} --watch`), or end it"
                f" (`droveway cancel {detail}`) first.",
                "busy",
            )
