"""Hosts that are being emptied: how far, how long still, against which deadline, and who cannot leave."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import (
    RATIO,
    SECONDS,
    WINDOW,
    Panel,
    Query,
    failures,
    figure,
    lines,
    page,
    variable,
)

_NO_EVACUATION = "no evacuation"
#: What has become of a guest, at a glance.
_FATES = {
    "moved": "green",
    "gone": "light-green",
    "moving": "blue",
    "waiting": "yellow",
    "refused": "orange",
    "failed": "red",
}
_OBSTACLES = {"pinned": "blue", "stale": "purple", "no-room": "orange", "no-host": "yellow"}


def dashboard() -> Dashboard:
    """What to watch while hosts are emptied."""
    rows = [("Progress", _progress()), ("What holds it up", _obstacles())]
    jobs = variable("evacuation", "Evacuation", "label_values(droveway_evacuation_guests, evacuation)")
    return page(
        "droveway-evacuation",
        "Evacuation",
        "Evacuations that are under way; those that ended are in `droveway history` and `droveway report`.",
        rows,
        [jobs],
    )


def _progress() -> list[Panel]:
    guests = 'sum by (evacuation) (droveway_evacuation_guests{evacuation=~"$evacuation"})'
    done = 'sum by (evacuation) (droveway_evacuation_guests{evacuation=~"$evacuation", fate=~"moved|gone"})'
    left, needed = (f'droveway_evacuation_{name}_seconds{{evacuation=~"$evacuation"}}' for name in ("deadline", "eta"))
    return [
        figure(
            "Under way",
            "Evacuations that have not ended.",
            Query("count(count by (evacuation) (droveway_evacuation_guests)) or sum(droveway_jobs) * 0"),
            width=6,
        ),
        figure(
            "Hosts closed to guests",
            "Hosts that are cordoned, for an evacuation or by somebody.",
            Query("sum(droveway_host_cordoned)"),
            width=6,
        ),
        figure(
            "Time to spare",
            "Of the evacuations shown that have a deadline, the one that has least: time left to it, less what it is"
            " estimated to need still.",
            Query(f"min({left} - {needed})"),
            unit=SECONDS,
            steps=((None, "red"), (0, "green")),
            runbook="evacuation-behind-deadline",
            nothing="no deadline",
            width=6,
        ),
        figure(
            "Cannot leave",
            "Guests of the whole fleet that could not leave their host now, were it emptied.",
            Query("sum(droveway_guests_not_evacuable)"),
            steps=((None, "green"), (1, "yellow")),
            runbook="guest-not-evacuable",
            width=6,
        ),
        lines(
            "Done",
            "Share of each evacuation's guests that have moved or are gone.",
            Query(f"{done} / ({guests} > 0)", "{{evacuation}}"),
            unit=RATIO,
            nothing=_NO_EVACUATION,
        ),
        lines(
            "Time still needed, and left",
            "The estimate of what is still to move, and the time to the deadline where one was given.",
            Query(needed, "{{evacuation}} needs"),
            Query(left, "{{evacuation}} has"),
            unit=SECONDS,
            nothing=_NO_EVACUATION,
            runbook="evacuation-behind-deadline",
        ),
        lines(
            "Guests, by fate",
            "What has become of the guests of the evacuations shown.",
            Query('sum by (fate) (droveway_evacuation_guests{evacuation=~"$evacuation"})', "{{fate}}"),
            stacked=True,
            nothing=_NO_EVACUATION,
            colours=_FATES,
            width=24,
        ),
    ]


def _obstacles() -> list[Panel]:
    return [
        lines(
            "Guests that cannot leave, by reason",
            "Of the whole fleet: pinned, no room elsewhere, no host that suits them, a silent host. `droveway show JOB`"
            " has the sentence for each guest of an evacuation.",
            Query("sum by (reason) (droveway_guests_not_evacuable)", "{{reason}}"),
            stacked=True,
            colours=_OBSTACLES,
            runbook="guest-not-evacuable",
        ),
        lines(
            "Moves that failed, by reason",
            f"Of any kind, within {WINDOW}. A guest is tried elsewhere up to three times.",
            failures(),
            stacked=True,
            nothing="none failed",
            shades="red",
        ),
        lines(
            "Waiting, by what for",
            "Moves that are asked for and not admitted, or prepared and not let onto the links.",
            Query("sum by (reason) (droveway_migrations_waiting)", "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Jobs kept, by end",
            "Evacuations, rebalancings and restores in the record, by how they ended or that they run.",
            Query("sum by (kind, state) (droveway_jobs) > 0", "{{kind}} {{state}}"),
            nothing="none",
        ),
    ]
