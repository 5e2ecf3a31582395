"""metrics.md is what the code says, and what the pages answer."""

from __future__ import annotations

import json
import logging
import re
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from config.errors import UnreachableError
from config.settings import WorkerSettings
from workers import logs
from workers.metrics import names, page
from workers.metrics.document import markdown, shown_name
from workers.metrics.page import Pulse, Recent, serve, well
from workers.metrics.tally import Tally
from workers.transports.figures import Figures
from workers.transports.verbs.completions import Status, status_name

ALL = (*names.WORKER, *names.FLEET)


def test_metrics_md_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "metrics.md"
    assert page.read_text() == markdown(), "write it anew: make metrics.md"


def test_names_are_in_base_units_and_unique() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert re.fullmatch(r"droveway(_[a-z0-9]+)+", metric.name), metric.name
        assert not re.search(r"_(ms|us|milliseconds|kib|mib|percent|total)(_|$)", metric.name), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert not metric.leaves_out.endswith("."), metric.name
        assert (metric.kind is names.Kind.HISTOGRAM) == bool(metric.buckets), metric.name
        assert not {"guest", "migration", "id"} & {name for name, _ in metric.labels}, metric.name
        assert list(metric.buckets) == sorted(metric.buckets)
    assert all("|" not in metric.help for metric in ALL), "it would end a table's cell"
    assert shown_name(names.MIGRATIONS) == "droveway_migrations_total"


def test_only_hosts_evacuations_releases_and_policies_are_open_labels() -> None:
    open_ones = {name for metric in ALL for name, values in metric.labels if not values}
    assert open_ones == {"host", "evacuation", "version", "protocol", "policy"}


def test_each_way_in_which_a_completion_fails_has_a_label() -> None:
    assert set(names.COMPLETIONS) == {status_name(status) for status in Status if status} | {"unknown"}
    assert status_name(97) == "unknown"


def test_a_tally_says_what_was_observed_also_in_another_process() -> None:
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        tally.observe(value)
    other = Tally((1.0, 2.0))
    other.add(tally.to_json())
    other.add(tally.to_json())
    assert other.cumulative() == [("1.0", 4.0), ("2.0", 6.0), ("+Inf", 8.0)]
    assert other.sum == 20.0


@pytest.mark.parametrize(
    "said", [{}, {"counts": [1], "sum": 1.0}, {"counts": [1, 2, "x"], "sum": 1.0}, {"counts": [1, 2, 3]}]
)
def test_a_tally_of_another_shape_is_left_out(said: dict[str, object]) -> None:
    tally = Tally((1.0, 2.0))
    tally.add(said)
    assert (tally.counts, tally.sum) == ([0, 0, 0], 0.0)


def test_the_most_in_flight_is_kept() -> None:
    figures = Figures()
    for size in (3, 9, 4):
        figures.posted(size)
    assert figures.to_json()["in_flight_peak"] == 9


def test_a_pulse_that_stands_still_is_an_illness() -> None:
    clock = [0.0]
    pulse = Pulse("the tick", 10, lambda: clock[0])
    clock[0] = 10.0
    assert pulse() is None
    clock[0] = 11.0
    assert "the tick has not gone on for 11 s" in (pulse() or "")
    pulse.beat()
    assert pulse() is None


def test_redis_is_asked_every_two_seconds_at_most() -> None:
    clock, asked = [0.0], [0]

    def ask() -> None:
        asked[0] += 1
        if asked[0] > 1:
            raise UnreachableError("Redis is away")

    ready = Recent(ask, lambda: clock[0])
    assert [ready(), ready(), ready()] == [None, None, None]
    assert asked[0] == 1
    clock[0] = 2.0
    assert ready() == "Redis is away"


# --- whoever asks -----------------------------------------------------------------------------------------------------


class Broken(Collector):
    """Figures that cannot be told."""

    def collect(self) -> Iterator[object]:  # type: ignore[override]
        raise KeyError("guest")

    def describe(self) -> Iterator[object]:  # type: ignore[override]
        return iter(())


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What was written to standard error meanwhile; logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err.splitlines()  # noqa: PLW0108  # mypy wants a callable of lists
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("sent", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
def test_whoever_hangs_up_leaves_no_line_in_the_log(port: int, lines: Callable[[], list[str]], sent: bytes) -> None:
    logs.configure(WorkerSettings(log_format="json"))
    stop = serve("127.0.0.1", port, CollectorRegistry(), well, well, "host.metrics_source_port")
    try:
        with socket.create_connection(("127.0.0.1", port)) as asker:
            asker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
            asker.sendall(sent)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.status == 200
    finally:
        stop()
    assert lines() == []


def test_whoever_says_nothing_is_not_waited_for_without_end(
    port: int, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page._Silent, "timeout", 0.2)
    logs.configure(WorkerSettings(log_format="json"))
    stop = serve("127.0.0.1", port, CollectorRegistry(), well, well, "host.metrics_source_port")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as asker:
            assert asker.recv(1) == b"", "it hangs up"
    finally:
        stop()
    assert lines() == []


def test_a_defect_is_one_line_and_an_answer(port: int, lines: Callable[[], list[str]]) -> None:
    registry = CollectorRegistry()
    registry.register(Broken())
    logs.configure(WorkerSettings(log_format="json"))
    stop = serve("127.0.0.1", port, registry, well, well, "host.metrics_source_port")
    try:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
    finally:
        stop()
    (line,) = map(json.loads, lines())
    assert line["level"] == "error"
    assert "KeyError" in line["exception"]
