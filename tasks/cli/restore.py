"""`droveway restore`: give hosts back after their maintenance."""

from __future__ import annotations

import json

import click

from config.names import check_name
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.job_following import carry_on, parallel_option, wait_option
from tasks.cli.output import show
from tasks.cli.pinning import check_known, check_reason
from tasks.cli.rendering.plans import return_json, return_table
from tasks.ledger.ledger import Ledger
from tasks.records import Kept
from tasks.restore import begin_return, open_hosts, planned


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--bring-back", is_flag=True, help="Bring back the guests that its evacuation moved away.")
@click.option("--plan", "plan_only", is_flag=True, help="Only say who would come back, and who could not.")
@click.option("--message", default="restore", metavar="TEXT", help="Why; the history says so.")
@parallel_option
@wait_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    hosts: tuple[str, ...],
    bring_back: bool,
    plan_only: bool,
    message: str,
    most_at_once: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Let guests come to HOST again, whoever cordoned it; with --bring-back those return that were moved away.

    Which those are, the records of its evacuations say: of all that belong to this maintenance, or of the latest one
    when the host has been opened already. Only guests that still exist and are elsewhere are moved, each if the rules
    allow it; the others say why not. An evacuation of HOST that is under way has to be ended first.

    \b
    Examples:
      droveway restore alpha
      droveway restore alpha beta --bring-back --plan
      droveway restore alpha --bring-back --max-parallel 2
    """
    names = sorted({check_name("host", host) for host in hosts})
    reason = check_reason(message)
    invocation = invocation_of(context)
    with invocation.ledger() as ledger:
        _check_known(ledger, names)
        if not (bring_back or plan_only):
            _say_opened(open_hosts(ledger, names), names, as_json=as_json)
            return
        plan = planned(ledger, names)
        if plan_only:
            click.echo(json.dumps(return_json(plan))) if as_json else show(return_table(plan))
            return
        bell = bell_for(invocation.settings)
        job = begin_return(ledger, bell, plan, reason, most_at_once=most_at_once or 0)
        if job is None:
            _say_opened(names, names, as_json=as_json)
        else:
            carry_on(ledger, bell, job, wait=wait, as_json=as_json)


def _check_known(ledger: Ledger, names: list[str]) -> None:
    """A host that is switched off may be opened as long as it is closed."""
    fleet = ledger.fleet()
    for name in names:
        if (Kept.CORDON, name) not in fleet.pins:
            check_known("host", name, fleet.hosts)


def _say_opened(opened: list[str], names: list[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"uncordoned": opened, "guests": {}}))
    else:
        click.echo(f"{', '.join(names)}: guests may come again; nobody is brought back")
