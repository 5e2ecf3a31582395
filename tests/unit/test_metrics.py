"""What a worker counts: bounded labels, all of them there from the start, and only what is said."""

from __future__ import annotations

import urllib.request

import pytest

from config.errors import HostError
from workers.attempt import Status
from workers.metrics import names
from workers.metrics.exporter import Exporter
from workers.pairing.contract import Side


def value(exporter: Exporter, sample: str, **labels: str) -> float | None:
    return exporter.registry.get_sample_value(sample, labels)


def completed() -> Status:
    return Status(
        state="completed",
        outcome="completed",
        seconds={"bulk": 2.0, "downtime": 0.05, "total": 3.0, "coffee": 9.0},
        rounds=({"index": 0}, {"index": 1}),
        bytes={"transferred": 1 << 30},
    )


def test_every_label_set_is_there_before_the_first_migration() -> None:
    exporter = Exporter()
    for state in names.STATES:
        for reason in names.REASONS:
            assert value(exporter, "droveway_migrations_total", state=state, reason=reason) == 0
    assert value(exporter, "droveway_phase_seconds_count", side="source", phase="bulk") == 0


def test_a_completed_migration_is_counted_by_its_source() -> None:
    exporter = Exporter()
    exporter.ended(Side.SOURCE, completed())
    assert value(exporter, "droveway_migrations_total", state="completed", reason="none") == 1
    assert value(exporter, "droveway_downtime_seconds_sum") == 0.05
    assert value(exporter, "droveway_transferred_bytes_total") == 1 << 30
    assert value(exporter, "droveway_rounds_sum") == 2
    assert value(exporter, "droveway_phase_seconds_sum", side="source", phase="bulk") == 2.0


def test_the_destination_tells_only_of_its_own_spans() -> None:
    exporter = Exporter()
    exporter.ended(Side.DESTINATION, completed())
    assert value(exporter, "droveway_migrations_total", state="completed", reason="none") == 0
    assert value(exporter, "droveway_downtime_seconds_count") == 0
    assert value(exporter, "droveway_phase_seconds_count", side="destination", phase="total") == 1


@pytest.mark.parametrize(
    ("transport", "pin_all", "locked"), [("tcp", False, 0), ("tcp", True, 96), ("verbs", False, 96)]
)
def test_what_is_locked_is_told_of_the_mover_that_has_most(transport: str, pin_all: bool, locked: int) -> None:
    exporter = Exporter()
    policy = "pin-all" if pin_all else "dynamic"
    choices = {"transport": transport, "capabilities": {"rdma-pin-all": pin_all}, "policy": policy}
    for number, registered in enumerate((32, 96)):
        exporter.saw(Side.SOURCE, f"a{number}", Status(choices=choices, bytes={"registered": registered}))
    assert value(exporter, "droveway_registered_bytes", side="source", policy=policy) == 128
    assert value(exporter, "droveway_pinned_bytes", side="source", policy=policy) == (128 if locked else 0)
    assert value(exporter, "droveway_pinned_bytes_max", side="source", policy=policy) == locked
    for other in {*names.POLICIES, "other"} - {policy}:
        assert value(exporter, "droveway_pinned_bytes", side="source", policy=other) == 0
    assert value(exporter, "droveway_pinned_bytes_max", side="destination", policy=policy) == 0


def test_the_most_that_a_move_had_locked_is_told_by_its_policy_on_both_sides() -> None:
    exporter = Exporter()
    choices = {"transport": "verbs", "capabilities": {}, "policy": "windowed"}
    sizes = {"registered": 1 << 20, "registered_most": 64 << 20}
    exporter.ended(Side.SOURCE, Status(outcome="failed", reason="link-lost", choices=choices, bytes=sizes))
    assert value(exporter, "droveway_pinned_peak_bytes_sum", side="source", policy="windowed") == 64 << 20
    # A destination of the release before does not say by which policy; one that locked nothing is no figure.
    exporter.ended(Side.DESTINATION, Status(outcome="completed", choices={"transport": "verbs"}, bytes=sizes))
    exporter.ended(Side.DESTINATION, Status(outcome="completed", choices=choices | {"transport": "tcp"}, bytes=sizes))
    assert value(exporter, "droveway_pinned_peak_bytes_sum", side="destination", policy="other") == 64 << 20
    assert value(exporter, "droveway_pinned_peak_bytes_count", side="destination", policy="windowed") == 0


