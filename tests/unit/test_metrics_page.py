"""metrics.md is what the code says, and what the pages answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.errors import UnreachableError
from workers.metrics import names
from workers.metrics.document import markdown, shown_name
from workers.metrics.page import Pulse, Recent
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
