"""A page of metrics as a test reads it."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.until import until


def parsed(text: str) -> dict[str, float]:
    """Every sample by `name{label="value",…}`, the labels in the order of their names."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scraped(port: int) -> dict[str, float]:
    """What a worker of this machine shows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        return parsed(page.read().decode())


def scraped_after(port: int, ended: int) -> dict[str, float]:
    """The same, once it has told of so many attempts that ended."""

    def told() -> Mapping[str, float] | None:
        found = scraped(port)
        phases = 'droveway_phase_seconds_count{phase="total"'
        return found if sum(value for name, value in found.items() if name.startswith(phases)) >= ended else None

    return dict(until(f"the end of {ended} attempts on the page", told, 60, 0.1))
