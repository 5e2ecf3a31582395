"""What this process may lock and this host may take up, read from a real child and from made-up cgroup trees."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.transport_makers import MIB, make_ram
from workers.ranges import PageRange
from workers.registration.limits import LockLimits, cgroup_headroom, lock_limit, lock_limits
from workers.transports.memory_lock import MemoryLock

GIB = 1 << 30


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def headroom(tree: Path, membership: str) -> int | None:
    """Of a process whose /proc/self/cgroup is `membership`."""
    (tree / "proc/self/cgroup").write_text(membership)
    return cgroup_headroom(tree / "proc", tree / "cgroup")


def v2(directory: Path, limit: str, usage: int, stat: str = "anon 0\n") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(stat)


def v1(directory: Path, limit: int, usage: int, stat: str = "cache 0\n") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(stat)


# --- cgroups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slice_limit", "room"), [("max", 3 * GIB), (str(9 * GIB), 3 * GIB), (str(7 * GIB), 2 * GIB), (str(GIB), 0)]
)
def test_the_tightest_cgroup_of_the_chain_binds(tree: Path, slice_limit: str, room: int) -> None:
    v2(tree / "cgroup/system.slice", slice_limit, 5 * GIB)
    v2(tree / "cgroup/system.slice/droveway.service", str(4 * GIB), GIB)
    v2(tree / "cgroup/system.slice/another.service", str(MIB), 0)
    assert headroom(tree, "0::/system.slice/droveway.service\n") == room


def test_page_cache_is_given_up_before_the_limit_refuses_and_memory_of_ram_files_is_not(tree: Path) -> None:
    stat = f"anon 0\nfile {3 * GIB}\nshmem {GIB}\ninactive_file {GIB}\nactive_file {MIB}\n"
    v2(tree / "cgroup/a", str(4 * GIB), 3 * GIB, stat)
    assert headroom(tree, "0::/a\n") == 2 * GIB + MIB


def test_the_first_version_of_cgroups_is_read_too(tree: Path) -> None:
    v1(tree / "cgroup/memory", 0x7FFFFFFFFFFFF000, 8 * GIB)
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {MIB}\ntotal_active_file {MIB}\n"
    v1(tree / "cgroup/memory/pods", 2 * GIB, GIB, stat)
    v1(tree / "cgroup/memory/pods/p1", 0x7FFFFFFFFFFFF000, GIB)
    assert headroom(tree, "9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/pods/p1\n0::/\n") == GIB + 2 * MIB


def test_in_a_container_the_mount_begins_at_its_own_cgroup(tree: Path) -> None:
    v1(tree / "cgroup/memory", GIB, MIB)
    assert headroom(tree, "4:memory:/docker/0123abcd\n") == GIB - MIB
    assert headroom(tree, "4:memory:/../../other\n") == GIB - MIB


def test_without_a_limit_nothing_binds(tree: Path) -> None:
    assert cgroup_headroom(tree / "proc", tree / "cgroup") is None, "a kernel without cgroups"
    assert headroom(tree, "0::/\n") is None, "the root has no memory.max"
    v2(tree / "cgroup/a", "max", GIB)
    assert headroom(tree, "0::/a\n") is None


# --- this very process ------------------------------------------------------------------------------------------------


def test_the_limit_binds_a_process_without_privileges_less_what_it_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.test_limits import unprivileged; unprivileged()"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == [str(4 * MIB), str(4 * MIB), str(3 * MIB), "0"]


def unprivileged() -> None:
    """In a child: print the limit, and what is left of it with nothing, 1 MiB, and more than the limit locked."""
    with closing(make_ram()) as ram:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4 * MIB, 4 * MIB))
        if os.geteuid() == 0:
            os.seteuid(65534)
        print(lock_limit(), lock_limits().memlock)
        lock = MemoryLock(ram)
        lock.add([PageRange(0, MIB)], lambda: None)
        print(lock_limits().memlock)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
        print(lock_limits().memlock)
        os.seteuid(os.getuid())


def test_nothing_binds_a_process_that_may_lock_all(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    limits = lock_limits()
    assert limits.memlock is None
    assert limits.available is not None
    assert limits == LockLimits(cgroup=limits.cgroup, available=limits.available)
