"""What is shown of a move: no number is invented, none is of another round, and what was asked is never lost."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console, RenderableType

from config.errors import UnreachableError, UnresolvedError
from tasks.cli.following import RoundRate, bounded, ending, unresolved
from tasks.cli.quantities import bit_rate, byte_rate, instant, seconds, size
from tasks.cli.rendering.comparison import DemoMove, comparison
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.lines import changes
from tasks.cli.rendering.live import live
from tasks.cli.rendering.reconciled import Settled, reconciled
from tasks.cli.rendering.tables import capabilities, full, hosts, migrations, summary
from tasks.reconcile import Action, Finding
from tasks.records import Fleet, HostRecord, Kept, MigrationRecord, Pin, SideRecord
from workers.attempt import Status
from workers.pairing.contract import Side

GIB = 1 << 30
BULK = {
    "index": 0,
    "kind": "bulk",
    "bytes": GIB,
    "sent": GIB,
    "seconds": 2.0,
    "dirty": 100 << 20,
    "verdict": "continue",
    "reason": "104857600 bytes are left",
}
FINAL = {"index": 1, "kind": "final", "bytes": 100 << 20, "sent": 50 << 20, "seconds": 0.1}
CHOICES = {
    "transport": "tcp",
    "channels": 4,
    "chunk-size": 1 << 20,
    "policy": "dynamic",
    "tracker": "pagemap-scan",
    "tracker-reason": "the best that passed",
    "notes": [{"about": "xbzrle", "reason": "off: beta cannot do it, pages are sent whole"}],
}


def status(**fields: Any) -> dict[str, Any]:
    plain = {"state": "active", "phase": "bulk", "outcome": None, "reason": None, "message": None}
    return plain | {"seconds": {}, "rounds": [], "bytes": {}, "rates": {}, "choices": {}} | fields


def record(
    source: dict[str, Any] | None = None, destination: dict[str, Any] | None = None, **fields: Any
) -> MigrationRecord:
    made = MigrationRecord(
        migration="m-1",
        guest="web",
        state="active",
        memory=GIB,
        capabilities={"rdma-pin-all": False, "verify-ram": True},
        parameters={"downtime-limit": 100, "channels": 4},
        source=SideRecord("alpha", 10.0, 40.0, None, source),
        destination=SideRecord("beta", 10.0, 40.0, None, destination),
        created=1_700_000_000.0,
        epoch=3,
        admitted=1_700_000_002.5,
    )
    return dataclasses.replace(made, **fields)


def drawn(what: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def done() -> MigrationRecord:
    spans = {
        "pairing": 0.2,
        "survey": 0.01,
        "registration": 0.3,
        "bulk": 2.0,
        "rounds": 0.0,
        "downtime": 0.115,
        "total": 2.5,
    }
    said = status(
        state="completed", phase="ended", outcome="completed", rounds=[BULK, FINAL], seconds=spans, choices=CHOICES
    )
    return record(said, status(outcome="completed"), state="completed", finished=1_700_000_010.0)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(1 << 20), "1.00 MiB"),
        (size(819.2 * (1 << 20)), "819 MiB"),
        (size(None), "-"),
        (byte_rate(200 << 20), "200 MiB/s"),
        (bit_rate(1.25e9), "10.0 Gb/s"),
        (bit_rate(1.25e6), "10.0 Mb/s"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(0.9999), "1000 ms"),
        (seconds(59.94), "59.9 s"),
        (seconds(3725), "1 h 02 min"),
        (seconds(125), "2 min 05 s"),
        (instant(20.7121), "20.712 s"),
        (instant(-0.0004), "-0.000 s"),
        (instant(179.9999), "3 min 00.000 s"),
        (instant(3725.5), "62 min 05.500 s"),
        (instant(None), "-"),
    ],
)
def test_quantities_keep_the_digits_that_matter_and_their_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_round_under_way_counts_what_is_its_own() -> None:
    facts = Facts.of(record(status(bytes={"populated": GIB, "round_done": GIB // 4, "round_total": GIB})))
    assert facts.current is not None
    assert (facts.current.kind, facts.current.done, facts.current.total) == ("bulk", GIB // 4, GIB)


def test_a_round_that_just_began_does_not_inherit_the_bytes_of_the_one_before() -> None:
    sizes = {"populated": GIB, "round_done": GIB, "round_total": GIB, "remaining": 100 << 20}
    facts = Facts.of(record(status(phase="rounds", rounds=[BULK], bytes=sizes)))
    assert facts.current is not None
    assert (facts.current.kind, facts.current.done, facts.current.total) == ("dirty", 0, 100 << 20)


def test_the_final_round_is_as_large_as_what_was_found_once_the_guest_was_paused() -> None:
    sizes = {"round_done": 60 << 20, "round_total": 80 << 20, "remaining": 70 << 20}
    facts = Facts.of(record(status(phase="downtime", rounds=[BULK], bytes=sizes)))
    assert facts.current is not None
    assert (facts.current.kind, facts.current.done, facts.current.total) == ("final", 60 << 20, 80 << 20)


def test_between_two_rounds_none_is_shown_as_under_way() -> None:
    assert Facts.of(record(status(phase="bulk", rounds=[BULK], bytes={"populated": GIB}))).current is None
    assert Facts.of(record(status(phase="pairing"))).current is None
    assert Facts.of(done()).current is None


def test_the_mean_rate_is_that_of_what_went_over_the_wire() -> None:
    facts = Facts.of(done())
    assert facts.transferred == GIB + (50 << 20)
    assert facts.rate == pytest.approx((GIB + (50 << 20)) / 2.1)


def test_each_round_and_each_state_gets_one_line() -> None:
    queued = Facts.of(record(state="queued", admitted=None, waiting="beta has no slot left"))
    active = Facts.of(record(status()))
    bulk = Facts.of(record(status(phase="rounds", rounds=[BULK])))
    end = Facts.of(done())
    said = [
        list(changes(before, now)) for before, now in [(None, queued), (queued, active), (active, bulk), (bulk, end)]
    ]
    assert said[0] == ["web alpha→beta: queued: beta has no slot left"]
    assert said[1] == ["web alpha→beta: active"]
    assert len(said[2]) == 1
    assert "round 0 (bulk): 1.00 GiB in 2.00 s" in said[2][0]
    assert "continue: 104857600 bytes are left" in said[2][0]
    assert [line.split(": ")[1].split(" ")[0] for line in said[3]] == ["round", "completed"]
    assert list(changes(end, end)) == []


def test_a_failure_is_told_with_its_message() -> None:
    facts = Facts.of(record(status(), state="failed", reason="stalled", message="web does not converge"))
    assert list(changes(None, facts))[-1] == "web alpha→beta: failed: web does not converge"


def test_the_live_view_shows_every_round_what_is_left_and_what_pausing_would_cost() -> None:
    sizes = {"round_done": 50 << 20, "round_total": 100 << 20, "remaining": 100 << 20}
    rates = {"dirty": 200 << 20, "expected_downtime": 0.25}
    shown = drawn(live(Facts.of(record(status(phase="rounds", rounds=[BULK], bytes=sizes, rates=rates))), 25 << 20))
    assert "0 bulk" in shown
    assert "1 dirty" in shown
    assert "50.0 MiB of 100 MiB" in shown
    assert "2.00 s left" in shown
    assert "guest writes 200 MiB/s, expected downtime 250 ms" in shown


def test_the_live_view_of_a_queued_move_says_what_it_waits_for() -> None:
    assert "beta has no slot left" in drawn(
        live(Facts.of(record(state="queued", waiting="beta has no slot left")), None)
    )


def test_the_summary_has_all_spans_choices_and_fall_backs() -> None:
    shown = drawn(summary(Facts.of(done())))
    for expected in (
        "2.50 s",
        "115 ms",
        "downtime",
        "pagemap-scan: the best that passed",
        "tcp, 4 channels",
        "xbzrle: off",
    ):
        assert expected in shown


def test_everything_about_a_move_includes_verdicts_and_both_sides() -> None:
    shown = drawn(full(Facts.of(done())), 200)
    for expected in ("continue: 104857600 bytes are left", "m-1, epoch 3", "downtime-limit=100ms", "source", "beta"):
        assert expected in shown
    assert "channels=4" not in shown  # that is the default


def test_a_record_without_any_progress_can_be_shown() -> None:
    bare = Facts.of(record(state="queued", epoch=None, admitted=None))
    for what in (live(bare, None), summary(bare), full(bare), migrations([bare])):
        assert drawn(what)


def test_words_from_elsewhere_are_not_taken_for_markup() -> None:
    facts = Facts.of(record(state="failed", message="[bold]no[/nosuch] memory"))
    for what in (live(facts, None), summary(facts), full(facts), migrations([facts])):
        assert "[bold]no" in drawn(what, 250)


def test_hosts_without_a_live_worker_stand_out() -> None:
    host = HostRecord("alpha", "10.0.0.1", "0.1.0", 8 * GIB, GIB, 0, None, frozenset(), ("tcp",), ("content",),
                      dict.fromkeys(Side, 1), dict.fromkeys(Side, 0),
                      dict.fromkeys(Side, 0), frozenset())  # fmt: skip
    shown = drawn(hosts(Fleet({"alpha": host})))
    assert "none alive" in shown
    assert "7.00 GiB" in shown
    assert "leave and come" in shown
    for kept, words in ((Kept.CORDON, "cordoned: a new board"), (Kept.HOST, "pinned: a new board")):
        pin = Pin(kept, "alpha", "a new board", 1.0)
        assert words in drawn(hosts(Fleet({"alpha": host}, {}, {(kept, "alpha"): pin})), 200)


def test_every_name_of_a_capability_can_be_copied_from_the_table() -> None:
    shown = drawn(capabilities(), 80)
    assert "completion-timeout-per-gib" in shown
    assert "rdma-pin-all" in shown


def test_the_rate_of_a_round_starts_anew_with_each_round() -> None:
    now = [0.0]
    rate = RoundRate(lambda: now[0])
    sizes = {"populated": GIB, "round_total": GIB}
    for at, moved in ((0.0, 0), (1.0, 100), (2.0, 200)):
        now[0] = at
        rate.see(Facts.of(record(status(bytes=sizes | {"round_done": moved}))))
    assert rate.rate == 100
    rate.see(
        Facts.of(
            record(status(phase="rounds", rounds=[BULK], bytes={"remaining": 5, "round_total": 5, "round_done": 1}))
        )
    )
    assert rate.rate is None


def test_what_a_move_ends_with_is_the_exit_code_of_who_waited() -> None:
    assert ending(done()) is None
    failed = ending(record(state="failed", reason="stalled", message="web does not converge"))
    assert failed is not None
    assert (failed.exit_code, failed.reason, str(failed)) == (6, "stalled", "web does not converge")
    assert failed.document["state"] == "failed"
    cancelled = ending(record(state="cancelled"))
    assert cancelled is not None
    assert cancelled.exit_code == 7


def test_a_cut_off_handover_is_unresolved_until_its_record_ends() -> None:
    cut = status(outcome="unresolved", message="nobody confirmed")
    assert unresolved(record(cut)) == "nobody confirmed"
    assert unresolved(record(status(), cut)) == "nobody confirmed"
    assert unresolved(record(cut, state="completed")) is None
    assert unresolved(record(status())) is None


def test_reconcile_says_of_every_guest_what_was_found_done_and_why() -> None:
    settled = Settled(
        "m-1", "web", Side.SOURCE, "beta", Status(outcome="failed", message="it goes on here"), "Redis is away"
    )
    finding = Finding(
        "m-2", "db", Action.ASK, "the worker on beta no longer renews its lease", Side.DESTINATION, "beta"
    )
    shown = drawn(reconciled([settled], [finding]))
    for expected in (
        "it goes on here; not recorded yet: Redis is away",
        "asked the host",
        "no longer renews its lease",
    ):
        assert expected in shown
    assert "nothing was cut off" in drawn(reconciled([], []))


def test_the_demo_prints_exactly_the_promised_shape() -> None:
    said = DemoMove(Facts.of(done()), 1000, 0, 0.2).to_json()
    assert set(said) == {"capabilities", "state", "seconds", "transferred_bytes", "rounds", "guest"}
    assert set(said["seconds"]) == {"total", "registration", "bulk", "rounds", "downtime"}
    assert said["guest"] == {"pages_checked": 1000, "corrupt": 0, "longest_gap_seconds": 0.2}
    assert said["state"] == "completed"
    assert [each["kind"] for each in said["rounds"]] == ["bulk", "final"]


def test_corruption_cannot_be_overlooked_in_the_comparison() -> None:
    shown = drawn(comparison([DemoMove(Facts.of(done()), 1000, 0, 0.2), DemoMove(Facts.of(done()), 1000, 7, 0.2)]))
    assert "7 CORRUPT" in shown
    assert "alpha→beta" in shown


def looked_at(*records: MigrationRecord, every: float) -> list[MigrationRecord]:
    """What a follower sees who looks once in so many seconds."""
    now = [0.0]

    def passing() -> Iterator[MigrationRecord]:
        for each in records:
            yield each
            now[0] += every

    return list(bounded(passing(), lambda: now[0]))


def test_a_move_of_which_nobody_speaks_any_more_is_not_followed_for_ever() -> None:
    with pytest.raises(UnreachableError, match="alpha and beta"):
        looked_at(*[record()] * 30, every=5)


def test_a_move_whose_worker_renews_its_lease_is_followed_however_long_a_round_takes() -> None:
    leased = [record(source={"at": beat}) for beat in range(30)]
    assert looked_at(*leased, every=60) == leased


def test_a_move_that_waits_for_a_slot_may_wait() -> None:
    queued = [record(state="queued", epoch=None, admitted=None)] * 30
    assert looked_at(*queued, every=60) == queued


def test_a_handover_that_stays_unresolved_is_said_to_be_so() -> None:
    cut_off = [record(source={"outcome": "unresolved", "at": beat}) for beat in range(30)]
    with pytest.raises(UnresolvedError, match="droveway reconcile"):
        looked_at(*cut_off, every=10)
