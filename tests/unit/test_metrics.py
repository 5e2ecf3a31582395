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
    choices = {"transport": transport, "capabilities": {"rdma-pin-all": pin_all}}
    for number, registered in enumerate((32, 96)):
        exporter.saw(Side.SOURCE, f"a{number}", Status(choices=choices, bytes={"registered": registered}))
    assert value(exporter, "droveway_registered_bytes", side="source") == 128
    assert value(exporter, "droveway_pinned_bytes_max", side="source") == locked
    assert value(exporter, "droveway_pinned_bytes_max", side="destination") == 0


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
