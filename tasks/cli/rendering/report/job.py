"""What a page says of one job: who moved when, who waits, who stays and why. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.cli.quantities import seconds
from tasks.cli.rendering.attempts import AttemptFacts
from tasks.cli.rendering.report.strips import Span, strips
from tasks.jobs import JobRecord, Kind
from tasks.planning.job import Fate


def page_of(job: JobRecord, attempts: Mapping[str, Sequence[AttemptFacts]]) -> dict[str, Any]:
    """For page.html.j2."""
    return {
        "title": f"{str(job.kind).capitalize()} {', '.join(sorted(job.asked.hosts))}".strip(),
        "id": job.job,
        "state": str(job.state),
        "outcome": ": ".join(filter(None, (job.message, job.reason))),
        "figures": list(_figures(job, attempts)),
        "timelines": [
            {
                "title": "Who moved when",
                "note": "Each attempt from the moment when it was asked for: it waits for admission, then it moves.",
                "strips": strips(_gantt(job, attempts)),
            }
        ],
        "rounds": None,
        "decisions": list(_decisions(job)),
        "tables": [_guests(job)],
    }


def _figures(job: JobRecord, attempts: Mapping[str, Sequence[AttemptFacts]]) -> Iterator[tuple[str, str, str]]:
    moved = job.count(Fate.MOVED, Fate.GONE)
    made = [each for all_of_it in attempts.values() for each in all_of_it]
    downtimes = [each.downtime for each in made if each.downtime is not None]
    yield "Guests", f"{moved} of {len(job.guests)}", "where they were to be"
    yield "Took", seconds(None if job.finished is None else job.finished - job.created), ""
    yield "Attempts", str(len(made)), ""
    yield "Longest downtime", seconds(max(downtimes, default=None)), ""
    if job.order.imbalance is not None:
        before, after = job.order.imbalance
        yield "Imbalance", f"{before:.3f} → {after:.3f}", "as planned"
    if job.asked.deadline is not None:
        yield "Deadline", seconds(job.asked.deadline - job.created), "after it began"


def _gantt(job: JobRecord, attempts: Mapping[str, Sequence[AttemptFacts]]) -> Iterator[Span]:
    for guest, all_of_it in attempts.items():
        for each in all_of_it:
            if each.facts is None:
                continue
            record = each.facts.record
            at = record.created - job.created
            if each.waited:
                yield Span(guest, "waits", at, each.waited, "queue")
            if each.took is not None:
                what = f"{record.source.host} → {record.destination.host}, {record.state}"
                yield Span(guest, what, at + (each.waited or 0.0), each.took, record.state)


def _decisions(job: JobRecord) -> Iterator[tuple[str, str, str]]:
    limits = f"at most {job.asked.most_at_once} at once" if job.asked.most_at_once else "as many as slots allow"
    yield "Moves at once", limits, f"{job.asked.attempts} attempts a guest"
    if job.order.policy:
        yield "Begun by", f"the policy {job.order.policy}", ""
    if job.kind is Kind.EVACUATION:
        yield "Its hosts", "are cordoned", "droveway restore opens them again"
    for name, each in sorted(job.guests.items()):
        if each.fate in (Fate.REFUSED, Fate.FAILED, Fate.WAITING):
            yield name, str(each.fate), each.reason


def _guests(job: JobRecord) -> dict[str, Any]:
    rows = [
        (name, " ".join(filter(None, (str(each.fate), f"({each.reason})" if each.reason else ""))))
        for name, each in sorted(job.guests.items())
    ]
    return {"title": "Guests", "rows": rows or [("none", "there was no guest")]}
