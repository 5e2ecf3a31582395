"""Rebalancing as readable files: a cluster, a policy, and what comes of it, word for word.

To write one: a comment that says what it shows, the cluster in the form of tasks/inventory/file.py, a line `rebalance
[KEY=VALUE...]` with what differs from the default policy, and after a line `expect:` the lines that `_said` makes.
Leave `expect:` empty and run it: the difference shows what the planner says now; keep it only once it is what an
operator would want. The policy's `hold` is over, no window is closed, nothing else is under way.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import unified_diff
from pathlib import Path

import pytest

from tasks.inventory.file import read
from tasks.planning.cluster import Cluster
from tasks.planning.rebalancing import Policy, imbalance_of, judge_tick, plan_rebalance
from tests.replay import replay

FILES = sorted((Path(__file__).parent / "rebalance").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_moved_is_what_the_file_expects(path: Path) -> None:
    asked, _, expected = path.read_text("utf-8").partition("\nexpect:\n")
    lines = asked.splitlines()
    assert lines[0].startswith("# "), "say what it shows"
    words = next(line for line in lines if line.split()[:1] == ["rebalance"]).split()[1:]
    cluster = read("\n".join(line for line in lines if line.split()[:1] != ["rebalance"]), path.name)
    found = _said(cluster, _policy(words))
    assert found == expected, "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "expected", "found"))


def test_there_are_enough_of_them_and_each_says_something_else() -> None:
    assert len(FILES) >= 10
    assert len({path.read_text("utf-8").partition("\nexpect:\n")[0] for path in FILES}) == len(FILES)


def _policy(words: list[str]) -> Policy:
    values = dict(word.split("=") for word in words)
    return replace(Policy(), **{key: type(getattr(Policy(), key))(value) for key, value in values.items()})


def _said(cluster: Cluster, policy: Policy) -> str:
    imbalance = imbalance_of(cluster)
    tick = judge_tick(imbalance, policy.hold - 1, policy, under_way=0, evacuating=False, window_open=True)
    if not tick.act:
        return f"left alone: {tick.reason}\n"
    plan = plan_rebalance(cluster, policy, cluster.taken)
    ended = replay(cluster, plan.schedule)
    assert {name: guest.host for name, guest in ended.guests.items()} == {
        name: guest.host for name, guest in plan.predicted.guests.items()
    }
    starts = {timed.move: timed.start for timed in plan.schedule.moves}
    lines = [f"move {one.guest} {one.source} -> {one.destination}, from {starts[one]:.1f} s" for one in plan.moves]
    lines.append(f"imbalance {plan.imbalance_before:.3f} -> {plan.imbalance_after:.3f}: {plan.reason}")
    return "".join(f"{line}\n" for line in lines)
