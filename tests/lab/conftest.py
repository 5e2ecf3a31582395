"""Machines for all tests of this folder, booted when the first one asks for them: 7 s each on two quiet cores.

They end with the last of their tests: an idle one takes a tenth of a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.machine import Machine, link, why_no_lab
from tests.last_user import asked_for
from tests.requirements import missing

#: By fixture.
_SWITCHED_ON = {name: ExitStack() for name in ("one_machine", "wired_machine", "two_machines")}


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    for fixture, stack in _SWITCHED_ON.items():
        if not asked_for(fixture, Path(__file__).parent, nextitem):
            stack.close()


@pytest.fixture(scope="session")
def lab_built() -> None:
    """What machines are made from; without it, skip."""
    if reason := why_no_lab():
        missing(reason)


@pytest.fixture(scope="session")
def one_machine(lab_built: None) -> Iterator[Machine]:
    """A machine with rxe0 on a dummy device: posting a write is also its transfer."""
    with _SWITCHED_ON["one_machine"] as stack:  # also when the run is cut off
        machine = stack.enter_context(Machine("one"))
        machine.network("loopback")
        yield machine


@pytest.fixture(scope="session")
def wired_machine(lab_built: None) -> Iterator[Machine]:
    """A machine with rxe1 and rxe2 at the ends of a veth pair, veth1 and veth2: packets queue, and tc can lose them."""
    with _SWITCHED_ON["wired_machine"] as stack:
        machine = stack.enter_context(Machine("wired"))
        machine.network("wired")
        yield machine


@pytest.fixture(scope="session")
def two_machines(lab_built: None) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with rxe0 at the ends of a cable, 10.7.0.1 and 10.7.0.2."""
    with _SWITCHED_ON["two_machines"] as stack:
        one, two = (stack.enter_context(Machine(f"host{end.number}", link=end)) for end in link())
        one.network("link", "1")
        two.network("link", "2")
        yield one, two
