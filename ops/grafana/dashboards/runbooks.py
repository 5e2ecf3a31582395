"""The runbooks, where they are needed: panels that an alert watches link here."""

from __future__ import annotations

import re

from grafana_foundation_sdk.builders.dashboard import Dashboard

from ops.grafana.dashboards.page import RUNBOOKS_PAGE, page, runbook_address, runbooks, text

_LINK_TO_RUNBOOK = re.compile(r"\]\(([\w-]+)\.md\)")


def dashboard() -> Dashboard:
    """One panel a runbook, in `runbooks()`' order: panels are linked to by their number."""
    panels = [text(path.stem, _linked(path.read_text())) for path in runbooks()]
    return page(RUNBOOKS_PAGE, "Runbooks", "What each alert means, how to look, what to do.", [("", panels)])


def _linked(markdown: str) -> str:
    """A link to another runbook's file leads to its panel: Grafana has no such file."""
    return _LINK_TO_RUNBOOK.sub(lambda name: f"]({runbook_address(name[1])})", markdown)
