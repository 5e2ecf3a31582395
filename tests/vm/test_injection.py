"""A system call made inside a process that is not ours; whatever becomes of us, it lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.errors import HostError
from tests.requirements import missing
from tests.vm.machine import await_ticks, vm_spec
from workers.dirty import kernel
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.injection import left_userfaultfds, userfaultfd_in

#: Kills itself at its n-th ptrace request.
_INJECTOR = """
import os, sys
from workers.guests.qemu import injection
left, real = int(sys.argv[2]), injection._ptrace
def counted(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), 9)
    real(*arguments)
injection._ptrace = counted
os.close(injection.userfaultfd_in(int(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuGuest]:
    path = tmp_path_factory.mktemp("vm")
    guests = LocalGuests(path, path)
    guest = guests.start_qemu(vm_spec("vm1"))
    try:
        await_ticks(guest, 5)
        yield guest
    finally:
        guests.stop("vm1")


def goes_on(guest: QemuGuest) -> None:
    """The machine runs, QEMU's main loop answers, and the witness is content."""
    lines = await_ticks(guest, 3)
    assert guest.status() is RunState.RUNNING
    assert not lines[-1].bad


def test_a_userfaultfd_is_ours_alone_and_works(target: QemuGuest) -> None:
    descriptor = userfaultfd_in(target.pid)
    try:
        assert not left_userfaultfds(target.pid)
        assert "userfaultfd" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        kernel.handshake(descriptor, 0)
    finally:
        os.close(descriptor)
    goes_on(target)


def test_many_times_over_it_counts_on(target: QemuGuest) -> None:
    for _ in range(100):
        os.close(userfaultfd_in(target.pid))
    assert not left_userfaultfds(target.pid)
    goes_on(target)


def test_signals_that_come_meanwhile_harm_nothing(target: QemuGuest) -> None:
    done = threading.Event()

    def signals() -> None:
        while not done.wait(0.005):  # a main loop that never came to wait would be called stuck
            os.kill(target.pid, signal.SIGWINCH)
            os.kill(target.pid, signal.SIGCONT)

    sender = threading.Thread(target=signals)
    sender.start()
    try:
        for _ in range(100):
            os.close(userfaultfd_in(target.pid))
    finally:
        done.set()
        sender.join()
    goes_on(target)


@pytest.mark.parametrize("request_number", range(1, 20))
def test_killed_at_any_request_we_leave_it_running(target: QemuGuest, request_number: int) -> None:
    command = [sys.executable, "-c", _INJECTOR, str(target.pid), str(request_number)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    # A call takes 15 requests at least; more when the main loop was busy at first.
    assert ended.returncode == -signal.SIGKILL or (request_number > 15 and not ended.returncode)
    goes_on(target)
    assert len(left_userfaultfds(target.pid)) <= 1
    os.close(userfaultfd_in(target.pid))  # what the next worker does
    assert not left_userfaultfds(target.pid)
    goes_on(target)


def test_a_process_under_a_debugger_is_refused_and_named(target: QemuGuest) -> None:
    code = (
        "import sys, time; from workers.guests.qemu import injection as i\n"
        "i._ptrace(i._SEIZE, int(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(target.pid)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as debugger:
        assert debugger.stdout
        assert debugger.stdout.readline() == b"held\n"
        with pytest.raises(HostError, match="detach any debugger"):
            userfaultfd_in(target.pid)
        debugger.kill()
    goes_on(target)


def test_a_process_that_is_never_idle_is_left_alone() -> None:
    if os.geteuid():
        missing("a system call can only be made inside another process by root")
    with subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(60)"]) as sleeping:
        time.sleep(0.5)
        with pytest.raises(HostError, match="never idle"):
            userfaultfd_in(sleeping.pid)
        assert "TracerPid:\t0\n" in Path(f"/proc/{sleeping.pid}/status").read_text()
        assert sleeping.poll() is None
        sleeping.terminate()
        assert sleeping.wait(20) == -signal.SIGTERM
    with pytest.raises(HostError, match="cannot be attached to"):
        userfaultfd_in(sleeping.pid)
