"""`droveway evacuate`: empty hosts, and follow it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import click

from config.names import check_name
from tasks.cli.evacuating import conclude, follow
from tasks.cli.inventory import check_only_planned, cluster_of, fleet_options
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import progress_console, show
from tasks.cli.pinning import DURATION, check_known, check_reason
from tasks.cli.rendering.plans import plan_json, plan_table
from tasks.evacuate import begin, snapshot, take_step
from tasks.jobs import new_job_id
from tasks.planning.evacuating import Evacuation
from tasks.planning.evacuation import plan_evacuation


@click.command(cls=SettingsCommand)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be moved where, and what could not.")
@fleet_options
@click.option("--message", default="evacuation", metavar="TEXT", help="Why; whoever is refused a place reads it.")
@click.option("--deadline", type=DURATION, metavar="TIME", help="Like 1h: nothing more is begun after that.")
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Moves at once; default: what slots allow.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default), or only begin it.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    hosts: tuple[str, ...],
    *,
    plan_only: bool,
    path: Path | None,
    line: str | None,
    message: str,
    deadline: float | None,
    max_parallel: int | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Empty HOST: all its guests go elsewhere while they run. `drain` is the same.

    All hosts are cordoned at once, and stay so at the end (`droveway uncordon`). The workers carry it on by themselves:
    Ctrl-C only ends the following. Exit code 0 means that the hosts are empty.

    \b
    Examples:
      droveway evacuate alpha --plan
      droveway evacuate host-007 --plan --simulate hosts=100,guests=2000,seed=7
      droveway evacuate alpha beta --message "new firmware" --deadline 1h
      job=$(droveway drain alpha --detach --json | jq -r .job); droveway show $job --watch
    """
    names = frozenset(check_name("host", host) for host in hosts)
    reason = check_reason(message)
    check_only_planned(path, line, plan_only=plan_only)
    invocation = invocation_of(context)
    if plan_only:
        found = cluster_of(invocation, path, line)
        _check_all_known(names, found.hosts)
        plan = plan_evacuation(found, names)
        click.echo(json.dumps(plan_json(plan))) if as_json else show(plan_table(plan))
        return
    with invocation.ledger() as ledger:
        _check_all_known(names, ledger.fleet().hosts)
        until = None if deadline is None else ledger.now() + deadline
        job = Evacuation(new_job_id(), names, most_at_once=max_parallel or 0, deadline=until)
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


def _check_all_known(names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(names):
        check_known("host", name, known)
