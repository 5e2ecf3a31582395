"""What a page says of one migration. Pure: the record → words, figures, bars."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.cli.quantities import NOTHING, bit_rate, byte_rate, seconds, size
from tasks.cli.rendering.facts import Facts, RoundFacts
from tasks.cli.rendering.report.strips import Span, part, strips
from tasks.cli.rendering.timeline import MOMENTS, Phase, measured, phases, rows
from tasks.records import MigrationRecord
from workers.pairing.contract import Side

_MEASURED = (
    "From the moment when the migration was asked for. Bars lie where they were, by each mover's own clock; in a gap"
    " nothing was measured by itself. The two clocks are laid beside each other by the moment when the movers greeted"
    " each other: one side may be off against the other by half a round trip between the hosts, and by as long as a"
    " busy host kept its mover waiting in that instant. READY, GIVEN and TAKEN keep their order."
)
_ONE_AFTER_THE_OTHER = (
    "only how long phases took was measured: the source's are drawn one after the other, the destination's so that both"
    " end the downtime together."
)


def page_of(facts: Facts) -> dict[str, Any]:
    """For page.html.j2."""
    record = facts.record
    return {
        "title": f"{record.guest}: {record.source.host} → {record.destination.host}",
        "id": record.migration,
        "state": record.state,
        "outcome": _outcome(facts),
        "figures": list(_figures(facts)),
        "timelines": [
            {
                "title": "What happened when",
                "note": _note(record),
                "strips": strips(_timeline(facts)),
            }
        ],
        "rounds": _rounds(facts),
        "decisions": list(_decisions(facts)),
        "tables": [_bytes(facts), _asked(facts), _sides(facts)],
    }


def _outcome(facts: Facts) -> str:
    record = facts.record
    if record.message:
        return record.message
    if record.state == "completed":
        return f"{record.guest} runs on {record.destination.host}."
    return record.waiting or ("It has not ended." if not record.ended else "")


def _figures(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Name, value, and what it is to be compared with."""
    record, limit = facts.record, facts.record.parameters.get("downtime-limit")
    allowed = f"of {limit} ms allowed" if isinstance(limit, int) else ""
    expected = facts.rates.get("expected_downtime")
    yield "Downtime", seconds(facts.seconds.get("downtime")), allowed
    yield "Expected downtime", seconds(expected), "when it was decided to switch over"
    yield "Total", seconds(facts.seconds.get("total")), "of the source's mover"
    yield "Sent", size(facts.transferred), f"of {size(record.memory)} that the guest has"
    yield "Mean rate", bit_rate(facts.rate), "" if record.rate is None else f"given: {bit_rate(record.rate)}"
    yield "Rounds", str(len(facts.finished)), ""


def _note(record: MigrationRecord) -> str:
    older = [side.host for side in (record.source, record.destination) if side.progress and not measured(side)]
    if not older:
        return _MEASURED
    return f"{_MEASURED} Of {' and '.join(older)}, whose mover was of an older release, {_ONE_AFTER_THE_OTHER}"


def _timeline(facts: Facts) -> Iterator[Span]:
    record = facts.record
    if facts.queue_wait is not None:
        yield Span("fleet", "waited for admission", 0.0, facts.queue_wait, "queue")
    found = phases(record)
    sent = _drawn(record, Side.SOURCE, found) if measured(record.source) else list(_sent(record, found))
    yield from sent
    if measured(record.destination):
        yield from _drawn(record, Side.DESTINATION, found)
        return
    paused = [span for span in sent if span.kind == "downtime"]
    yield from _received(record, found, paused[0].start + paused[0].seconds if paused else None)


def _drawn(record: MigrationRecord, side: Side, found: Sequence[Phase]) -> list[Span]:
    """A side of which is known when its phases were."""
    return [
        _span(
            record, each[0], each[0].began or 0.0, sum(one.seconds for one in each),
            tuple((one.began or 0.0, one.seconds) for one in each),
        )
        for each in rows([one for one in found if one.side is side])
    ]  # fmt: skip


def _span(
    record: MigrationRecord, phase: Phase, at: float, took: float, pieces: tuple[tuple[float, float], ...] = ()
) -> Span:
    row = f"{phase.side}, {record.side(phase.side).host}"
    kind = "moment" if phase.name in MOMENTS else "rounds" if phase.round and phase.name == "downtime" else phase.name
    return Span(row, phase.words, at, took, kind, pieces)


def _sent(record: MigrationRecord, found: Sequence[Phase]) -> Iterator[Span]:
    """The source's phases one after the other."""
    side = record.source
    if side.claimed is None:
        return
    at, took = side.claimed - record.created, (side.progress or {}).get("seconds", {})
    spans = [each for each in found if each.side is Side.SOURCE]
    measured_in_all = sum(each.seconds for each in spans)
    if (idle := took.get("total", measured_in_all) - measured_in_all) > 0:
        spans.insert(0, Phase(Side.SOURCE, "start", None, idle))
    for each in spans:
        yield _span(record, each, at, each.seconds)
        at += each.seconds


