"""Memory that is registered and locked for the transports, and what their work requests come to."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import (
    BYTES,
    PER_SECOND,
    RATIO,
    SECONDS,
    WINDOW,
    Panel,
    Query,
    highest,
    lines,
    mean,
    page,
    quantiles,
    variable,
)

_AT = '{host=~"$host"}'


def dashboard() -> Dashboard:
    """What to look at when registration is slow, or memory cannot be locked."""
    rows = [("Registration", _registration()), ("Work requests", _work_requests())]
    hosts = variable("host", "Host", "label_values(droveway_host_up, host)")
    return page(
        "droveway-rdma", "RDMA and registration", "Pinned memory, work requests and what failed of them.", rows, [hosts]
    )


def _registration() -> list[Panel]:
    locked, limit = (f"max by (host, instance) (droveway_pinned_{name}{_AT})" for name in ("bytes_max", "limit_bytes"))
    return [
        lines(
            "Registered now",
            "Memory that movers at work have registered, by host and side. The ten that have most.",
            Query(highest(f"sum by (host, side) (droveway_registered_bytes{_AT})"), "{{host}} {{side}}"),
            unit=BYTES,
            stacked=True,
        ),
        lines(
            "Locked now, by policy",
            "Over RDMA what is registered is locked, over tcp under rdma-pin-all.",
            Query(f"sum by (side, policy) (droveway_pinned_bytes{_AT})", "{{side}} {{policy}}"),
            unit=BYTES,
            stacked=True,
        ),
        lines(
            "Locked at most, by policy",
            f"The peak of one migration, on either side, of what ended within {WINDOW}.",
            *quantiles("droveway_pinned_peak_bytes", _AT, "policy"),
            unit=BYTES,
        ),
        lines(
            "Locked, of what may be",
            "Of the mover that has most, by its limit (RLIMIT_MEMLOCK); 0 where nothing is locked, or nothing limited."
            " The ten hosts that are nearest to it.",
            Query(highest(f"max by (host) ({locked} / ({limit} > 0))"), "{{host}}"),
            unit=RATIO,
            steps=((None, "green"), (0.8, "yellow"), (0.9, "red")),
            runbook="pinned-memory-near-limit",
        ),
        lines(
            "Waiting for registration, by policy",
            f"Mean time in which the link waited for memory to be registered, of what ended within {WINDOW}.",
            mean("droveway_registration_wait_seconds", _AT, "policy", "{{policy}}"),
            unit=SECONDS,
        ),
        lines(
            "Registering and deregistering",
            "Mean time of both, by side. Neither falls into the blackout, but for what the last round still has to"
            " register.",
            mean(
                "droveway_phase_seconds",
                '{host=~"$host", phase=~"registration|deregistration"}',
                "side, phase",
                "{{side}} {{phase}}",
            ),
            unit=SECONDS,
        ),
    ]


def _work_requests() -> list[Panel]:
    return [
        lines(
            "Time of a work request",
            "From posting to completion.",
            *quantiles("droveway_work_request_seconds", _AT, "transport", of=(0.5, 0.99)),
            unit=SECONDS,
        ),
        lines(
            "Bytes in flight, at most",
            "The peak of one migration: posted, and not completed.",
            *quantiles("droveway_in_flight_bytes", _AT),
            unit=BYTES,
        ),
        lines(
            "Segments sent again",
            "Over tcp: segments of guest memory that the kernel had to send again, a second; the ten hosts that have"
            " most. A device counts its own.",
            Query(highest(f"sum by (host) (rate(droveway_retries_total{_AT}[$__rate_interval]))"), "{{host}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Failed completions, by status",
            f"Work requests that ended in an error, within {WINDOW}; the words are libibverbs'.",
            Query(f"sum by (status) (increase(droveway_failed_completions_total{_AT}[{WINDOW}])) > 0", "{{status}}"),
            nothing="none",
            shades="red",
        ),
    ]
