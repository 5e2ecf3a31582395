"""The memory guest as a real process: its life on a host, its control socket, its testimony, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from config.errors import HostError, RefusedError, RequestError
from tasks.app import owned_guests
from workers.dirty import kernel
from workers.dirty.mappings import guest_mappings
from workers.guests import memory as memory_module
from workers.guests import memory_process
from workers.guests.contract import Guest, RunState
from workers.guests.control import CLIENTS, LINE_LIMIT
from workers.guests.load import Loads
from workers.guests.local import LocalGuests
from workers.guests.memory import MemoryGuest
from workers.guests.memory_content import Findings
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.memory_workload import Workload
from workers.guests.process_identity import ProcessIdentity
from workers.ram import Ram
from workers.ranges import PAGE_SIZE

RAM_DIR = Path("/dev/shm")
SPEC = MemoryGuestSpec(f"witness-{os.getpid()}", 1024 * PAGE_SIZE, dirty_rate=8_000_000, zeros=0.0)


class Hosts:
    """Hosts on this machine, whose guests are ended and whose traces are looked for when the test is over."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._before = set(RAM_DIR.iterdir())
        self._made: dict[str, LocalGuests] = {}

    def __getitem__(self, name: str) -> LocalGuests:
        return self._made.setdefault(name, LocalGuests(self._root / name, RAM_DIR))

    def directory(self, name: str, guest: str = SPEC.name) -> Path:
        return self._root / name / "guests" / guest

    def ram_files(self) -> list[Path]:
        return [path for path in set(RAM_DIR.iterdir()) - self._before if SPEC.name in path.name]

    def end(self) -> None:
        for host in self._made.values():
            for guest in host.list():
                host.stop(guest.name)
            assert host.list() == []
        assert self.ram_files() == []


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def guest(hosts: Hosts) -> MemoryGuest:
    started = hosts["a"].start(SPEC)
    started.wait_filled(30)
    return started


