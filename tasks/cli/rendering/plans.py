"""Plans and jobs as tables and as JSON. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.cli.quantities import seconds, size
from tasks.cli.rendering.tables import table
from tasks.jobs import JobRecord
from tasks.planning.evacuation import Plan
from tasks.planning.job import Fate
from tasks.planning.rebalancing import RebalancePlan
from tasks.planning.relocating import Relocation
from tasks.planning.returning import Return
from tasks.planning.rules import Refusal
from tasks.planning.waves import Schedule


def plan_table(plan: Plan) -> RenderableType:
    """Each move with its wave and times, each refusal with its reason, and how long it all takes."""
    made = _moves_table(plan.schedule)
    total = f"{len(plan.moves)} moves, about {seconds(plan.schedule.makespan)}; {len(plan.refused)} guests cannot go"
    parts: list[RenderableType] = [made] if plan.moves else []
    if plan.refused:
        parts.append(_refused_table(plan.refused))
    return Group(*parts, Text(total))


def plan_json(plan: Plan) -> dict[str, Any]:
    """Seconds and bytes."""
    return {
        "version": 1,
        "hosts": list(plan.hosts),
        "moves": _moves_json(plan.schedule),
        "refused": [{"guest": guest, "rule": each.rule, "why": each.why} for guest, each in plan.refused],
        "makespan_seconds": plan.schedule.makespan,
        "lower_bound_seconds": plan.schedule.lower_bound,
    }


def rebalance_table(plan: RebalancePlan) -> RenderableType:
    """Each move, the imbalance before and after, and why there are no more."""
    even = f"imbalance {plan.imbalance_before:.3f} → {plan.imbalance_after:.3f}"
    total = f"{len(plan.moves)} moves, about {seconds(plan.schedule.makespan)}; {even}; {plan.reason}"
    return Group(*([_moves_table(plan.schedule)] if plan.moves else []), Text(total))


def rebalance_json(plan: RebalancePlan) -> dict[str, Any]:
    """Seconds and bytes; imbalance as tasks.planning.rebalancing has it."""
    return {
        "version": 1,
        "moves": _moves_json(plan.schedule),
        "imbalance_before": plan.imbalance_before,
        "imbalance_after": plan.imbalance_after,
        "reason": plan.reason,
        "makespan_seconds": plan.schedule.makespan,
        "lower_bound_seconds": plan.schedule.lower_bound,
    }


def return_table(plan: Return) -> RenderableType:
    """Each move, and each guest that cannot come back now with its reason."""
    total = (
        f"{len(plan.moves)} guests come back to {', '.join(plan.hosts)}, about {seconds(plan.schedule.makespan)};"
        f" {len(plan.refused)} cannot now"
    )
    parts: list[RenderableType] = [_moves_table(plan.schedule)] if plan.moves else []
    if plan.refused:
        parts.append(_refused_table((move.guest, refusal) for move, refusal in plan.refused))
    return Group(*parts, Text(total))


def return_json(plan: Return) -> dict[str, Any]:
    """Seconds and bytes."""
    return {
        "version": 1,
        "hosts": list(plan.hosts),
        "moves": _moves_json(plan.schedule),
        "refused": [
            {"guest": move.guest, "source": move.source, "destination": move.destination, **asdict(refusal)}
            for move, refusal in plan.refused
        ],
        "makespan_seconds": plan.schedule.makespan,
        "lower_bound_seconds": plan.schedule.lower_bound,
    }


def _refused_table(refused: Iterable[tuple[str, Refusal]]) -> Table:
    kept = table("STAYS", "WHY")
    for guest, refusal in refused:
        kept.add_row(guest, Text(f"{refusal.rule}: {refusal.why}"))
    return kept


def _moves_table(schedule: Schedule) -> Table:
    made = table("GUEST", "FROM", "TO", ">WAVE", ">STARTS", ">TAKES", ">DOWNTIME", ">SENT")
    for timed in schedule.moves:
        took = timed.estimate
        times = seconds(timed.start), seconds(took.seconds), seconds(took.downtime), size(took.bytes)
        made.add_row(timed.move.guest, timed.move.source, timed.move.destination, str(timed.wave), *times)
    return made


def _moves_json(schedule: Schedule) -> list[dict[str, Any]]:
    return [
        {
            "guest": timed.move.guest,
            "source": timed.move.source,
            "destination": timed.move.destination,
            "wave": timed.wave,
            "start_seconds": timed.start,
            "seconds": timed.estimate.seconds,
            "downtime_seconds": timed.estimate.downtime,
            "bytes": timed.estimate.bytes,
            "converges": timed.estimate.converges,
        }
        for timed in schedule.moves
    ]


def job_table(job: JobRecord) -> RenderableType:
    """A job in full: a line for each guest; LEFT is the emptied host that it was on, WANTED where it is to be."""
    wanted = {move.guest: move.destination for move in job.asked.moves} if isinstance(job.asked, Relocation) else {}
    made = table("GUEST", "FATE", "WANTED" if wanted else "LEFT", "HOST", ">ATTEMPTS", "WHY")
    for name, each in sorted(job.guests.items()):
        other = wanted.get(name, each.home) or "-"
        made.add_row(name, str(each.fate), other, each.host or "-", str(each.attempts), Text(each.reason))
    why = f": {job.reason}" if job.reason else ""
    return Group(*([made] if job.guests else []), Text(f"{job.job}: {job.what} {job.state}{why}{_evened(job)}"))


def jobs_table(jobs: Sequence[JobRecord]) -> RenderableType:
    """One line each."""
    made = table("JOB", "WHAT", "STATE", ">MOVED", ">LEFT", "BEGUN", ">TOOK", "WHY")
    for job in jobs:
        moved = job.count(Fate.MOVED, Fate.GONE)
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created))
        took = "-" if job.finished is None else seconds(job.finished - job.created)
        left = len(job.guests) - moved
        why = (job.message if not job.reason else f"{job.message}: {job.reason}") + _evened(job)
        made.add_row(job.job, job.what, str(job.state), str(moved), str(left), begun, took, Text(why))
    return made


def _evened(job: JobRecord) -> str:
    if job.order.imbalance is None:
        return ""
    before, after = job.order.imbalance
    return f"; imbalance {before:.3f} → {after:.3f} as planned"
