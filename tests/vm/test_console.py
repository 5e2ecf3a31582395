"""`droveway guest console` in a terminal and without one, against a real QEMU."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from config.settings import RedisSettings
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.records import LocalGuest
from tests.integration.test_cli_migration import ROOT, Command
from tests.redis_server import RedisServer
from tests.until import until
from tests.vm.machine import await_ticks, vm_spec
from workers.guests.qemu.guest import QemuGuest


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """Two hosts without workers: nothing here needs one."""
    server = RedisServer()
    server.start()
    try:
        with LocalFleet(RedisSettings.model_validate({"url": server.url}), ram_bytes=256 << 20) as made:
            yield made
    finally:
        server.close()


@pytest.fixture
def guest(fleet: LocalFleet) -> Iterator[QemuGuest]:
    made = fleet.hosts["alpha"].guests.start_qemu(vm_spec("vm1"))
    await_ticks(made, 5)
    yield made
    made.close()
    if fleet.hosts["alpha"].guests.holds("vm1"):
        fleet.hosts["alpha"].guests.stop("vm1")


@pytest.fixture
def alpha(fleet: LocalFleet) -> Command:
    return Command(fleet.hosts["alpha"])


class Screen:
    """The other end of a terminal, and the command in it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process, self.seen = master, process, b""

    def shows(self, what: bytes, times: int = 1) -> None:
        def look() -> bool:
            while select.select([self.master], [], [], 0)[0]:
                self.seen += os.read(self.master, 4096)
            return self.seen.count(what) >= times

        until(f"{what!r} on the screen", look, 90)

    def types(self, what: bytes) -> None:
        os.write(self.master, what)


@contextmanager
def terminal(alpha: Command, *words: str) -> Iterator[tuple[Screen, Callable[[], list[object]]]]:
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "tasks.cli.main", "guest", "console", *words]
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=alpha.environment, cwd=ROOT, start_new_session=True
        )
        try:
            yield Screen(master, process), lambda: termios.tcgetattr(slave)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(master)
        os.close(slave)


def test_in_a_terminal_keys_go_to_the_guest_until_it_is_detached(alpha: Command, guest: QemuGuest) -> None:
    with terminal(alpha, "vm1") as (screen, mode):
        before = mode()
        screen.shows(b"attached")
        screen.shows(b"tick=", 20)  # more than was shown of the past
        assert mode() != before
        screen.types(b"\x03hello\r")  # Ctrl-C is the guest's
        screen.shows(b"hello")  # its kernel's terminal echoes
        assert screen.process.poll() is None
        screen.types(b"\x1d")
        assert screen.process.wait(60) == 0
        assert mode() == before
    await_ticks(guest, 3)
    with terminal(alpha, "vm1") as (screen, _):  # it can be had again
        screen.shows(b"tick=", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_is_put_back_when_a_signal_ends_it(alpha: Command, guest: QemuGuest, number: signal.Signals) -> None:
    with terminal(alpha, "vm1") as (screen, mode):
        before = mode()
        screen.shows(b"tick=", 25)
        assert mode() != before
        screen.process.send_signal(number)
        assert screen.process.wait(60) == 128 + number
        assert mode() == before


def test_one_at_a_time(alpha: Command, guest: QemuGuest) -> None:
    with terminal(alpha, "vm1") as (screen, _):
        screen.shows(b"tick=", 25)
        code, _, err = alpha("guest", "console", "vm1")
        assert code == 3
        assert "somebody is attached" in err


def test_without_a_terminal_it_is_copied_and_a_guest_that_left_is_looked_up(
    alpha: Command, fleet: LocalFleet, guest: QemuGuest
) -> None:
    copying = alpha.start("guest", "console", "vm1", "--lines", "2")
    assert copying.stdout
    for _ in range(6):
        assert "tick=" in copying.stdout.readline()
    host = fleet.hosts["beta"]
    with closing(Ledger(fleet.settings)) as ledger:
        ledger.announce(host.name, LocalGuest("vm1", 128 << 20, 1))
    guest.quit()
    _, err = copying.communicate(timeout=60)
    assert copying.returncode == 0
    assert "vm1 left alpha; it is on beta" in err
    code, _, err = alpha("guest", "console", "vm1")
    assert code == 3
    assert "vm1 is on beta" in err


def test_bad_input(alpha: Command, fleet: LocalFleet, guest: QemuGuest) -> None:
    code, _, err = alpha("guest", "console", "nobody")
    assert code == 3
    assert "nobody" in err
    alpha.said("guest", "start", "web", "--memory", "16M")
    try:
        code, _, err = alpha("guest", "console", "web")
        assert code == 2
        assert "no console" in err
    finally:
        alpha.said("guest", "stop", "web")
    os.kill(guest.pid, signal.SIGKILL)
    code, _, err = alpha("guest", "console", "vm1")
    assert code == 4
    assert "no process any more" in err