def test_no_label_is_one_of_prometheus_own() -> None:
    for metric in (*names.WORKER, *names.FLEET):
        assert {label for label, _ in metric.labels}.isdisjoint({"job", "instance"}), metric.name


def test_a_word_that_nobody_listed_makes_no_new_label() -> None:
    exporter = Exporter()
    before = exporter.page().count("\n")
    exporter.ended(Side.SOURCE, Status(outcome="failed", reason="guest-web-42-exploded", seconds={"guest-web": 1.0}))
    assert value(exporter, "droveway_migrations_total", state="failed", reason="other") == 1
    assert exporter.page().count("\n") == before
    assert value(exporter, "droveway_downtime_seconds_count") == 0


def test_every_metric_says_what_it_means_and_leaves_out_and_none_names_a_guest() -> None:
    page = Exporter().page()
    for metric in names.WORKER:
        assert metric.meaning in page
        assert metric.leaves_out in page
        assert not {name for name, _ in metric.labels} & {"guest", "migration"}


def test_the_page_is_served_and_a_taken_port_is_said() -> None:
    exporter = Exporter()
    with pytest.raises(HostError, match="metrics"):
        exporter.serve("203.0.113.1", 9641)
    stop = exporter.serve("127.0.0.1", 0)
    stop()


def test_what_is_served_is_what_was_counted() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    exporter = Exporter()
    exporter.duplicate(Side.SOURCE)
    stop = exporter.serve("127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    finally:
        stop()
    assert 'droveway_duplicate_deliveries_total{side="source"} 1.0' in page


def moved() -> Status:
    """A source that sent 100 MiB in two rounds, and its last one."""
    rounds = (
        {"kind": "bulk", "bytes": 120 << 20, "sent": 100 << 20, "seconds": 0.1, "dirty_rate": 500.0 * (1 << 20)},
        {"kind": "dirty", "bytes": 1 << 20, "sent": 1 << 20, "seconds": 0.1, "dirty_rate": 0.0},
        {"kind": "final", "bytes": 4096, "sent": 4096, "seconds": 0.01},
    )
    work = {"counts": [0] * len(names.WORK_REQUEST.buckets) + [2], "sum": 9.5}
    return Status(
        outcome="completed",
        seconds={"downtime": 0.04, "links": 0.5, "registration": 0.25},
        rounds=rounds,
        rates={"expected_downtime": 0.02},
        choices={"policy": "dynamic"},
        transport={"kind": "tcp", "work": work, "in_flight_peak": 5 << 20, "failed": {}, "resent": 7},
    )


def test_bytes_are_counted_by_kind_and_zeroes_as_skipped() -> None:
    exporter = Exporter()
    exporter.ended(Side.SOURCE, moved())
    sent = {kind: value(exporter, "droveway_sent_bytes_total", kind=kind) for kind in names.SENT}
    assert sent == {"bulk": 100 << 20, "dirty": 1 << 20, "final": 4096, "delta": 0, "zero-skipped": 20 << 20}


def test_what_a_qemu_says_of_its_own_move_is_counted_and_what_it_does_not_say_is_not() -> None:
    """No dirty rate yet, so no downtime to expect; passes that nobody saw; nothing of our transport."""
    exporter = Exporter()
    rounds = (
        {"index": 0, "kind": "bulk", "bytes": 128 << 20, "sent": 40 << 20, "zero": 80 << 20, "seconds": 0.5},
        {"index": 4, "kind": "final", "bytes": 0, "sent": 3 << 20, "zero": 0, "delta": 1 << 20, "seconds": 0.1},
    )
    said = {"kind": "tcp", "work": {}, "in_flight_peak": 0, "failed": {}, "resent": 0}
    seconds = {"downtime": 0.04, "setup": 0.01}
    exporter.ended(Side.SOURCE, Status(outcome="completed", rounds=rounds, seconds=seconds, transport=said))
    sent = {kind: value(exporter, "droveway_sent_bytes_total", kind=kind) for kind in names.SENT}
    assert sent == {"bulk": 40 << 20, "dirty": 0, "final": 2 << 20, "delta": 1 << 20, "zero-skipped": 80 << 20}
    assert value(exporter, "droveway_rounds_sum") == 5
    assert value(exporter, "droveway_phase_seconds_sum", side="source", phase="setup") == 0.01
    assert value(exporter, "droveway_throughput_bytes_per_second_sum") == pytest.approx(80 << 20)
    absent = ("dirty_rate_bytes_per_second", "convergence_ratio", "expected_downtime_seconds")
    for name in (*absent, "downtime_to_expected_ratio"):
        assert value(exporter, f"droveway_{name}_count") == 0, name
    assert value(exporter, "droveway_in_flight_bytes_count", transport="tcp") == 0


def test_rates_are_of_rounds_that_tell() -> None:
    exporter = Exporter()
    exporter.ended(Side.SOURCE, moved())
    assert value(exporter, "droveway_throughput_bytes_per_second_count") == 1, "1 MiB tells of latency"
    assert value(exporter, "droveway_throughput_bytes_per_second_sum") == pytest.approx(1000 * (1 << 20))
    assert value(exporter, "droveway_dirty_rate_bytes_per_second_count") == 2
    assert value(exporter, "droveway_convergence_ratio_count") == 1
    assert value(exporter, "droveway_convergence_ratio_sum") == pytest.approx(0.5)


def test_waits_downtime_and_what_the_transport_saw() -> None:
    exporter = Exporter()
    exporter.ended(Side.SOURCE, moved())
    assert value(exporter, "droveway_links_wait_seconds_sum") == 0.5
    assert value(exporter, "droveway_registration_wait_seconds_sum", policy="dynamic") == 0.25
    assert value(exporter, "droveway_expected_downtime_seconds_sum") == 0.02
    assert value(exporter, "droveway_downtime_to_expected_ratio_sum") == pytest.approx(2)
    assert value(exporter, "droveway_work_request_seconds_count", transport="tcp") == 2
    assert value(exporter, "droveway_work_request_seconds_sum", transport="tcp") == 9.5
    assert value(exporter, "droveway_in_flight_bytes_sum", transport="tcp") == 5 << 20
    assert value(exporter, "droveway_retries_total", transport="tcp") == 7


def test_failed_completions_are_counted_by_status_also_of_a_move_that_failed() -> None:
    exporter = Exporter()
    said = {"kind": "verbs", "failed": {"retry-exc-err": 1, "of-another-release": 2}, "in_flight_peak": 0}
    exporter.ended(Side.SOURCE, Status(outcome="failed", reason="link-lost", transport=said))
    assert value(exporter, "droveway_failed_completions_total", status="retry-exc-err") == 1
    assert value(exporter, "droveway_failed_completions_total", status="unknown") == 2
    assert value(exporter, "droveway_work_request_seconds_count", transport="verbs") == 0, "it carried nothing"


def test_the_guests_own_gap_is_told_by_its_destination() -> None:
    exporter = Exporter()
    exporter.ended(Side.DESTINATION, Status(outcome="completed", seconds={"guest_gap": 0.03}))
    exporter.ended(Side.DESTINATION, Status(outcome="completed"))
    assert value(exporter, "droveway_guest_gap_seconds_count") == 1
    assert value(exporter, "droveway_guest_gap_seconds_sum") == 0.03


def test_what_is_registered_is_of_movers_that_are_there_and_never_stale() -> None:
    exporter = Exporter()
    exporter.began(Side.SOURCE, "m-1")
    exporter.began(Side.SOURCE, "m-2")
    exporter.saw(Side.SOURCE, "m-1", Status(bytes={"registered": 5}, choices={"policy": "dynamic"}))
    exporter.saw(Side.SOURCE, "m-2", Status(bytes={"registered": 7}, choices={"policy": "dynamic"}))
    assert value(exporter, "droveway_registered_bytes", side="source", policy="dynamic") == 12
    assert value(exporter, "droveway_migrations_in_flight", side="source") == 2
    exporter.left(Side.SOURCE, "m-1")
    exporter.left(Side.SOURCE, "m-1")
    assert value(exporter, "droveway_registered_bytes", side="source", policy="dynamic") == 7
    exporter.left(Side.SOURCE, "m-2")
    assert value(exporter, "droveway_registered_bytes", side="source", policy="dynamic") == 0
    assert value(exporter, "droveway_migrations_in_flight", side="source") == 0
    assert value(exporter, "droveway_registered_bytes", side="destination", policy="dynamic") == 0


def test_a_worker_says_what_it_is_and_what_it_may_lock() -> None:
    page = Exporter().page()
    assert 'droveway_build_info{protocol="' in page
    assert "droveway_pinned_limit_bytes" in page
