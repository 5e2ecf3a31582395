"""What a report says of a record, and that nothing in it can become markup."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tasks.cli.rendering.attempts import attempts_of
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.report import job as of_job
from tasks.cli.rendering.report import migration as of_migration
from tasks.cli.rendering.report.page import html
from tasks.cli.rendering.report.strips import Span, part, strips
from tasks.cli.rendering.tables import full
from tasks.jobs import JobRecord, Kind, Order
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import Fate, Standing, State
from tasks.records import MigrationRecord, SideRecord

MIB = 1 << 20
EVIL = '<script>alert("x")</script><img src=x onerror=y>&amp;'
ROUNDS = [
    {"index": 0, "kind": "bulk", "bytes": 100 * MIB, "sent": 80 * MIB, "seconds": 2.0, "dirty": 10 * MIB,
     "verdict": "continue", "reason": "too much is left"},
    {"index": 1, "kind": "final", "bytes": 10 * MIB, "sent": 10 * MIB, "seconds": 0.5},
]  # fmt: skip


def record(**changes: object) -> MigrationRecord:
    seconds = {"pairing": 1.0, "bulk": 2.0, "downtime": 0.5, "total": 4.0}
    sizes = {"total": 128 * MIB, "populated": 100 * MIB, "registered": 0}
    chosen = {"engine": "droveway", "transport": "tcp", "channels": 4, "chunk-size": MIB, "notes": []}
    progress = {"seconds": seconds, "rounds": ROUNDS, "bytes": sizes, "choices": chosen, "phase": "ended", "rates": {}}
    source = SideRecord("alpha", 1001.0, None, "completed", progress)
    destination = SideRecord("beta", 1001.5, None, "completed", {"seconds": {"rounds": 2.5, "total": 3.0}})
    plain = MigrationRecord(
        "m-1", "web", "completed", 128 * MIB, {"zero-pages": True}, {"downtime-limit": 300, "channels": 8}, source,
        destination, 1000.0, 1, 1000.2, finished=1005.0, granted=1000.2, rate=1_250_000_000,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def page(one: MigrationRecord) -> str:
    return html(of_migration.page_of(Facts.of(one)))


def words(text: str) -> str:
    class Words(HTMLParser):
        said: list[str]

        def handle_data(self, data: str) -> None:
            self.said.append(data)

    parser = Words()
    parser.said = []
    parser.feed(text)
    return " ".join(" ".join(parser.said).split())


def test_the_figures_are_the_records() -> None:
    said = words(page(record()))
    for figure in ("web: alpha → beta", "Downtime 500 ms of 300 ms allowed", "Sent 90.0 MiB of 128 MiB", "Rounds 2"):
        assert figure in said
    assert "sent, bulk 80.0 MiB" in said
    assert "never touched: neither registered nor sent 28.0 MiB" in said
    assert "zero pages skipped 20.0 MiB" in said
    assert "channels 8" in said
    assert "40.0 MiB/s" in said
    assert "5.00 MiB/s 0.12 continue" in said
    assert "After round 0 continue too much is left" in said


def test_phases_lie_one_after_the_other_from_the_moment_of_the_request() -> None:
    (line,) = of_migration.page_of(Facts.of(record()))["timelines"]
    spans = {(each.span.row, each.span.kind): each.span for each in line["strips"]}
    source = [spans["source, alpha", kind] for kind in ("start", "pairing", "bulk", "downtime")]
    assert [(each.start, each.seconds) for each in source] == [(1.0, 0.5), (1.5, 1.0), (2.5, 2.0), (4.5, 0.5)]
    received = spans["destination, beta", "rounds"]
    assert received.start + received.seconds == 5.0, "it has taken over when the downtime ends"
    assert all(bar.left + bar.width <= 100.5 for each in line["strips"] for bar in each.bars)


def timed() -> MigrationRecord:
    """Claimed 1 s after the request (the destination 1.5 s), its movers ready 0.5 s later; they greet at 2.5 s."""
    one = record()
    source = {**(one.source.progress or {})}
    source["seconds"] = {"start": 0.5, "pairing": 1.0, "bulk": 2.0, "rounds": 0.3, "downtime": 0.5, "total": 5.0}
    source["began"] = {"start": -0.5, "pairing": 0.0, "bulk": 1.25, "rounds": 4.0, "downtime": 4.5}
    source["moments"] = {"greeted": 1.0, "given": 4.8}
    second = {"index": 1, "kind": "dirty", "bytes": MIB, "sent": MIB, "dirty": MIB}
    source["rounds"] = [
        {**ROUNDS[0], "began": 1.25},
        {**second, "began": 3.5, "seconds": 0.2},
        {**second, "index": 2, "began": 4.0, "seconds": 0.1},
        {**ROUNDS[1], "index": 3, "began": 4.6, "seconds": 0.125},
    ]
    destination = {
        "seconds": {"start": 0.5, "pairing": 0.25, "rounds": 3.5, "handover": 0.25},
        "began": {"start": -0.5, "pairing": 0.0, "rounds": 0.6, "handover": 4.1},
        "moments": {"greeted": 0.5, "ready": 4.25, "taken": 4.3},
    }
    sides = replace(one.source, progress=source), replace(one.destination, progress=destination)
    return replace(one, source=sides[0], destination=sides[1])


def drawn(one: MigrationRecord) -> dict[tuple[str, str], tuple[float, list[tuple[float, float]]]]:
    """Of each row: after how many seconds it says that it began, and its bars, in seconds."""
    (line,) = of_migration.page_of(Facts.of(one))["timelines"]
    whole = max(start + took for strip in line["strips"] for start, took in strip.span.bars)
    return {
        (strip.span.row.partition(",")[0], strip.span.what): (
            round(strip.span.start, 6),
            [(round(bar.left * whole / 100, 3), round(bar.width * whole / 100, 3)) for bar in strip.bars],
        )
        for strip in line["strips"]
    }


def test_bars_lie_where_the_phases_were_and_dirty_rounds_in_one_row() -> None:
    seen = drawn(timed())
    assert seen["source", "its mover starts"] == (1.0, [(1.0, 0.5)])
    assert seen["source", "paired, the twin started"] == (1.5, [(1.5, 1.0)])
    assert seen["source", "bulk round"] == (2.75, [(2.75, 2.0)])
    assert seen["source", "dirty rounds"] == (5.0, [(5.0, 0.2), (5.5, 0.1)])
    assert seen["source", "downtime: the guest is paused"] == (6.0, [(6.0, 0.5)])
    assert seen["source", "the last round"] == (6.1, [(6.1, 0.125)])
    assert seen["destination", "receives all rounds"] == (2.6, [(2.6, 3.5)])
    assert seen["destination", "loads, verifies, takes over"] == (6.1, [(6.1, 0.25)])
    order = [seen[where][0] for where in (
        ("destination", "READY: it has it all"), ("source", "GIVEN: the guest is the other's"),
        ("destination", "TAKEN: it may run here"),
    )]  # fmt: skip
    assert order == [6.25, 6.3, 6.3]
    said = words(page(timed()))
    assert "half a round trip" in said
    assert "older release" not in said
    assert "source, alpha GIVEN: the guest is the other's 6.300 s -" in said


@pytest.mark.parametrize("older", ["source", "destination"])
def test_a_side_of_the_release_before_is_drawn_as_before_and_the_page_says_so(older: str) -> None:
    new, old = timed(), record()
    seen = drawn(replace(new, **{older: getattr(old, older)}))
    said = words(page(replace(new, **{older: getattr(old, older)})))
    assert f"Of {'alpha' if older == 'source' else 'beta'}, whose mover was of an older release" in said
    if older == "source":
        assert seen["source", "bulk round"] == drawn(old)["source", "bulk round"] == (2.5, [(2.5, 2.0)])
        assert seen["destination", "hears what the source offers"] == (2.0, [(2.0, 0.25)]), "by its claim"
    else:
        assert seen["source", "bulk round"] == (2.75, [(2.75, 2.0)])
        assert seen["destination", "receives all rounds"] == (4.0, [(4.0, 2.5)]), "both end the downtime together"


@pytest.mark.parametrize("where", ["guest", "message", "host", "note", "verdict"])
def test_nothing_that_others_wrote_becomes_markup(where: str) -> None:
    one = record()
    progress = json.loads(json.dumps(one.source.progress))
    if where == "note":
        progress["choices"]["notes"] = [{"about": EVIL, "reason": EVIL}]
    if where == "verdict":
        progress["rounds"][0] |= {"verdict": EVIL, "reason": EVIL}
    one = replace(one, source=replace(one.source, progress=progress, host=EVIL if where == "host" else "alpha"))
    one = replace(one, **{where: EVIL}) if where in ("guest", "message") else one
    text = page(one)
    assert "<script" not in text
    assert "<img" not in text
    assert EVIL in words(text)


def test_a_page_loads_and_runs_nothing() -> None:
    text = page(record())
    assert "default-src 'none'" in text
    for forbidden in ("<script", "http://", "https://", "src=", "@import", "url("):
        assert forbidden not in text


@pytest.mark.parametrize("state", ["queued", "failed", "cancelled"])
def test_what_has_not_begun_or_failed_has_a_page_as_well(state: str) -> None:
    nobody = SideRecord("alpha", None, None, None, None)
    one = record(
        state=state, source=nobody, destination=replace(nobody, host="beta"), admitted=None, finished=None,
        waiting="every source slot of alpha is taken" if state == "queued" else None,
        message="the peer is gone" if state != "queued" else None,
    )  # fmt: skip
    said = words(page(one))
    assert "Nothing was measured yet." in said
    assert ("every source slot of alpha is taken" if state == "queued" else "the peer is gone") in said


def test_a_job_says_who_moved_when_who_stays_and_why() -> None:
    guests = {
        "web": Standing(Fate.MOVED, "it is on beta", "beta", 1),
        "db": Standing(Fate.REFUSED, f"labels: {EVIL}", "alpha"),
    }
    order = Order(Kind.EVACUATION, Evacuation("e-1", frozenset({"alpha"}), frozenset(guests)), "new firmware")
    job = JobRecord(order, State.PARTIAL, "1 of 2 guests stay", 999.0, 1006.0, guests, {"m-1": "web"})
    content = of_job.page_of(job, attempts_of(job, [record()]))
    text = html(content)
    said = words(text)
    assert "1 of 2 where they were to be" in said
    assert "alpha → beta, completed" in said
    assert f"db refused labels: {EVIL}" in said
    assert "<script" not in text
    waits, moves = (each.span for each in content["timelines"][0]["strips"])
    assert (waits.start, round(waits.seconds, 3), round(moves.start, 3)) == (1.0, 0.2, 1.2)


def test_bars_share_one_scale_and_the_thinnest_is_seen() -> None:
    long, short = strips([Span("a", "", 0, 10, "bulk"), Span("a", "", 10, 0, "downtime")])
    (apart,) = strips([Span("a", "", 1, 3, "rounds", ((1, 1), (2, 2)))])
    assert [(each.left, each.width) for each in apart.bars] == [(25, 25), (50, 50)]
    before, _ = strips([Span("a", "", -1, 1, "start"), Span("a", "", 0, 10, "bulk")])
    assert before.bars[0].left == 0
    assert [(each.left, each.width) for each in (*long.bars, *short.bars)] == [(0, 100), (99.6, 0.4)]
    assert strips([]) == ()
    assert (part(5, 10), part(None, 10), part(5, 0)) == (50, 0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3600.0])
@pytest.mark.parametrize(
    "where", [("seconds", "bulk"), ("began", "bulk"), ("seconds", "downtime"), ("moments", "greeted")]
)
def test_a_time_that_cannot_be_is_no_reason_for_no_page(where: tuple[str, str], value: float) -> None:
    one = timed()
    for name, side in (("source", one.source), ("destination", one.destination)):
        said = json.loads(json.dumps(side.progress))
        said[where[0]][where[1]] = value
        text = page(replace(one, **{name: replace(side, progress=said)}))  # type: ignore[arg-type]
        assert not re.search(r"\b(nan|inf)\b", text)


def test_values_that_a_newer_release_allows_are_shown_as_they_stand() -> None:
    one = record(parameters={"transport": "quic", "channels": 8, "hedge": 3})
    assert "transport quic" in words(page(one))
    shown = Console(width=200, file=io.StringIO(), record=True)
    shown.print(full(Facts.of(one)))
    assert "channels=8, transport=quic" in shown.export_text()


def test_the_template_is_the_only_file_of_its_kind() -> None:
    folder = Path(of_job.__file__).parent
    assert [each.name for each in folder.glob("*.j2")] == ["page.html.j2"]
