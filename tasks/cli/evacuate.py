"""`droveway evacuate`: empty hosts, and follow it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import click

from config.errors import RequestError
from config.names import check_name
from tasks.cli.inventory import check_only_planned, cluster_of, fleet_options
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.job_following import apply_option, carry_on, parallel_option, wait_option
from tasks.cli.output import show
from tasks.cli.pinning import DURATION, check_known, check_reason
from tasks.cli.rendering.plans import plan_json, plan_table
from tasks.evacuate import begin
from tasks.jobs import Kind, new_job_id
from tasks.plan_file import MAX_BYTES, read_evacuation
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import Solver, plan_evacuation
from tasks.steps import check_solver, take_step


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="[HOST...]", nargs=-1)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what could not.")
@fleet_options
@apply_option
@click.option("--message", default="evacuation", metavar="TEXT", help="Why; whoever is refused a place reads it.")
@click.option("--deadline", type=DURATION, metavar="TIME", help="Like 1h: nothing more is begun after that.")
@parallel_option
@click.option(
    "--solver",
    type=click.Choice([str(each) for each in Solver]),
    default=str(Solver.GREEDY),
    show_default=True,
    help="What looks for places; cp-sat (an extra) finds some where hosts are nearly full, and takes seconds to.",
)
@wait_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    hosts: tuple[str, ...],
    plan_only: bool,
    path: Path | None,
    line: str | None,
    kept: BinaryIO | None,
    message: str,
    deadline: float | None,
    most_at_once: int | None,
    solver: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Empty HOST: all its guests go elsewhere while they run. `drain` is the same.

    All hosts are cordoned at once, and stay so at the end (`droveway restore` opens them). The workers carry it on by
    themselves: Ctrl-C only ends the following. Exit code 0 means that the hosts are empty.

    With --apply each guest is first sent to where the plan says; where the rules do not allow that any more, it is
    planned anew, and the guest's reason says so.

    \b
    Examples:
      droveway evacuate alpha --plan
      droveway evacuate host-007 --plan --simulate hosts=100,guests=2000,seed=7
      droveway evacuate alpha --plan --solver cp-sat
      droveway evacuate alpha beta --message "new firmware" --deadline 1h
      droveway evacuate alpha --plan --json > plan.json && droveway evacuate --apply plan.json
      job=$(droveway drain alpha --detach --json | jq -r .job); droveway show $job --watch
    """
    names = frozenset(check_name("host", host) for host in hosts)
    reason = check_reason(message)
    searcher = Solver(solver)
    check_solver(searcher)
    check_only_planned(path, line, plan_only=plan_only)
    if kept and plan_only:
        raise RequestError("--plan makes a plan, --apply follows one that is there; give one of them")
    planned = read_evacuation(kept.read(MAX_BYTES + 1), names) if kept else None
    names = frozenset(planned.hosts) if planned else names
    if not names:
        raise RequestError("name the hosts to empty (HOST...), or give a plan that does (--apply FILE)")
    invocation = invocation_of(context)
    if plan_only:
        found = cluster_of(invocation, path, line)
        _check_all_known(names, found.hosts)
        plan = plan_evacuation(found, names, solver=searcher)
        click.echo(json.dumps(plan_json(plan))) if as_json else show(plan_table(plan))
        return
    with invocation.ledger() as ledger:
        _check_all_known(names, ledger.fleet().hosts)
        job = Evacuation(
            new_job_id(Kind.EVACUATION),
            names,
            most_at_once=most_at_once or 0,
            deadline=None if deadline is None else ledger.now() + deadline,
            solver=searcher,
            planned={each.guest: each.destination for each in planned.moves} if planned else {},
        )
        bell = bell_for(invocation.settings)
        begin(ledger, job, reason)
        take_step(ledger, bell, job.job)
        carry_on(ledger, bell, job.job, wait=wait, as_json=as_json)


def _check_all_known(names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(names):
        check_known("host", name, known)
