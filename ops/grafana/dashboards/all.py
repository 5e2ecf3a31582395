"""Every dashboard, and the text of its file."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from ops.grafana.dashboards import celery_redis, evacuation, fleet, migration, rdma, runbooks

FOLDER = Path(__file__).parents[1] / "provisioning" / "dashboards"
DASHBOARDS = (
    fleet.dashboard,
    evacuation.dashboard,
    migration.dashboard,
    rdma.dashboard,
    celery_redis.dashboard,
    runbooks.dashboard,
)


def written() -> dict[str, str]:
    """File name → JSON, the same on every machine."""
    texts = {}
    for dashboard in DASHBOARDS:
        made = dashboard().build()
        for number, panel in enumerate(made.panels or (), start=1):
            panel.id_val = number
        texts[f"{made.uid}.json"] = json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
    return texts
