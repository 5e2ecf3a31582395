"""`droveway evacuate`: empty hosts, and follow it."""

from __future__ import annotations

import json

import click

from config.names import check_name
from tasks.cli.evacuating import conclude, follow
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import progress_console, show
from tasks.cli.pinning import DURATION, check_known, check_reason
from tasks.cli.rendering.plans import plan_json, plan_table
from tasks.evacuate import begin, check_solver, snapshot, take_step
from tasks.jobs import new_job_id
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import Solver, plan_evacuation


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what could not.")
@click.option("--message", default="evacuation", metavar="TEXT", help="Why; whoever is refused a place reads it.")
@click.option("--deadline", type=DURATION, metavar="TIME", help="Like 1h: nothing more is begun after that.")
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Moves at once; default: what slots allow.")
@click.option(
    "--solver",
    type=click.Choice([str(each) for each in Solver]),
    default=str(Solver.GREEDY),
    show_default=True,
    help="What looks for places; cp-sat (an extra) finds some where hosts are nearly full, and takes seconds to.",
)
@click.option("--wait/--detach", default=True, help="Follow it to its end (default), or only begin it.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    hosts: tuple[str, ...],
    *,
    plan_only: bool,
    message: str,
    deadline: float | None,
    max_parallel: int | None,
    solver: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Empty HOST: all its guests go elsewhere while they run. `drain` is the same.

    All hosts are cordoned at once, and stay so at the end (`droveway uncordon`). The workers carry it on by themselves:
    Ctrl-C only ends the following. Exit code 0 means that the hosts are empty.

    \b
    Examples:
      droveway evacuate alpha --plan
      droveway evacuate alpha --plan --solver cp-sat
      droveway evacuate alpha beta --message "new firmware" --deadline 1h
      job=$(droveway drain alpha --detach --json | jq -r .job); droveway show $job --watch
    """
    names = frozenset(check_name("host", host) for host in hosts)
    reason = check_reason(message)
    searcher = Solver(solver)
    check_solver(searcher)
    invocation = invocation_of(context)
    with invocation.ledger() as ledger:
        known = ledger.fleet().hosts
        for name in sorted(names):
            check_known("host", name, known)
        if plan_only:
            plan = plan_evacuation(ledger.cluster(), names, solver=searcher)
            click.echo(json.dumps(plan_json(plan))) if as_json else show(plan_table(plan))
            return
        until = None if deadline is None else ledger.now() + deadline
        job = Evacuation(new_job_id(), names, most_at_once=max_parallel or 0, deadline=until, solver=searcher)
        bell = bell_for(invocation.settings)
        begin(ledger, job, reason)
        take_step(ledger, bell, job.job)
        record = follow(ledger, bell, job.job, progress_console(as_json)) if wait else snapshot(ledger, job.job)
    if wait:
        conclude(record, as_json=as_json)
    elif as_json:
        click.echo(json.dumps(record.to_json()))
    else:
        click.echo(record.job)
        click.echo(f"{', '.join(sorted(names))} is emptied; follow it: droveway show {record.job} --watch", err=True)
