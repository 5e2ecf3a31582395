"""Suites that need an RDMA device, run in a lab machine on a wire that can lose packets."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.lab.fleet import byte_code
from tests.lab.machine import SHARE_IN_GUEST, Machine

#: Name → what pytest is given there, and the least number of tests that must have passed.
SUITES = {
    "every transport's promises": (["tests/contract/test_transport_conformance.py", "-k", "verbs"], 40),
    "every registration policy": (["tests/contract/test_registration_policies.py", "-k", "verbs"], 10),
    "faults": (["tests/lab/inside/verbs_faults.py"], 15),
    "endurance": (["tests/lab/inside/verbs_endurance.py"], 2),
}
_LONG = ("faults", "endurance")
#: Modules whose compiling there would take longer than the rest of their import.
IMPORTED_FOR_A_VM = "pytest tests.vm.machine workers.source workers.destination workers.transports.verbs"


@pytest.mark.lab
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "suite", [pytest.param(name, marks=pytest.mark.thorough if name in _LONG else ()) for name in SUITES]
)
def test_suite(wired_machine: Machine, suite: str) -> None:
    arguments, least = SUITES[suite]
    environment = {"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"}
    run(wired_machine, suite, ["--timeout", "200", *arguments], environment, least)


@pytest.mark.lab
@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_a_virtual_machine_over_rdma(one_machine: Machine) -> None:
    arguments = ["--timeout", "1100", "tests/lab/inside/verbs_vm.py"]
    run(one_machine, "a virtual machine", arguments, byte_code(IMPORTED_FOR_A_VM), 1)


def run(machine: Machine, suite: str, arguments: list[str], environment: dict[str, str], least: int) -> None:
    """pytest in the machine: all tests must pass, and be at least so many."""
    report = f"{suite.replace(' ', '-').replace(chr(39), '')}.xml"
    command = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = machine.run(
        [*command, f"--junit-xml={SHARE_IN_GUEST / report}", *arguments],
        timeout=1100,
        env=environment,
    )

    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-2000:]}\n{machine.console_tail()}"
    counts = ElementTree.parse(machine.share / report).getroot()[0].attrib
    assert int(counts["skipped"]) == 0
    assert int(counts["tests"]) >= least