def until(happened: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that must come, however busy the machine is."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def mapped(guest: Guest) -> Iterator[Ram]:
    ram = Ram(guest.block_files())
    try:
        yield ram
    finally:
        ram.close()


def pages(ram: Ram) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.frombuffer(ram.view, np.uint64).reshape(-1, PAGE_SIZE // 8)


def full_check(guest: MemoryGuest) -> dict[str, Any]:
    found: dict[str, Any] = guest.query_oracle(full=True)["full_check"]
    return found


# --- its work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["random", "sequential", "hot"])
def test_a_guest_left_alone_works_and_finds_itself_clean(hosts: Hosts, pattern: str) -> None:
    guest = hosts["a"].start(replace(SPEC, pattern=pattern, zeros=0.2))
    guest.wait_filled(30)
    used = guest.query_oracle()["used_bytes"]
    until(lambda: guest.query_oracle()["written_bytes"] > 3 * used)
    report = guest.query_oracle(full=True)
    assert report["corrupt"] == report["full_check"]["corrupt"] == 0
    assert report["full_check"]["pages_checked"] * PAGE_SIZE == used
    assert report["pages_checked"] > report["full_check"]["pages_checked"]
    assert report["dirty_rate_actual"] > 0
    assert report["longest_gap_seconds"] >= report["gap_p99_seconds"] >= report["gap_p50_seconds"] > 0
    assert report["move_gap_seconds"] is None
    assert guest.status() is RunState.RUNNING


def test_damage_from_outside_is_found_while_the_guest_runs(guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        ram.view[7 * PAGE_SIZE + 1234] ^= 0xFF
    until(lambda: guest.query_oracle()["corrupt"] == 1)
    assert guest.query_oracle()["corrupt_kinds"] == {"garbled": 1}
    assert guest.query_oracle()["examples"][0]["page"] == 7


def test_an_older_copy_of_a_page_put_back_is_found_stale(guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        guest.stop()
        before = pages(ram).copy()
        guest.cont()
        until(lambda: pages(ram)[7, 2] > before[7, 2])
        guest.stop()
        pages(ram)[7] = before[7]
    assert full_check(guest)["corrupt_kinds"] == {"stale": 1}


def test_a_lost_page_and_two_swapped_pages_are_named(guest: MemoryGuest) -> None:
    guest.stop()
    with mapped(guest) as ram:
        words = pages(ram)
        words[3] = 0
        words[[5, 9]] = words[[9, 5]]
    assert full_check(guest)["corrupt_kinds"] == {"lost": 1, "misplaced": 2}
    assert guest.status() is RunState.PAUSED


# --- pausing ----------------------------------------------------------------------------------------------------------


def test_nothing_is_written_between_stop_and_cont(guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        for _ in range(10):
            guest.stop()
            before = bytes(ram.view)
            time.sleep(0.02)
            assert bytes(ram.view) == before
            guest.cont()
        until(lambda: bytes(ram.view) != before)


def test_stop_and_cont_are_harmless_when_repeated(guest: MemoryGuest) -> None:
    for _ in range(2):
        guest.stop()
        assert guest.status() is RunState.PAUSED
    for _ in range(2):
        guest.cont()
        assert guest.status() is RunState.RUNNING


def test_a_pause_is_felt_as_a_gap(guest: MemoryGuest) -> None:
    guest.reset_gap()
    guest.stop()
    time.sleep(0.5)
    guest.cont()
    until(lambda: guest.query_oracle()["longest_gap_seconds"] >= 0.5)


def test_time_held_by_the_guests_own_full_check_is_not_felt_as_a_gap(
    guest: MemoryGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.stop()
    clock, late = memory_process.now, 0
    monkeypatch.setattr(memory_process, "now", lambda: clock() + late)

    def a_check_that_takes_an_hour(workload: Workload) -> tuple[Findings, int]:
        nonlocal late
        late += 3600 * 10**9
        return Findings(), 0

    monkeypatch.setattr(Workload, "check_all", a_check_that_takes_an_hour)
    with mapped(guest) as ram:
        machine = memory_process.MemoryMachine(replace(SPEC, name="in-process"), ram, RunState.RUNNING)
        machine.commands["query-oracle"]({"full": True})
        until(lambda: machine.commands["query-oracle"]({}).value["written_bytes"])
        machine.commands["stop"]({})
        assert machine.commands["query-oracle"]({}).value["longest_gap_seconds"] < 3600


def test_stop_waits_for_a_write_that_a_tracker_holds_and_the_guest_answers_meanwhile(guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        descriptor = guest.userfaultfd()
        try:
            kernel.handshake(descriptor, kernel.PAGEFAULT_FLAG_WP | kernel.WP_HUGETLBFS_SHMEM)
            for mapping in guest_mappings(guest, ram):
                kernel.register(descriptor, mapping.address, mapping.size)
                kernel.write_protect(descriptor, mapping.address, mapping.size)
            until(lambda: kernel.read_faults(descriptor))

            stopping = threading.Thread(target=guest.stop)
            stopping.start()
            for _ in range(5):
                assert guest.status() is RunState.RUNNING
                assert guest.query_oracle()["corrupt"] == 0
            assert stopping.is_alive()
            before = bytes(ram.view)

            for mapping in guest_mappings(guest, ram):
                kernel.write_unprotect(descriptor, mapping.address, mapping.size)
            stopping.join(30)
            assert guest.status() is RunState.PAUSED
            assert bytes(ram.view) != before  # the write that was held has landed
        finally:
            os.close(descriptor)
    assert full_check(guest)["corrupt"] == 0
    guest.cont()


def descriptors(guest: MemoryGuest) -> list[str]:
    """What the guest has open. It closes connections meanwhile: one may go between the list and the look."""
    links = []
    for descriptor in Path(f"/proc/{guest.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return links


def test_a_tracker_that_dies_leaves_the_guest_running(guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        descriptor = guest.userfaultfd()
        kernel.handshake(descriptor, kernel.PAGEFAULT_FLAG_WP | kernel.WP_HUGETLBFS_SHMEM)
        (mapping,) = guest_mappings(guest, ram)
        kernel.register(descriptor, mapping.address, mapping.size)
        kernel.write_protect(descriptor, mapping.address, mapping.size)
        until(lambda: kernel.read_faults(descriptor))
        os.close(descriptor)
    written = guest.query_oracle()["written_bytes"]
    until(lambda: guest.query_oracle()["written_bytes"] > written)
    assert not [link for link in descriptors(guest) if "userfaultfd" in link]


def test_a_guest_can_be_ended_while_its_write_waits_for_a_tracker(hosts: Hosts, guest: MemoryGuest) -> None:
    with mapped(guest) as ram:
        descriptor = guest.userfaultfd()
        kernel.handshake(descriptor, kernel.PAGEFAULT_FLAG_WP | kernel.WP_HUGETLBFS_SHMEM)
        (mapping,) = guest_mappings(guest, ram)
        kernel.register(descriptor, mapping.address, mapping.size)
        kernel.write_protect(descriptor, mapping.address, mapping.size)
        until(lambda: kernel.read_faults(descriptor))
        guest.quit()
        os.close(descriptor)
    assert hosts["a"].list() == []


# --- moving -----------------------------------------------------------------------------------------------------------


def move(hosts: Hosts, guest: MemoryGuest, but: int | None = None) -> MemoryGuest:
    """Pause, copy RAM (but for one page: as it was before the last write to it), hand over the state."""
    twin = hosts["b"].incoming(json.loads(json.dumps(guest.description())))
    assert isinstance(twin, MemoryGuest)
    assert twin.status() is RunState.INMIGRATE
    with mapped(guest) as ram, mapped(twin) as copy:
        assert not copy.populated()
        guest.stop()
        if but is not None:
            old = pages(ram)[but].copy()
            guest.cont()
            until(lambda: pages(ram)[but, 2] > old[2])
            guest.stop()
        for start, end in ram.populated():
            copy.view[start:end] = ram.view[start:end]
        if but is not None:
            pages(copy)[but] = old
    twin.load_state(guest.save_state())
    assert twin.status() is RunState.PAUSED
    return twin


def test_the_twin_goes_on_where_the_source_stopped(hosts: Hosts, guest: MemoryGuest) -> None:
    twin = move(hosts, guest)
    before = guest.query_oracle()
    guest.quit()
    assert twin.query_oracle()["sequence"] == before["sequence"]
    twin.reset_gap()
    twin.cont()
    until(lambda: twin.query_oracle()["written_bytes"] > before["written_bytes"] + before["used_bytes"])
    report = twin.query_oracle(full=True)
    assert (report["corrupt"], report["full_check"]["corrupt"], report["full_check"]["untouched_zero_pages"]) == (
        0,
        0,
        0,
    )
    assert report["longest_gap_seconds"] >= report["move_gap_seconds"] > 0
    assert report["pages_checked"] > before["pages_checked"]


def test_a_single_write_left_behind_is_seen_at_the_destination(hosts: Hosts, guest: MemoryGuest) -> None:
    twin = move(hosts, guest, but=11)
    found = full_check(twin)
    assert found["corrupt_kinds"] == {"stale": 1}
    assert found["examples"][0]["page"] == 11


def test_a_write_after_the_state_was_saved_is_seen_at_the_destination(hosts: Hosts, guest: MemoryGuest) -> None:
    twin = move(hosts, guest)
    guest.cont()  # two owners: what a broken handover does
    with mapped(guest) as ram, mapped(twin) as copy:
        until(lambda: pages(ram)[11, 2] > pages(copy)[11, 2])
        guest.stop()
        pages(copy)[11] = pages(ram)[11]
    assert full_check(twin)["corrupt_kinds"] == {"newer": 1}


def test_a_guest_that_was_not_moved_after_all_goes_on(hosts: Hosts, guest: MemoryGuest) -> None:
    twin = move(hosts, guest)
    twin.quit()
    guest.cont()
    written = guest.query_oracle()["written_bytes"]
    until(lambda: guest.query_oracle()["written_bytes"] > written)
    assert full_check(guest)["corrupt"] == 0


def test_an_incoming_guest_refuses_to_run_before_its_state_came(hosts: Hosts, guest: MemoryGuest) -> None:
    twin = hosts["b"].incoming(guest.description())
    with pytest.raises(HostError, match="device state"):
        twin.cont()
    with pytest.raises(HostError, match="not paused"):
        twin.save_state()
    assert twin.status() is RunState.INMIGRATE


@pytest.mark.parametrize("state", [b"", b"\xff", b"{}", b"[]", b'{"version": 99, "spec": {}}', b"[" * 50_000])
def test_a_state_that_is_junk_is_refused_and_a_good_one_still_fits(
    hosts: Hosts, guest: MemoryGuest, state: bytes
) -> None:
    twin = hosts["b"].incoming(guest.description())
    with pytest.raises(HostError):
        twin.load_state(state)
    assert twin.status() is RunState.INMIGRATE
    guest.stop()
    twin.load_state(guest.save_state())


def test_the_state_of_another_guest_is_refused(hosts: Hosts, guest: MemoryGuest) -> None:
    other = hosts["a"].start(replace(SPEC, name=f"{SPEC.name}-b", seed=1))
    other.stop()
    twin = hosts["b"].incoming(guest.description())
    with pytest.raises(HostError, match="another guest"):
        twin.load_state(other.save_state())


def test_a_running_guest_saves_nothing_and_loads_nothing(guest: MemoryGuest) -> None:
    with pytest.raises(HostError, match="stop"):
        guest.save_state()
    with pytest.raises(HostError, match="incoming"):
        guest.load_state(b"{}")


@pytest.mark.parametrize(
    "change",
    [{"kind": "zx81"}, {"kind": None}, {"name": "other"}, {"shape": None}, {"blocks": []}, {"shape": {"name": "x"}}],
)
def test_a_description_that_does_not_add_up_starts_nothing(
    hosts: Hosts, guest: MemoryGuest, change: dict[str, Any]
) -> None:
    with pytest.raises(RequestError):
        hosts["b"].incoming(guest.description() | change)
    assert hosts["b"].list() == []


# --- its control socket -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(hosts: Hosts) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(hosts.directory("a") / "control"))
        yield connection


@pytest.mark.parametrize(
    "junk",
    [b"\n", b"\xff\xfe\n", b"[]\n", b'{"execute": ["stop"]}\n', b'{"execute": "rm"}\n', b"[" * 60_000 + b"\n"],
)
def test_junk_gets_a_sentence_and_harms_nobody(hosts: Hosts, guest: MemoryGuest, junk: bytes) -> None:
    with connected(hosts) as connection, connection.makefile("rb") as answers:
        assert json.loads(answers.readline()) == {"guest": SPEC.name, "control": 1}
        connection.sendall(junk)
        assert json.loads(answers.readline())["error"]["desc"]
    assert guest.status() is RunState.RUNNING


def test_an_endless_line_is_cut_off(hosts: Hosts, guest: MemoryGuest) -> None:
    with connected(hosts) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                connection.sendall(b"x" * LINE_LIMIT)
        with contextlib.suppress(ConnectionResetError):
            until(lambda: not connection.recv(1 << 20))
    assert guest.status() is RunState.RUNNING


def test_clients_that_hang_lock_nobody_out(hosts: Hosts, guest: MemoryGuest) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * CLIENTS):
            stack.enter_context(connected(hosts)).sendall(b'{"execute": ')
        for _ in range(CLIENTS):
            assert guest.status() is RunState.RUNNING
        with connected(hosts) as last:  # served after all that came before it
            assert last.recv(1)
            until(lambda: len(list(Path(f"/proc/{guest.pid}/task").iterdir())) <= CLIENTS + 2)


def test_one_connection_may_ask_many_things(hosts: Hosts, guest: MemoryGuest) -> None:
    with connected(hosts) as connection, connection.makefile("rb") as answers:
        answers.readline()
        connection.sendall(b'{"execute": "stop"}\n{"execute": "query-status"}\n')
        assert [json.loads(answers.readline())["return"] for _ in range(2)] == [{}, {"status": "paused"}]


# --- its life on a host -----------------------------------------------------------------------------------------------


def test_two_hosts_on_one_machine_have_guests_of_one_name(hosts: Hosts, guest: MemoryGuest) -> None:
    other = hosts["b"].start(SPEC)
    assert other.pid != guest.pid
    assert len(hosts.ram_files()) == 2
    other.quit()
    assert guest.status() is RunState.RUNNING


def test_a_guest_is_found_again_by_its_name(hosts: Hosts, guest: MemoryGuest) -> None:
    found = hosts["a"].open(SPEC.name)
    assert (found.pid, found.status(), found.kind) == (guest.pid, RunState.RUNNING, "memory")
    (line,) = hosts["a"].list()
    assert (line.name, line.memory, line.status, line.pid) == (SPEC.name, SPEC.memory, RunState.RUNNING, guest.pid)
    for name in ("nobody", f"../guests/{SPEC.name}", ".", ""):
        with pytest.raises(RefusedError, match="no guest named"):
            hosts["a"].open(name)


def test_a_guest_outlives_who_started_it(hosts: Hosts, tmp_path: Path) -> None:
    start = (
        "import sys; from pathlib import Path; from workers.guests.local import LocalGuests;"
        "from workers.guests.memory_spec import MemoryGuestSpec;"
        f"LocalGuests(Path(sys.argv[1]), Path({str(RAM_DIR)!r})).start(MemoryGuestSpec({SPEC.name!r}, 65536))"
    )
    subprocess.run([sys.executable, "-c", start, str(tmp_path / "a")], check=True, timeout=60)
    guest = hosts["a"].open(SPEC.name)
    assert guest.status() is RunState.RUNNING
    assert os.getsid(guest.pid) != os.getsid(0)


def test_a_second_guest_of_the_name_is_refused_and_the_first_is_unharmed(hosts: Hosts, guest: MemoryGuest) -> None:
    with pytest.raises(RefusedError) as refused:
        hosts["a"].start(SPEC)
    assert refused.value.reason == "guest-exists"
    assert guest.status() is RunState.RUNNING
    assert len(hosts.ram_files()) == 1


def test_quit_leaves_nothing_and_is_harmless_when_repeated(hosts: Hosts, guest: MemoryGuest) -> None:
    pid = guest.pid
    guest.quit()
    guest.quit()
    assert ProcessIdentity.of(pid) is None
    assert hosts.ram_files() == []
    assert not hosts.directory("a").exists()
    for ask in (guest.status, guest.stop, guest.block_files, guest.description, guest.userfaultfd):
        with pytest.raises(HostError, match="no process"):
            ask()


def test_sigterm_ends_a_guest_as_quit_does(hosts: Hosts, guest: MemoryGuest) -> None:
    os.kill(guest.pid, signal.SIGTERM)
    until(lambda: not hosts.directory("a").exists())
    assert hosts.ram_files() == []


def test_a_killed_guest_is_listed_as_dead_and_can_be_cleaned(hosts: Hosts, guest: MemoryGuest) -> None:
    os.kill(guest.pid, signal.SIGKILL)
    until(lambda: not guest.alive)
    (line,) = hosts["a"].list()
    assert (line.name, line.kind, line.status, line.pid) == (SPEC.name, "memory", None, None)
    assert "no process" in line.problem
    with pytest.raises(RefusedError):
        hosts["a"].start(SPEC)
    hosts["a"].stop(SPEC.name)
    assert hosts.ram_files() == []
    hosts["a"].start(SPEC)


def test_a_guest_that_hangs_is_ended_all_the_same(
    hosts: Hosts, guest: MemoryGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "QUIT_SECONDS", 0.2)
    os.kill(guest.pid, signal.SIGSTOP)
    guest.quit()
    assert hosts["a"].list() == []


def test_a_reused_process_id_is_not_taken_for_the_guest_nor_killed(hosts: Hosts, guest: MemoryGuest) -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine is not None
    real = ProcessIdentity.read(hosts.directory("a") / "pid")
    assert real is not None
    replace(mine, start_time=mine.start_time - 1).write(hosts.directory("a") / "pid")
    confused = hosts["a"].open(SPEC.name)
    with pytest.raises(HostError, match="no process"):
        _ = confused.pid
    confused.quit()  # this test would not live to see the next line
    assert real.kill()


def test_killing_spares_a_process_that_only_has_the_same_id() -> None:
    with subprocess.Popen(["/usr/bin/sleep", "60"]) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        assert replace(identity, start_time=identity.start_time - 1).kill()
        assert replace(identity, boot_id="another").wait(0)
        assert not identity.wait(0)
        assert identity.kill()
        assert child.wait() == -signal.SIGKILL


def test_an_old_handle_does_not_end_a_later_guest_of_the_name(hosts: Hosts, guest: MemoryGuest) -> None:
    guest.quit()
    later = hosts["a"].start(SPEC)
    guest.quit()
    assert later.status() is RunState.RUNNING


def test_a_state_directory_too_deep_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    with pytest.raises(HostError, match="107"):
        LocalGuests(deep, RAM_DIR).start(SPEC)
    assert not deep.exists()


def test_a_start_without_room_or_ram_directory_leaves_nothing(hosts: Hosts, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="left"):
        hosts["a"].start(replace(SPEC, memory=1 << 50))
    with pytest.raises(HostError, match="cannot be made"):
        LocalGuests(tmp_path / "a", tmp_path / "missing").start(SPEC)
    assert hosts["a"].list() == []


def test_a_process_that_cannot_come_up_is_told_of_and_leaves_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_ROOT", Path("/nonexistent"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "executable", "/usr/bin/false")
    with pytest.raises(HostError, match="did not start"):
        hosts["a"].start(SPEC)
    assert hosts["a"].list() == []
    assert hosts.ram_files() == []


def test_what_a_host_owns_is_told_without_asking_a_guest_that_may_not_answer(
    hosts: Hosts, guest: MemoryGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[MemoryGuest] = []
    monkeypatch.setattr(MemoryGuest, "status", asked.append)
    settings: Any = SimpleNamespace(host=SimpleNamespace(state_dir=tmp_path / "a"))
    assert [each.name for each in owned_guests(settings, hosts["a"], Loads())] == [guest.name]
    assert not asked


def test_a_leftover_ram_file_is_never_taken_over(hosts: Hosts, guest: MemoryGuest) -> None:
    (path,) = hosts.ram_files()
    guest.quit()
    path.write_bytes(b"somebody's")
    try:
        with pytest.raises(HostError, match="there already"):
            hosts["a"].start(SPEC)
        assert path.read_bytes() == b"somebody's"
    finally:
        path.unlink()


def test_a_start_that_was_cut_off_at_once_can_be_cleaned(hosts: Hosts) -> None:
    hosts.directory("a").mkdir(parents=True)
    (line,) = hosts["a"].list()
    assert line.status is None
    hosts["a"].stop(SPEC.name)
    assert hosts["a"].list() == []
