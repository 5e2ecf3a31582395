"""QEMU's own migration over RDMA as engine=qemu begins it, in a lab machine."""

from __future__ import annotations

import pytest

from tests.lab.machine import Machine


@pytest.mark.lab
@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_it_moves_with_pin_all_off_and_on(one_machine: Machine) -> None:
    command = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "400"]
    ended = one_machine.run([*command, "tests/lab/inside/qemu_engine.py"], timeout=1100)
    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-2000:]}\n{one_machine.console_tail()}"
    assert "4 passed" in ended.stdout
