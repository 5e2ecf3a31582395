"""Suites that need an RDMA device, run in a lab machine on a wire that can lose packets."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.lab.machine import SHARE_IN_GUEST, Machine

#: Name → what pytest is given there, and the least number of tests that must have passed.
SUITES = {
    "every transport's promises": (["tests/contract/test_transport_conformance.py", "-k", "verbs"], 40),
    "every registration policy": (["tests/contract/test_registration_policies.py", "-k", "verbs"], 10),
    "faults": (["tests/lab/inside/verbs_faults.py"], 15),
    "endurance": (["tests/lab/inside/verbs_endurance.py"], 2),
}


@pytest.mark.lab
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("suite", SUITES)
def test_suite(wired_machine: Machine, suite: str) -> None:
    arguments, least = SUITES[suite]
    report = f"{suite.replace(' ', '-').replace(chr(39), '')}.xml"
    command = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "200"]
    ended = wired_machine.run(
        [*command, f"--junit-xml={SHARE_IN_GUEST / report}", *arguments],
        timeout=1100,
        env={"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"},
    )

    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-2000:]}\n{wired_machine.console_tail()}"
    counts = ElementTree.parse(wired_machine.share / report).getroot()[0].attrib
    assert int(counts["skipped"]) == 0
    assert int(counts["tests"]) >= least
