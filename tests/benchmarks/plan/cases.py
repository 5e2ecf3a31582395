"""What is planned: simulated clusters of twenty guests a host, each ten times the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tasks.planning.cluster import Cluster
from tasks.planning.evacuation import Solver, plan_evacuation
from tasks.planning.rebalancing import Policy, plan_rebalance


@dataclass(frozen=True, slots=True)
class Case:
    """One cluster and what is asked of it. `most` holds the bars: a figure's name and the most that it may be."""

    line: str
    run: Callable[[Cluster], dict[str, float]]
    most: Mapping[str, float] = field(default_factory=dict)
    quick: bool = True


def evacuate(number: int, solver: Solver = Solver.GREEDY) -> Callable[[Cluster], dict[str, float]]:
    """Empties `number` hosts from all over the cluster."""

    def run(cluster: Cluster) -> dict[str, float]:
        names = sorted(cluster.hosts)
        hosts = names[:: len(names) // number][:number]
        plan = plan_evacuation(cluster, hosts, solver=solver)
        leaving = sum(guest.host in hosts for guest in cluster.guests.values())
        return {
            "moves": len(plan.moves),
            "refused": len(plan.refused),
            "placed": leaving - len(plan.refused),
            "makespan": plan.schedule.makespan,
            "makespan_ratio": plan.schedule.makespan / plan.schedule.lower_bound,
            #: At least everybody who is on the hosts has to move.
            "moves_ratio": len(plan.moves) / leaving,
            "score_before": plan.before.total,
            "score_after": plan.after.total,
        }

    return run


def rebalance(cluster: Cluster) -> dict[str, float]:
    """One plan all the way: of the default policy, whose plan ends after a hundred moves, only that cap is lifted."""
    plan = plan_rebalance(cluster, Policy(most_moves=len(cluster.guests)), cluster.taken)
    return {
        "moves": len(plan.moves),
        "refused": 0,
        "makespan": plan.schedule.makespan,
        "makespan_ratio": plan.schedule.makespan / plan.schedule.lower_bound,
        "score_before": plan.before.total,
        "score_after": plan.after.total,
        "imbalance_before": plan.imbalance_before,
        "imbalance_after": plan.imbalance_after,
    }


_QUALITY = {"makespan_ratio": 1.05, "moves_ratio": 1.0, "refused": 0}
#: Nearly full hosts. Of these only what a solver is for is promised; the rest are figures.
_TIGHT = "groups={0},uplinks={1},labels=0.1,fill=0.95,seed=1"
_RACKS = "groups={0},uplinks={1},labels=0.1,fill=0.7,skew=0.6,seed=7"

CASES: Mapping[str, Case] = {
    "evacuate-1-of-100": Case(
        f"hosts=100,guests=2000,{_RACKS.format(200, 4)}",
        evacuate(1),
        _QUALITY,
    ),
    "evacuate-10-of-1000": Case(
        f"hosts=1000,guests=20000,{_RACKS.format(2000, 25)}",
        evacuate(10),
        {"seconds": 2, **_QUALITY},
    ),
    "evacuate-100-of-10000": Case(
        f"hosts=10000,guests=200000,{_RACKS.format(20_000, 250)}",
        evacuate(100),
        {"seconds": 60, "peak_gib": 2, **_QUALITY},
        quick=False,
    ),
    "rebalance-1000": Case(
        f"hosts=1000,guests=20000,{_RACKS.format(2000, 25)}",
        rebalance,
        {"seconds": 10, "makespan_ratio": 1.05, "imbalance_after": Policy().threshold},
        quick=False,
    ),
    "tight-4-of-100": Case(f"hosts=100,guests=2000,{_TIGHT.format(200, 4)}", evacuate(4)),
    "tight-4-of-100-cp-sat": Case(
        f"hosts=100,guests=2000,{_TIGHT.format(200, 4)}", evacuate(4, Solver.CP_SAT), {"refused": 0}
    ),
    "tight-10-of-1000": Case(f"hosts=1000,guests=20000,{_TIGHT.format(2000, 25)}", evacuate(10)),
    "tight-10-of-1000-cp-sat": Case(
        f"hosts=1000,guests=20000,{_TIGHT.format(2000, 25)}",
        evacuate(10, Solver.CP_SAT),
        {"refused": 0},
        quick=False,
    ),
}
