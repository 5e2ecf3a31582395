"""Locking guest memory, and what stays locked when that is broken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import MemoryLockError, PeerLostError
from tests.contract.transport_makers import MIB, make_ram
from workers.ram import Ram
from workers.ranges import PageRange
from workers.transports import memory_lock
from workers.transports.memory_lock import MemoryLock


@pytest.fixture
def ram() -> Iterator[Ram]:
    with closing(make_ram()) as ram:
        yield ram


def locked_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
    return int(line.split()[1]) << 10


def test_locking_that_is_broken_off_leaves_nothing_locked(ram: Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_lock, "_STEP", MIB)
    before, steps = locked_bytes(), []

    def abort_in_the_third_step() -> None:
        steps.append(locked_bytes() - before)
        if len(steps) == 3:
            raise PeerLostError("aborted")

    lock = MemoryLock(ram)
    with pytest.raises(PeerLostError):
        lock.add([PageRange(0, ram.size)], abort_in_the_third_step)
    assert steps == [0, MIB, 2 * MIB]
    assert locked_bytes() == before
    assert lock.size == 0


def test_memory_that_the_kernel_cannot_lock_is_an_error_with_its_numbers(ram: Ram) -> None:
    before = locked_bytes()
    lock = MemoryLock(ram)
    outside = PageRange(1 << 45, (1 << 45) + 4096)  # nothing is mapped there: ENOMEM, as on a host that is full
    with pytest.raises(MemoryLockError, match=str(MIB + 4096)):
        lock.add([PageRange(0, MIB), outside], lambda: None)
    assert locked_bytes() == before


def test_an_unmapped_guest_took_its_locks_with_it(ram: Ram) -> None:
    before = locked_bytes()
    lock = MemoryLock(ram)
    lock.add([PageRange(0, MIB)], lambda: None)
    assert lock.size == MIB
    ram.close()
    lock.close()
    lock.close()
    assert locked_bytes() == before
