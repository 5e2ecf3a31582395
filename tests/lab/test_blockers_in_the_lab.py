"""Blockers that need an IOMMU, in a lab machine that has one."""

from __future__ import annotations

import pytest

from tests.lab.fleet import byte_code
from tests.lab.machine import Machine
from tests.lab.test_inside import run

_IMPORTED = "pytest tests.lab.machine workers.guests.local"


@pytest.mark.lab
@pytest.mark.thorough
@pytest.mark.timeout(400)
def test_a_passed_through_device_and_a_disk_that_qemu_drives_itself(lab_built: None) -> None:
    with Machine("spare", spare=True) as machine:
        arguments = ["--timeout", "200", "tests/lab/inside/passed_through.py"]
        run(machine, "passed through", arguments, byte_code(_IMPORTED), 4)
