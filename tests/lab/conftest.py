"""Machines for the whole run, booted when the first test asks for them: 7 s each on two quiet cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.machine import Machine, link, why_no_lab
from tests.requirements import missing


def booted(machine: Machine, stack: ExitStack) -> Machine:
    """Switch it on until `stack` ends, or skip."""
    if reason := why_no_lab():
        missing(reason)
    return stack.enter_context(machine)


@pytest.fixture(scope="session")
def one_machine() -> Iterator[Machine]:
    """A machine with rxe0 on a dummy device: posting a write is also its transfer."""
    with ExitStack() as stack:
        machine = booted(Machine("one"), stack)
        machine.network("loopback")
        yield machine


@pytest.fixture(scope="session")
def wired_machine() -> Iterator[Machine]:
    """A machine with rxe1 and rxe2 at the ends of a veth pair, veth1 and veth2: packets queue, and tc can lose them."""
    with ExitStack() as stack:
        machine = booted(Machine("wired"), stack)
        machine.network("wired")
        yield machine


@pytest.fixture(scope="session")
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with rxe0 at the ends of a cable, 10.7.0.1 and 10.7.0.2."""
    with ExitStack() as stack:
        one, two = (booted(Machine(f"host{end.number}", link=end), stack) for end in link())
        one.network("link", "1")
        two.network("link", "2")
        yield one, two
