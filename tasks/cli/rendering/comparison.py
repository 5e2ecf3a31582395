"""The demo's end: the same guest, moved to and fro, side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tasks.cli.quantities import bit_rate, seconds, size
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.live import STYLES
from tasks.cli.rendering.tables import table

#: The spans that `--json` promises; one that did not happen took no time.
_SPANS = ("total", "registration", "bulk", "rounds", "downtime")


@dataclass(frozen=True, slots=True)
class DemoMove:
    """One move of the demo's guest, and what the guest says of it afterwards.

    Shapes: `pages_checked` and `corrupt` of a check of all pages after the move; `longest_gap` in seconds, counted from
    just before the move.
    """

    facts: Facts
    pages_checked: int
    corrupt: int
    longest_gap: float

    @property
    def way(self) -> str:
        """From where to where."""
        return self.facts.way.partition(" ")[2]

    def to_json(self) -> dict[str, Any]:
        """The shape that `droveway demo --json` promises."""
        whole = self.facts.to_json()
        return {
            "capabilities": dict(self.facts.record.capabilities),
            "state": self.facts.record.state,
            "seconds": {name: self.facts.seconds.get(name, 0.0) for name in _SPANS},
            "transferred_bytes": self.facts.transferred,
            "rounds": whole["rounds"],
            "guest": {
                "pages_checked": self.pages_checked,
                "corrupt": self.corrupt,
                "longest_gap_seconds": self.longest_gap,
            },
        }


def comparison(moves: Sequence[DemoMove]) -> RenderableType:
    """One column a move."""
    made = table("", *(f">{move.way}" for move in moves))
    for label, value in _ROWS.items():
        made.add_row(label, *(value(move) for move in moves))
    return made


def _span(*names: str) -> Callable[[DemoMove], str]:
    def said(move: DemoMove) -> str:
        known = [move.facts.seconds[name] for name in names if name in move.facts.seconds]
        return seconds(sum(known) if known else None)

    return said


def _pinned(move: DemoMove) -> str:
    return "on" if move.facts.record.capabilities.get("rdma-pin-all") else "off"


def _state(move: DemoMove) -> Text:
    state = move.facts.record.state
    return Text(state, style=STYLES.get(state, ""))


def _corrupt(move: DemoMove) -> Text:
    return Text(f"{move.corrupt} CORRUPT", style="bold red") if move.corrupt else Text("0", style="bold green")


_ROWS: Mapping[str, Callable[[DemoMove], RenderableType]] = {
    "rdma-pin-all": _pinned,
    "state": _state,
    "setup": _span("pairing"),
    "survey": _span("survey"),
    "waited for registration": _span("registration"),
    "bulk round": _span("bulk"),
    "dirty rounds": _span("rounds"),
    "downtime, as the worker saw it": _span("downtime"),
    "downtime, as the guest felt it": lambda move: seconds(move.longest_gap),
    "deregistration": _span("deregistration"),
    "total": _span("total"),
    "rounds": lambda move: str(len(move.facts.finished)),
    "sent": lambda move: size(move.facts.transferred),
    "rate": lambda move: bit_rate(move.facts.rate),
    "dirty tracker": lambda move: str(move.facts.choices.get("tracker", "")),
    "pages checked": lambda move: f"{move.pages_checked:,}",
    "corrupt pages": _corrupt,
}
