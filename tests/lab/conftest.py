"""Machines for all tests of this folder, booted when the first one asks for them: 7 s each on two quiet cores.

They end with the last of these tests: an idle one takes a tenth of a processor, which those of other folders need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.machine import Machine, link, why_no_lab
from tests.requirements import missing

_SWITCHED_ON = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _SWITCHED_ON.close()


def booted(machine: Machine, stack: ExitStack) -> Machine:
    """Switch it on until `stack` ends, or skip."""
    if reason := why_no_lab():
        missing(reason)
    return stack.enter_context(machine)


@pytest.fixture(scope="session")
def one_machine() -> Iterator[Machine]:
    """A machine with rxe0 on a dummy device: posting a write is also its transfer."""
    with _SWITCHED_ON:  # also when the run is cut off
        machine = booted(Machine("one"), _SWITCHED_ON)
        machine.network("loopback")
        yield machine


@pytest.fixture(scope="session")
def wired_machine() -> Iterator[Machine]:
    """A machine with rxe1 and rxe2 at the ends of a veth pair, veth1 and veth2: packets queue, and tc can lose them."""
    with _SWITCHED_ON:
        machine = booted(Machine("wired"), _SWITCHED_ON)
        machine.network("wired")
        yield machine


@pytest.fixture(scope="session")
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with rxe0 at the ends of a cable, 10.7.0.1 and 10.7.0.2."""
    with _SWITCHED_ON:
        one, two = (booted(Machine(f"host{end.number}", link=end), _SWITCHED_ON) for end in link())
        one.network("link", "1")
        two.network("link", "2")
        yield one, two
