"""`droveway check`: whether a guest could move, without moving it."""

from __future__ import annotations

import json

import click

from config.errors import RefusedError
from tasks.checks import ANSWER_SECONDS, examine
from tasks.cli.endings import EndedError
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.migrate import request_for
from tasks.cli.output import show
from tasks.cli.rendering.tables import obstacles
from workers.guests.blocker import BLOCKED


@click.command(cls=SettingsCommand)
@click.argument("guest")
@click.option("--to", "destination", metavar="HOST", required=True, help="Where it would go.")
@click.option("--capability", "capabilities", metavar="NAME=on|off", multiple=True, help="As `droveway migrate`.")
@click.option("--set", "parameters", metavar="NAME=VALUE", multiple=True, help="As `droveway migrate`.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=ANSWER_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="For each host's worker to answer.",
)
@json_option
@click.pass_context
def command(
    context: click.Context,
    guest: str,
    destination: str,
    capabilities: tuple[str, ...],
    parameters: tuple[str, ...],
    timeout: float,
    as_json: bool,
) -> None:
    """Could GUEST move to HOST? A dry run: nothing is reserved, and the guest is not touched.

    The workers of both hosts look at what they have, and every blocker that either sees is listed with what to do about
    it; so is what would refuse the request at once (no room, no worker, already migrating). A migration that has any
    blocker is refused with the reason `blocked` before its guest is touched.

    What a memory guest found in its own memory, `droveway guest check` says.

    Ends with exit code 0 when it could move, 3 when something stands in the way, 5 when a worker does not answer.

    \b
    Examples:
      droveway check web --to beta
      droveway check web --to beta --json | jq '.blockers[] | {host, reason, what}'
      droveway check web --to beta && droveway migrate web --to beta
    """
    from tasks.app import sender  # noqa: PLC0415  # Celery takes half a second to import

    invocation = invocation_of(context)
    request = request_for(guest, destination, capabilities, parameters)
    with invocation.ledger() as ledger:
        checked = examine(invocation.settings, ledger, sender(invocation.settings), request, timeout)
    if checked.obstacles:
        if not as_json:
            show(obstacles(checked.obstacles))
        count = len(checked.obstacles)
        message = f"{guest} cannot move from {checked.source} to {destination} now: {count} blocker{'s'[: count > 1]}."
        raise EndedError(message, BLOCKED, RefusedError.exit_code, checked.to_json())
    if as_json:
        click.echo(json.dumps(checked.to_json()))
    else:
        click.echo(f"{guest} can move from {checked.source} to {destination}")
