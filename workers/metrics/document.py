"""metrics.md, from the names. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from workers.metrics import names
from workers.metrics.names import Kind, Metric

_HEAD = """# Metrics

Written by `droveway metrics --markdown` (`make metrics.md`) from `workers/metrics/names.py`: change it there.

Units are base units and stand at the end of a name: seconds, bytes; what has none is a number. A counter's name ends in
`_total` where it is scraped, a histogram's has `_bucket`, `_sum` and `_count`. All that a counter or a histogram can
have as labels is there from the start, at 0. No label names a guest or a migration, ever.
"""
_WORKER = """
## A worker's

On each host `http://ADDRESS:9641/metrics` is the source's, `:9642` the destination's (`host.metrics_source_port`,
`host.metrics_destination_port`): what that worker supervised since it was started. A mover says what it did when it has
ended, so a scrape disturbs no migration. `/healthz` beside it is 200 while the worker's own loop goes on, `/readyz`
while Redis answers as well.
"""
_FLEET = """
## The fleet's

`droveway exporter` shows on `:9643` (`exporter.port`) what Redis knows now, read at most once in `exporter.interval`
(5 s), however often it is scraped. What has ended or left is not there any more, and without Redis nothing is there but
`droveway_redis_up 0`: no figure is older than it looks.
"""


def markdown() -> str:
    """The whole page."""
    return _HEAD + _WORKER + _table(names.WORKER) + _FLEET + _table((names.BUILD, *names.FLEET))


def _table(metrics: Iterable[Metric]) -> str:
    lines = ["", "| name | kind | labels | what it says | what it leaves out |", "|---|---|---|---|---|"]
    lines += [
        f"| `{shown_name(metric)}` | {metric.kind} | {_labels(metric)} | {metric.meaning} | {metric.leaves_out} |"
        for metric in metrics
    ]
    return "\n".join([*lines, ""])


def shown_name(metric: Metric) -> str:
    """As a query names it; of a histogram without what follows."""
    return f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name


def _labels(metric: Metric) -> str:
    return "; ".join(f"`{name}`" + (f": {', '.join(values)}" if values else "") for name, values in metric.labels)
