"""What moves between two hosts look like: phases, rates round by round, blackout.

Metrics never name a migration or a guest, so this is every move that one host sent beside every move that the other one
received, which at a slot each is one at a time; a single one, round by round, is `droveway report`.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import (
    BYTES,
    BYTES_PER_SECOND,
    CONVERGENCE,
    ENDS,
    NUMBER,
    SECONDS,
    WINDOW,
    Panel,
    Query,
    lines,
    mean,
    page,
    quantiles,
    sent,
    variable,
)

_SOURCE = '{host="$source", side="source"}'
_DESTINATION = '{host="$destination", side="destination"}'


def dashboard() -> Dashboard:
    """A pair of hosts, as one looks at a migration that was slow."""
    rows = [
        ("What moves", _moves()),
        ("Whether it converges", _convergence()),
        ("Where the time goes", _time()),
        ("Blackout", _blackout()),
    ]
    variables = [
        variable("source", "Source", "label_values(droveway_host_up, host)", several=False),
        variable("destination", "Destination", 'label_values(droveway_host_up{host!="$source"}, host)', several=False),
    ]
    return page(
        "droveway-migration",
        "One migration",
        "Moves that the source sent, beside those that the destination received.",
        rows,
        variables,
    )


def _moves() -> list[Panel]:
    ended = f'increase(droveway_migrations_total{{host="$source", state%s"failed"}}[{WINDOW}])'
    return [
        lines(
            "Movers at work",
            "Movers that the workers of the two hosts supervise.",
            Query(f"sum by (host) (droveway_migrations_in_flight{_SOURCE})", "sending from {{host}}"),
            Query(f"sum by (host) (droveway_migrations_in_flight{_DESTINATION})", "receiving at {{host}}"),
        ),
        lines(
            "Outcomes",
            f"Migrations of the source's guests that ended within {WINDOW}.",
            Query(f"sum by (state) ({ended % '!='}) > 0", "{{state}}"),
            Query(f"sum by (reason) ({ended % '='}) > 0", "failed: {{reason}}"),
            stacked=True,
            nothing="none ended",
            colours=ENDS,
            shades="red",
        ),
    ]


def _convergence() -> list[Panel]:
    at = '{host="$source"}'
    rates = [
        Query(each.expression, f"{name} {each.legend}")
        for name, metric in (
            ("sent", "droveway_throughput_bytes_per_second"),
            ("dirtied", "droveway_dirty_rate_bytes_per_second"),
        )
        for each in quantiles(metric, at, of=(0.5,))
    ]
    return [
        lines(
            "Dirty rate against transfer rate",
            f"Medians over rounds, of migrations that ended within {WINDOW}.",
            *rates,
            unit=BYTES_PER_SECOND,
        ),
        lines(
            "Convergence ratio",
            "Dirty rate by transfer rate of a round. Below 0.5 each round halves what is left; from 1 on nothing ends"
            " it but on-stall.",
            *quantiles("droveway_convergence_ratio", at),
            unit=NUMBER,
            steps=CONVERGENCE,
            runbook="no-net-progress",
        ),
        lines(
            "Rounds", "Rounds of a migration, the bulk round included.", *quantiles("droveway_rounds", at), unit=NUMBER
        ),
        lines(
            "Sent, by kind",
            "What the source sent, of migrations that ended within"
            f" {WINDOW}: the bulk round, dirty rounds, the last one. Zero pages are not sent.",
            sent('host="$source"'),
            unit=BYTES,
            stacked=True,
        ),
    ]


def _time() -> list[Panel]:
    return [
        lines(
            "Phases at the source",
            "Mean seconds of each phase. Registration overlaps the rounds that it runs beside; total is all of it.",
            mean("droveway_phase_seconds", _SOURCE, "phase", "{{phase}}"),
            unit=SECONDS,
        ),
        lines(
            "Phases at the destination",
            "The same, as the other side saw it.",
            mean("droveway_phase_seconds", _DESTINATION, "phase", "{{phase}}"),
            unit=SECONDS,
        ),
        lines(
            "Waiting to be let onto the links",
            "Prepared, and not sending yet, because others had the links.",
            *quantiles("droveway_links_wait_seconds", '{host="$source"}'),
            unit=SECONDS,
        ),
        lines(
            "Waiting for registration",
            "Time in which the link waited for memory to be registered, by policy.",
            mean("droveway_registration_wait_seconds", '{host="$source"}', "policy", "{{policy}}"),
            unit=SECONDS,
        ),
    ]


def _blackout() -> list[Panel]:
    at = '{host="$source"}'
    felt = quantiles("droveway_guest_gap_seconds", '{host="$destination"}', of=(0.5, 0.99))
    return [
        lines(
            "Blackout",
            "From the guest's pause to the destination's word that it runs.",
            *quantiles("droveway_downtime_seconds", at, of=(0.5, 0.99)),
            unit=SECONDS,
        ),
        lines(
            "Expected, and real",
            "Mean of what was expected when the switch-over was decided, and of what it took.",
            mean("droveway_expected_downtime_seconds", at, "host", "expected"),
            mean("droveway_downtime_seconds", at, "host", "real"),
            unit=SECONDS,
        ),
        lines(
            "Blackout, in times of what was expected",
            "Above 1 it took longer than it was planned with.",
            *quantiles("droveway_downtime_to_expected_ratio", at, of=(0.5, 0.95)),
            unit=NUMBER,
        ),
        lines(
            "What guests felt",
            "The gap that guests which came to the destination measured themselves; memory guests do.",
            *felt,
            unit=SECONDS,
        ),
    ]
