"""From measurements to ratios, bars and the README's table. Pure.

As in the RDMA benchmark, ratios are taken within a round and their median counts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.rdma.report import Bar, Spread
from tests.benchmarks.vm.cases import CASES, CHANNELS, CONTESTANTS, DOWNTIME_LIMIT, MEMORY, WORK, Contestant

_LABELS = {
    "qemu": "QEMU `tcp`, multifd",
    "droveway": "Droveway `tcp`",
    "droveway-verified": "Droveway `tcp`, `verify-ram`",
}
_PEER, _OURS = "qemu", "droveway"
#: What is compared, and its name in a bar.
_BARS = (("total", "total"), ("felt", "felt-downtime"))

Results = Mapping[str, Any]
"""As tests/benchmarks/results/vm.json holds them: machine, date, runs."""


def runs(results: Results, case: str, contestant: str) -> list[dict[str, Any]]:
    """Its measurements that count."""
    return [
        run
        for run in results["runs"]
        if (run["case"], run["contestant"]) == (case, contestant) and "not_moved" not in run
    ]


def values(results: Results, case: str, contestant: str, what: str) -> dict[int, float]:
    """One thing that was measured, by round."""
    return {run["round"]: run[what] for run in runs(results, case, contestant) if run[what] is not None}


def ratio(results: Results, case: str, what: str) -> float | None:
    """Ours by QEMU's, the median over the rounds in which both have it."""
    ours, theirs = values(results, case, _OURS, what), values(results, case, _PEER, what)
    both = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
    return median(both) if both else None


def bars(results: Results) -> list[str]:
    """A line for every promise; also for one that could not be measured, since some contestant did not move it."""
    lines = []
    for case in CASES:
        for what, name in _BARS:
            found = ratio(results, case, what)
            named = f"{case}-{name}/qemu"
            lines.append(str(Bar(named, found, 1.0)) if found is not None else f"bar: {named} not measured")
    return lines


def broken(run: Mapping[str, Any]) -> bool:
    """Whether the guest did not survive this move: it found wrong pages, or says nothing any more."""
    return bool(run["bad"] or run["silent"])


def table(results: Results) -> str:
    """The README's table, in Markdown."""
    machine = results["machine"]
    loads = Spread.of([run["host_load"] for run in results["runs"]])
    rounds = max(run["round"] for run in results["runs"])
    lines = [
        _paragraph(
            f"A virtual machine of {MEMORY >> 30} GiB, {WORK >> 20} MiB of it in use, moved between two QEMUs of one "
            f"machine ({machine['cpus']} processors, Linux {machine['kernel']}, QEMU {machine['qemu']}, emulation), "
            f"downtime limit {DOWNTIME_LIMIT} ms; {rounds} interleaved rounds, load {loads.low:.0f} to "
            f"{loads.high:.0f} (`make bench-vm`, {results['date']}). QEMU with multifd, {CHANNELS} channels, no "
            "bandwidth limit; Droveway with as many channels. Medians:"
        ),
        "",
        "| | total | downtime, felt | said | processor time | of it the guest's | sent | rounds | guest wrote |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES.values():
        lines += [_row(results, case.name, case.words, one) for one in CONTESTANTS.values()]
    return "\n".join([*lines, "", _notes(results)])


def _row(results: Results, case: str, words: str, contestant: Contestant) -> str:
    head = f"| {words}: {_LABELS[contestant.name]} |"
    if not runs(results, case, contestant.name):
        return f"{head} did not end |" + " |" * 7

    def cell(what: str, scale: float, form: str) -> str:
        found = list(values(results, case, contestant.name, what).values())
        return f"{median(found) * scale:{form}}" if found else "?"

    low = Spread.of(list(values(results, case, contestant.name, "total").values()))
    cells = (
        f"{low.median:.2f} s ({low.low:.2f}-{low.high:.2f})",
        f"{cell('felt', 1e3, '.0f')} ms",
        f"{cell('downtime', 1e3, '.0f')} ms",
        f"{cell('cpu', 1, '.1f')} s",
        f"{cell('guest_cpu', 1, '.1f')} s",
        f"{cell('sent', 1 / (1 << 20), ',.0f')} MiB",
        cell("rounds", 1, ".0f"),
        f"{cell('written_meanwhile', 1e-6, '.0f')} MB/s",
    )
    return f"{head} {' | '.join(cells)} |"


def _notes(results: Results) -> str:
    usual = [run["usual_tick"] for run in results["runs"]]
    text = (
        "Total: from the request until both sides have let go, the start of the destination's QEMU included. Downtime "
        "as felt: the longest silence on the guest's console, on which it speaks every "
        f"{median(usual) * 1e3:.1f} ms otherwise. Processor time: of all processes of both sides within the total, the "
        "guest's own work, its emulation and its page faults included; that is shown beside."
    )
    for one in CONTESTANTS.values():
        made = [run for run in results["runs"] if run["contestant"] == one.name]
        if lost := [run for run in made if "not_moved" in run]:
            text += f" {_LABELS[one.name]}: {len(lost)} of {len(made)} moves did not come to an end."
        if harmed := [run for run in made if broken(run)]:
            text += f" {_LABELS[one.name]}: {len(harmed)} of {len(made)} guests did not survive."
    return _paragraph(text)


def order(number: int) -> Sequence[tuple[str, Contestant]]:
    """Case and contestant of each measurement of a round: backwards in every other one."""
    once = [(case, one) for case in CASES for one in CONTESTANTS.values()]
    return once if number % 2 else once[::-1]


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
