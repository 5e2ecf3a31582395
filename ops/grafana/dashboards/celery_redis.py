"""Messages and the record: whether Redis keeps what it promises, and what workers do with what they are sent.

All of it is Droveway's own figures. celery-exporter and redis_exporter have dashboards of their own.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import (
    ALWAYS_SHOULD,
    SECONDS,
    WINDOW,
    YES_OR_NO,
    Panel,
    Query,
    figure,
    lines,
    page,
    quantiles,
    variable,
)

_AT = '{host=~"$host"}'


def dashboard() -> Dashboard:
    """What to look at when nothing starts."""
    rows = [("Redis", _redis()), ("Messages and leases", _messages()), ("Scrapes", _scrapes())]
    hosts = variable("host", "Host", "label_values(droveway_host_up, host)")
    return page(
        "droveway-celery-redis", "Celery and Redis", "Messages, leases, and whether Redis keeps them.", rows, [hosts]
    )


def _redis() -> list[Panel]:
    durable = "Whether Redis is set to keep what it answers ({}); ops/redis/droveway.conf is."
    checks = [
        figure(
            check,
            durable.format(check),
            Query(f'droveway_redis_durable{{check="{check}"}}'),
            steps=ALWAYS_SHOULD,
            says={0: "not safe", 1: "safe"},
            runbook="redis-not-durable",
        )
        for check in ("appendonly", "appendfsync", "maxmemory_policy")
    ]
    return [
        figure(
            "Redis answers",
            "Whether the exporter reaches it.",
            Query("droveway_redis_up"),
            steps=ALWAYS_SHOULD,
            says=YES_OR_NO,
            width=6,
        ),
        *(check.span(6) for check in checks),
        lines(
            "Time to read the fleet",
            "What the exporter's last look at the whole record took.",
            Query("droveway_exporter_read_seconds", "read"),
            unit=SECONDS,
        ),
        lines(
            "Workers alive",
            "Workers that renew their lease, by role.",
            Query("sum by (side) (droveway_host_up)", "{{side}}"),
            runbook="worker-missing",
        ),
    ]


def _messages() -> list[Panel]:
    return [
        lines(
            "Time in the queue",
            f"From submission to admission, of those admitted within {WINDOW}.",
            *quantiles("droveway_queue_wait_seconds", _AT),
            unit=SECONDS,
        ),
        lines(
            "Duplicate deliveries",
            f"Doorbells for what was taken up already, within {WINDOW}: no-ops by design. Many mean that Celery"
            " delivers again and again.",
            Query(f"sum by (side) (increase(droveway_duplicate_deliveries_total{_AT}[{WINDOW}]))", "{{side}}"),
        ),
        lines(
            "Messages dropped",
            f"Malformed, too large, expired, of another version, or not agreeing with the record, within {WINDOW}.",
            Query(f"sum by (host) (increase(droveway_refused_messages_total{_AT}[{WINDOW}])) > 0", "{{host}}"),
            nothing="none",
        ),
        lines(
            "Leases lost",
            f"Claims that went to another holder while their mover lived, within {WINDOW}.",
            Query(
                f"sum by (host, side) (increase(droveway_leases_lost_total{_AT}[{WINDOW}])) > 0", "{{host}} {{side}}"
            ),
            nothing="none",
            runbook="lease-lost",
        ),
    ]


def _scrapes() -> list[Panel]:
    return [
        lines(
            "Time of a scrape",
            "The slowest of each job's pages. It costs a worker next to nothing: everything is counted before.",
            Query('max by (job) (scrape_duration_seconds{job=~"droveway-.*"})', "{{job}}"),
            unit=SECONDS,
        ),
        lines(
            "Pages that answer",
            "Targets that Prometheus reaches, by job.",
            Query('sum by (job) (up{job=~"droveway-.*"})', "{{job}}"),
        ),
    ]
