"""`droveway capabilities`: what a migration can be told."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import click

from config.capabilities import CAPABILITIES, PARAMETERS, MigrationCapability, Parameter
from tasks.cli.invocation import SettingsCommand, json_option
from tasks.cli.output import show
from tasks.cli.rendering.tables import capabilities


@click.command(cls=SettingsCommand)
@json_option
def command(as_json: bool) -> None:
    """List capabilities (on or off) and parameters (a value each): default, meaning, range, what is missing yet.

    Names, defaults and units are QEMU's where QEMU has them; the column QEMU says since when.

    \b
    Examples:
      droveway capabilities
      droveway migrate web --to beta --capability rdma-pin-all=on --set downtime-limit=100ms
    """
    if as_json:
        rows = {"capabilities": [_capability(row) for row in CAPABILITIES]}
        click.echo(json.dumps(rows | {"parameters": [_parameter(row) for row in PARAMETERS]}))
    else:
        show(capabilities())


def _capability(row: MigrationCapability) -> dict[str, Any]:
    said = {"name": row.value, "default": row.default, "since_qemu": row.since or None, "meaning": row.meaning}
    return said | {"missing": row.missing or None}


def _parameter(row: Parameter) -> dict[str, Any]:
    return {
        "name": row.name,
        "default": row.default.value if isinstance(row.default, StrEnum) else row.default,
        "unit": row.kind.unit or None,
        "allowed": row.kind.allowed,
        "since_qemu": row.since or None,
        "alias": row.alias or None,
        "meaning": row.meaning,
        "missing": row.missing or None,
    }
