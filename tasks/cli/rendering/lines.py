"""A move as plain lines: one per change of state and per round, for logs and pipes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.cli.quantities import bit_rate, byte_rate, seconds, size
from tasks.cli.rendering.facts import Facts, RoundFacts


def state_words(facts: Facts) -> str:
    """The state, and what it waits for or why it ended."""
    record = facts.record
    if record.state in ("queued", "setup") and record.waiting:
        return f"{record.state}: {record.waiting}"
    if record.message and record.ended and record.state != "completed":
        return f"{record.state}: {record.message}"
    return f"{record.state}, cancelling" if record.cancelling and not record.ended else record.state


def round_words(facts: RoundFacts) -> str:
    """One finished round."""
    what = f"round {facts.index} ({facts.kind}): {size(facts.total)} in {seconds(facts.seconds)}"
    sent = f", {size(facts.sent)} sent at {bit_rate(facts.rate)}"
    if facts.verdict is None:
        return what + sent
    return f"{what}{sent}; {size(facts.dirty)} written meanwhile → {facts.verdict}: {facts.reason}"


def changes(before: Facts | None, now: Facts) -> Iterator[str]:
    """What is worth a line since `before`."""
    known = len(before.finished) if before else 0
    for each in now.finished[known:]:
        yield f"{now.way}: {round_words(each)}"
    if before is None or state_words(before) != state_words(now):
        yield f"{now.way}: {state_words(now)}"


def rate_words(facts: Facts) -> str:
    """What the guest writes and what pausing it now would cost."""
    dirty, downtime = facts.rates.get("dirty"), facts.rates.get("expected_downtime")
    said = [f"guest writes {byte_rate(dirty)}"] if dirty is not None else []
    return ", ".join([*said, f"expected downtime {seconds(downtime)}"] if downtime is not None else said)
