"""A move as it is watched on a terminal: a head line, a bar for each round, and what is expected. Pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tasks.cli.quantities import NOTHING, bit_rate, seconds, size
from tasks.cli.rendering.facts import Facts, RoundFacts
from tasks.cli.rendering.lines import rate_words, state_words

_BAR = 30
#: Rounds that are shown; of more, the first of these are left out.
_ROUNDS = 12

STYLES = {"completed": "bold green", "failed": "bold red", "cancelled": "bold yellow", "queued": "yellow"}


def live(facts: Facts, rate: float | None) -> RenderableType:
    """Everything, as wide as it needs to be. `rate` is that of the round under way, in bytes/s."""
    parts: list[RenderableType] = [_head(facts)]
    rounds = [*facts.finished, *([facts.current] if facts.current else [])]
    if rounds:
        parts.append(_rounds(rounds[-_ROUNDS:], rate))
    if expected := rate_words(facts):
        parts.append(Text(f"  {expected}", style="dim"))
    return Group(*parts)


def _head(facts: Facts) -> Text:
    state = facts.record.state
    head = Text.assemble((facts.record.migration, "dim"), " ", (facts.way, "bold"), "  ")
    head.append(state_words(facts), STYLES.get(state, "cyan"))
    if facts.phase not in (None, "ended", state) and not facts.record.ended:
        head.append(f", {facts.phase}")
    return head


def _rounds(rounds: list[RoundFacts], rate: float | None) -> Table:
    grid = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "right", "right", "right", "left"):
        grid.add_column(justify=justify, no_wrap=True)
    for each in rounds:
        under_way = each.seconds is None
        shown = rate if under_way else each.rate
        grid.add_row(
            f"  {each.index} {each.kind}",
            # A round of nothing is a finished round; rich would draw it as one that has not begun.
            ProgressBar(max(each.total, 1), each.done if each.total else 1, width=_BAR),
            f"{size(each.done)} of {size(each.total)}" if under_way else size(each.total),
            bit_rate(shown),
            _left(each, rate) if under_way else seconds(each.seconds),
            "" if under_way or each.dirty is None else f"{size(each.dirty)} dirty",
        )
    return grid


def _left(facts: RoundFacts, rate: float | None) -> str:
    return f"{seconds((facts.total - facts.done) / rate)} left" if rate else NOTHING
