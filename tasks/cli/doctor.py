"""`droveway doctor`: whether this host is fit to move guests, and what to do where it is not."""

from __future__ import annotations

import json

import click
from rich.text import Text

from config.errors import HostError
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import console, show
from tasks.cli.rendering.tables import table
from tasks.doctor.judge import Finding, State, judge

_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red", State.SKIP: "dim"}


@click.command(cls=SettingsCommand)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> int:
    """Look at this host: kernel, RDMA, QEMU, limits, disks, ports, Redis, clock, certificates, the fleet's versions.

    Changes nothing. Run it as the user of the workers, with their settings and limits: what counts is what they may.
    Ends with 0 where guests can be moved, warnings or not, and with 4 where something has to be repaired first.

    \b
    Examples:
      droveway doctor
      systemd-run --pty --property=LimitMEMLOCK=infinity droveway doctor     # under the limits of the service
      droveway doctor --json | jq '.findings[] | select(.state == "fail")'
    """
    from tasks.doctor.look import look  # noqa: PLC0415  # what it looks through takes a while to import: only this pays

    found = judge(look(invocation_of(context).settings))
    failed = [each for each in found if each.state is State.FAIL]
    if as_json:
        click.echo(json.dumps({"findings": [each.to_json() for each in found], "fit": not failed}))
    else:
        _print(found)
    return HostError.exit_code if failed else 0


def _print(found: list[Finding]) -> None:
    made = table("CHECK", "STATE", "SEEN", "WHAT TO DO")
    for each in found:
        made.add_row(each.check, Text(str(each.state), _STYLES[each.state]), Text(each.seen), Text(each.todo))
    show(made)
    counts = [(sum(each.state is state for each in found), str(state)) for state in State]
    console().print(", ".join(f"{count} {word}" for count, word in counts if count), highlight=False)
