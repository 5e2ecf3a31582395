"""The runbooks, where they are needed: panels that an alert watches link here."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import RUNBOOKS_PAGE, page, runbooks, text


def dashboard() -> Dashboard:
    """One panel a runbook, in `runbooks()`' order: panels are linked to by their number."""
    panels = [text(path.stem, path.read_text()) for path in runbooks()]
    return page(RUNBOOKS_PAGE, "Runbooks", "What each alert means, how to look, what to do.", [("", panels)])
