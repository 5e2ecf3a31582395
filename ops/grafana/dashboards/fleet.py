"""The fleet at a glance: what moves, what waits and why, which host lacks a worker, whether load is spread out."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import (
    BYTES,
    ENDS,
    NEVER_SHOULD,
    NUMBER,
    RATIO,
    SECONDS,
    WINDOW,
    Panel,
    Query,
    failures,
    figure,
    highest,
    lines,
    page,
    quantiles,
    sent,
    variable,
)


def dashboard() -> Dashboard:
    """What an operator opens first."""
    rows = [("Now", _now()), ("Migrations", _migrations()), ("Hosts", _hosts()), ("Balance", _balance())]
    hosts = variable("host", "Host", "label_values(droveway_host_up, host)")
    return page("droveway-fleet", "Fleet", "Hosts, slots, queue and balance of the whole fleet.", rows, [hosts])


def _now() -> list[Panel]:
    alerts = 'max by (alertname) (ALERTS{alertname=~"Droveway.*", alertstate="%s"})'
    completed = 'sum(increase(droveway_migrations_total{state="completed"}[$__range]))'
    return [
        figure(
            "Alerts",
            "Alerts of Droveway that fire, and those that will if it stays like this; the runbooks say what to do.",
            Query(f"{alerts % 'firing'} or 2 * {alerts % 'pending'}", "{{alertname}}"),
            steps=((None, "text"), (1, "red"), (2, "yellow")),
            says={1: "firing", 2: "pending"},
            named=True,
            nothing="none",
            width=24,
        ),
        figure(
            "Hosts up",
            "Hosts whose two workers are alive, by their leases in Redis.",
            Query("sum(min by (host) (droveway_host_up))"),
        ),
        figure(
            "Workers missing",
            "Workers of known hosts that renew no lease.",
            Query("sum(droveway_host_up == bool 0)"),
            steps=NEVER_SHOULD,
            runbook="worker-missing",
        ),
        figure(
            "Under way",
            "Migrations that were admitted and have not ended.",
            Query('sum(droveway_migrations_open{state!="queued"})'),
        ),
        figure(
            "Guests that wait in handover",
            "Migrations cut off between two hosts: their guest may be paused until `droveway reconcile` settles them.",
            Query("droveway_unresolved_migrations"),
            steps=NEVER_SHOULD,
            runbook="guest-waits-in-handover",
        ),
        figure(
            "Most moves of one guest, 24 h",
            "Completed migrations of whichever guest had most. A dozen a day is a rebalancing that goes to and fro.",
            Query("droveway_guest_migrations_max_24h"),
            steps=((None, "green"), (6, "yellow"), (12, "red")),
            runbook="excessive-migrations",
        ),
        figure(
            "Completed, of all that ended",
            "Share of migrations within the time shown that completed; the others failed or were cancelled.",
            Query(f"{completed} / (sum(increase(droveway_migrations_total[$__range])) > 0)"),
            unit=RATIO,
            steps=((None, "red"), (0.9, "yellow"), (0.99, "green")),
            nothing="none ended",
        ),
    ]


def _migrations() -> list[Panel]:
    return [
        lines(
            "Open, by state",
            "Migrations that have not ended, in QEMU's words for their states.",
            Query("sum by (state) (droveway_migrations_open)", "{{state}}"),
            stacked=True,
        ),
        lines(
            "Waiting, by what for",
            "Migrations that wait for admission or for the links, by what they lack.",
            Query("sum by (reason) (droveway_migrations_waiting)", "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Time in the queue",
            f"From submission to admission, of those admitted within {WINDOW}.",
            *quantiles("droveway_queue_wait_seconds"),
            unit=SECONDS,
        ),
        lines(
            "Ended an hour, by outcome",
            "Migrations that reached an end, as a rate an hour.",
            Query(f"sum by (state) (rate(droveway_migrations_total[{WINDOW}])) * 3600", "{{state}}"),
            unit=NUMBER,
            stacked=True,
            colours=ENDS,
        ),
        lines(
            "Failures, by reason",
            f"Migrations that failed within {WINDOW}; the words are those of `droveway show`.",
            failures(),
            stacked=True,
            nothing="none failed",
            shades="red",
        ),
        lines(
            "Blackout, and what guests felt",
            "From the guest's pause to the destination's word that it runs, and the gap that guests measured themselves"
            " (memory guests do).",
            *quantiles("droveway_downtime_seconds", of=(0.5, 0.99)),
            *(
                Query(each.expression, f"felt {each.legend}")
                for each in quantiles("droveway_guest_gap_seconds", of=(0.5, 0.99))
            ),
            unit=SECONDS,
        ),
        lines(
            "Sent, by kind",
            "Guest memory by the round that sent it: the bulk round, dirty rounds, the last one. Of migrations that"
            f" ended within {WINDOW}: it is counted when one ends.",
            sent('host=~"$host"'),
            unit=BYTES,
            stacked=True,
        ),
        lines(
            "Releases",
            "Hosts by the release that their workers run. Two at a time is an upgrade.",
            Query("droveway_fleet_version", "{{version}}"),
            stacked=True,
        ),
    ]


def _hosts() -> list[Panel]:
    promised, whole = (
        f"sum by (host) (droveway_host_memory_bytes{{{of}}})"
        for of in ('host=~"$host", state!="free"', 'host=~"$host"')
    )
    return [
        lines(
            "Slots in use",
            "Share of the slots that are taken by who sends, each way; who still prepares takes none of these.",
            Query(
                'sum by (side) (droveway_slots{host=~"$host", state="sending"})'
                ' / (sum by (side) (droveway_slots{host=~"$host", state=~"sending|free"}) > 0)',
                "{{side}}",
            ),
            unit=RATIO,
        ),
        lines(
            "Sending and preparing, by host",
            "Migrations that hold a slot of a host, both ways; the ten hosts that have most.",
            Query(highest('sum by (host) (droveway_slots{host=~"$host", state!="free"})'), "{{host}}"),
        ),
        lines(
            "Memory promised",
            "Share of a host's memory that its guests have or that is reserved for guests on their way; the ten hosts"
            " that are fullest.",
            Query(highest(f"{promised} / ({whole} > 0)"), "{{host}}"),
            unit=RATIO,
            steps=((None, "green"), (0.9, "yellow"), (1, "red")),
        ),
        lines(
            "Guests, by host",
            "Guests that a host's workers tell of; the ten hosts that have most.",
            Query(highest('droveway_host_guests{host=~"$host"}'), "{{host}}"),
        ),
    ]


def _balance() -> list[Panel]:
    return [
        lines(
            "Imbalance",
            "How unevenly hosts are loaded, as `droveway rebalance --plan` has it, and where each policy stops.",
            Query("droveway_imbalance", "imbalance"),
            Query("droveway_imbalance_target", "target of {{policy}}"),
            unit=NUMBER,
            runbook="imbalance-not-improving",
        ),
        lines(
            "What rebalancing could gain",
            "Imbalance now, less what it would be after the moves that each policy would plan now. Near nothing: it is"
            " as good as it gets.",
            Query("droveway_rebalance_gain", "{{policy}}"),
            unit=NUMBER,
        ),
    ]
