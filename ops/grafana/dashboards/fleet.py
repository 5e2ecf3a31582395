"""The fleet at a glance: what moves, what waits and why, which host lacks a worker, whether load is spread out."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import Query, figure, lines, page, variable


def dashboard() -> Dashboard:
    """What an operator opens first."""
    rows = [
        (
            "Now",
            [
                figure(
                    "Completed",
                    "Migrations that completed within the time shown.",
                    Query('sum(increase(droveway_migrations_total{state="completed"}[$__range]))'),
                ),
            ],
        ),
        (
            "Migrations",
            [
                lines(
                    "Ended, by outcome",
                    "Migrations that ended, an hour, by final state.",
                    Query("sum by (state) (rate(droveway_migrations_total[$__rate_interval])) * 3600", "{{state}}"),
                    stacked=True,
                ),
            ],
        ),
    ]
    hosts = variable("host", "Host", "label_values(droveway_migrations_in_flight, host)")
    return page("droveway-fleet", "Fleet", "Hosts, slots, queue and balance of the whole fleet.", rows, [hosts])