def _received(record: MigrationRecord, found: Sequence[Phase], taken: float | None) -> Iterator[Span]:
    """Pairing from the claim on, all else so that it has taken over (`taken`) when the source's downtime ends."""
    side = record.destination
    if side.claimed is None:
        return
    at, until_taken = side.claimed - record.created, 0.0
    spans = {each.name: each for each in found if each.side is Side.DESTINATION}
    if (pairing := spans.pop("pairing", None)) is not None:
        yield _span(record, pairing, at, pairing.seconds)
        at += pairing.seconds
    until_taken = sum(spans[name].seconds for name in ("rounds", "handover") if name in spans)
    at = at if taken is None else max(at, taken - until_taken)
    for each in spans.values():
        yield _span(record, each, at, each.seconds)
        at += each.seconds


def _rounds(facts: Facts) -> dict[str, Any] | None:
    if not facts.finished:
        return None
    rates = [(each, each.rate or 0.0, _written(each)) for each in facts.finished]
    most = max(max(transfer, dirty or 0.0) for _, transfer, dirty in rates)
    return {
        "rows": [
            {
                "name": f"{each.index} {each.kind}",
                "memory": size(each.total),
                "sent": size(each.sent),
                "took": seconds(each.seconds),
                "transfer": byte_rate(transfer),
                "transfer_part": part(transfer, most),
                "dirty": byte_rate(dirty),
                "dirty_part": part(dirty, most),
                "ratio": NOTHING if dirty is None or not transfer else f"{dirty / transfer:.2f}",
                "verdict": each.verdict or "",
                "reason": each.reason or "",
            }
            for each, transfer, dirty in rates
        ]
    }


def _written(each: RoundFacts) -> float | None:
    """Bytes/s that the guest wrote anew while this round was sent; None after the last one: it was paused."""
    return each.dirty / each.seconds if each.dirty is not None and each.seconds else None


def _decisions(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """What was decided on, what for, and why."""
    chosen = facts.choices
    if "engine" in chosen:
        yield "Who moves the memory", str(chosen["engine"]), str(chosen.get("engine-reason", ""))
    if "transport" in chosen:
        sizes = f"{chosen.get('channels')} channels, chunks of {size(chosen.get('chunk-size'))}"
        yield "Transport", str(chosen["transport"]), sizes
    if "policy" in chosen:
        yield "Registration", str(chosen["policy"]), str(chosen.get("policy-reason", ""))
    if "recommended" in chosen:
        yield "Recommended", "", str(chosen["recommended"])
    if "tracker" in chosen:
        yield "Dirty tracker", str(chosen["tracker"]), str(chosen.get("tracker-reason", ""))
    if "drain" in chosen:
        yield "Block I/O", f"drained by {chosen['drain']}", ""
    for note in chosen.get("notes", ()):
        yield f"Instead, {note['about']}", "", str(note["reason"])
    for each in facts.finished:
        if each.verdict:
            yield f"After round {each.index}", each.verdict, each.reason or ""


def _bytes(facts: Facts) -> dict[str, Any]:
    kinds = {"bulk": 0, "dirty": 0, "final": 0, "as differences": 0}
    for each in facts.finished:
        kinds[each.kind] = kinds.get(each.kind, 0) + (each.sent or 0) - each.delta
        kinds["as differences"] += each.delta
    sizes = facts.bytes
    nothing = sizes["total"] - sizes["populated"] if {"total", "populated"} <= sizes.keys() else None
    skipped = sum(each.zero for each in facts.finished)
    rows = [(f"sent, {kind}", size(value)) for kind, value in kinds.items() if value]
    rows += [("never touched: neither registered nor sent", size(nothing)), ("zero pages skipped", size(skipped))]
    return {"title": "Bytes", "rows": [*rows, ("registered at the end", size(sizes.get("registered")))]}


def _asked(facts: Facts) -> dict[str, Any]:
    record = facts.record
    on = ", ".join(name for name, value in record.capabilities.items() if value) or "none"
    return {
        "title": "Asked for",
        "rows": [
            ("by", record.job or "somebody, by itself"),
            ("at", _moment(record.created)),
            ("priority", str(record.priority)),
            ("capabilities", on),
            *(facts.parameters or [("parameters", "all at their defaults")]),
        ],
    }


def _sides(facts: Facts) -> dict[str, Any]:
    rows = []
    for name, side in facts.sides():
        said = side.progress or {}
        state = side.outcome or said.get("outcome") or ("at work" if side.at_work else "not begun")
        rows.append((f"{name}, {side.host}", " ".join(filter(None, (state, said.get("message"))))))
    return {"title": "Both sides", "rows": [*rows, ("epoch", str(facts.record.epoch or NOTHING))]}


def _moment(value: float | None) -> str:
    return NOTHING if value is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(value))
