"""`droveway migrate`: ask for a move, and follow it."""

from __future__ import annotations

import json
from typing import Literal

import click

from config.capabilities import EngineChoice, read_options
from config.names import check_name
from tasks.bell import Bell
from tasks.cli.following import ending, follow, going_on
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import progress_console, show
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.tables import summary
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.records import MigrationRecord
from tasks.requests import admit, snapshot, submit


@click.command(cls=SettingsCommand)
@click.argument("guest")
@click.option("--to", "destination", metavar="HOST", required=True, help="Where it shall go.")
@click.option("--capability", "capabilities", metavar="NAME=on|off", multiple=True, help="See `droveway capabilities`.")
@click.option("--set", "parameters", metavar="NAME=VALUE", multiple=True, help="A parameter; see the same.")
@click.option(
    "--engine",
    type=click.Choice([word.value for word in EngineChoice]),
    help="Who moves the memory: short for --set engine=NAME.",
)
@click.option(
    "--priority",
    type=click.Choice(["user", "background"]),
    default="user",
    show_default=True,
    help="background: whatever else wants the same slots goes first.",
)
@click.option("--wait/--detach", default=True, help="Follow the move to its end (default), or only submit it.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    guest: str,
    destination: str,
    capabilities: tuple[str, ...],
    parameters: tuple[str, ...],
    engine: str | None,
    priority: Literal["user", "background"],
    wait: bool,
    as_json: bool,
) -> None:
    """Move GUEST to another host while it runs.

    Follows the move until the guest runs there. Ctrl-C only ends the following: the move goes on.

    \b
    Examples:
      droveway migrate web --to beta
      droveway migrate web --to beta --capability rdma-pin-all=on --set downtime-limit=100ms
      droveway migrate vm1 --to beta --engine qemu
      id=$(droveway migrate web --to beta --detach --json | jq -r .migration)
    """
    invocation = invocation_of(context)
    chosen = (*parameters, *([f"engine={engine}"] if engine else []))
    request = request_for(guest, destination, capabilities, chosen, priority)
    with invocation.ledger() as ledger:
        record = begin(ledger, bell_for(invocation.settings), request)
        if wait:
            with going_on(request.migration):
                record = follow(ledger, request.migration, progress_console(as_json))
    _conclude(record, wait=wait, as_json=as_json)


def request_for(
    guest: str,
    destination: str,
    capabilities: tuple[str, ...] = (),
    parameters: tuple[str, ...] = (),
    priority: Literal["user", "background"] = "user",
) -> MigrateRequest:
    """The request in words, checked. Raises RequestError."""
    asked, chosen = read_options(list(capabilities), list(parameters))
    return MigrateRequest(
        migration=new_migration_id(),
        guest=check_name("guest", guest),
        destination=check_name("host", destination),
        capabilities=dict(asked.to_json()),
        parameters=dict(chosen.to_json()),
        priority=priority,
    )


def begin(ledger: Ledger, bell: Bell, request: MigrateRequest) -> MigrationRecord:
    """Submit, admit what can be, and ring. Raises RefusedError, UnreachableError."""
    submit(ledger, request)
    admit(ledger, bell)
    return snapshot(ledger, request.migration)


def _conclude(record: MigrationRecord, *, wait: bool, as_json: bool) -> None:
    facts = Facts.of(record)
    error = ending(record) if wait else None
    if wait and not as_json:
        show(summary(facts))
    if error:
        raise error
    if as_json:
        click.echo(json.dumps(facts.to_json()))
    elif not wait:
        click.echo(record.migration)
        click.echo(f"{facts.way} is {record.state}; follow it: droveway status {record.migration} --watch", err=True)
