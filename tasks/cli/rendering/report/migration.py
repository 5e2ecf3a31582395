"""What a page says of one migration. Pure: the record → words, figures, bars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from config.capabilities import PARAMETERS
from tasks.cli.quantities import NOTHING, bit_rate, byte_rate, seconds, size
from tasks.cli.rendering.facts import Facts, RoundFacts
from tasks.cli.rendering.report.strips import Span, part, strips
from tasks.records import SideRecord

#: The source's phases in their order. Registration runs beside the rounds and has no place of its own in it.
_SOURCE = ("pairing", "links", "survey", "bulk", "rounds", "downtime", "deregistration")
_SAID = {
    "queue": "waited for admission",
    "start": "its mover starts",
    "pairing": "paired, the twin started",
    "links": "waited for the links",
    "survey": "looked at the memory",
    "bulk": "bulk round",
    "rounds": "dirty rounds",
    "received": "receives all rounds",
    "downtime": "downtime: the guest is paused",
    "handover": "loads, verifies, takes over",
    "deregistration": "lets go of memory",
}


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
                "note": "From the moment when the migration was asked for. Only how long phases took was measured: the "
                "source's are drawn one after the other, the destination's so that both end the downtime together.",
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


def _timeline(facts: Facts) -> Iterator[Span]:
    record = facts.record
    if facts.queue_wait is not None:
        yield Span("fleet", _SAID["queue"], 0.0, facts.queue_wait, "queue")
    sent = list(_sent(record.source, record.created))
    yield from sent
    paused = [span for span in sent if span.kind == "downtime"]
    taken = paused[0].start + paused[0].seconds if paused else None
    yield from _received(record.destination, record.created, taken)


def _sent(side: SideRecord, created: float) -> Iterator[Span]:
    took = (side.progress or {}).get("seconds", {})
    if side.claimed is None:
        return
    row, at = f"source, {side.host}", side.claimed - created
    measured = sum(took.get(phase, 0.0) for phase in _SOURCE)
    if (idle := took.get("total", measured) - measured) > 0:
        yield Span(row, _SAID["start"], at, idle, "start")
        at += idle
    for phase in _SOURCE:
        if phase in took:
            yield Span(row, _SAID[phase], at, took[phase], phase)
            at += took[phase]


def _received(side: SideRecord, created: float, taken: float | None) -> Iterator[Span]:
    """Pairing from the claim on, all else so that it has taken over (`taken`) when the source's downtime ends."""
    took = (side.progress or {}).get("seconds", {})
    if side.claimed is None:
        return
    row, claimed = f"destination, {side.host}", side.claimed - created
    paired = claimed + took.get("pairing", 0.0)
    if "pairing" in took:
        yield Span(row, _SAID["pairing"], claimed, took["pairing"], "pairing")
    until_taken = took.get("rounds", 0.0) + took.get("handover", 0.0)
    at = paired if taken is None else max(paired, taken - until_taken)
    for phase in ("rounds", "handover", "deregistration"):
        if phase in took:
            yield Span(row, _SAID["received" if phase == "rounds" else phase], at, took[phase], phase)
            at += took[phase]


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
    given = record.parameters
    rows = [
        (row.name, row.kind.format(row.kind.read(given[row.name])))
        for row in PARAMETERS
        if row.name in given and given[row.name] != row.default
    ]
    return {
        "title": "Asked for",
        "rows": [
            ("by", record.job or "somebody, by itself"),
            ("at", _moment(record.created)),
            ("priority", str(record.priority)),
            ("capabilities", on),
            *(rows or [("parameters", "all at their defaults")]),
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
