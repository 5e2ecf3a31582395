"""`droveway metrics`: every metric, from where it is defined."""

from __future__ import annotations

import json

import click

from tasks.cli.invocation import SettingsCommand, json_option
from tasks.cli.output import show
from tasks.cli.rendering.tables import metrics
from workers.metrics import names
from workers.metrics.document import markdown, shown_name


@click.command(cls=SettingsCommand)
@click.option("--markdown", "as_markdown", is_flag=True, help="As the page metrics.md.")
@json_option
def command(as_markdown: bool, as_json: bool) -> None:
    """List every metric of workers and of the exporter: its kind and labels, what it says, what it leaves out.

    \b
    Examples:
      droveway metrics
      droveway metrics --json | jq -r '.metrics[].name'
    """
    shown = {"worker": names.WORKER, "exporter": names.FLEET}
    if as_markdown:
        click.echo(markdown(), nl=False)
    elif as_json:
        rows = [
            {
                "name": shown_name(metric),
                "kind": str(metric.kind),
                "shown_by": where,
                "labels": {name: list(values) for name, values in metric.labels},
                "meaning": metric.meaning,
                "leaves_out": metric.leaves_out,
            }
            for where, those in shown.items()
            for metric in those
        ]
        click.echo(json.dumps({"metrics": rows}))
    else:
        show(metrics(shown))
