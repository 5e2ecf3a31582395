"""QEMU's own migration over RDMA, with what engine=qemu sets: pin-all off and on. Runs in a lab machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from config.capabilities import read_options
from tests.until import until
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu.own_settings import own_settings
from workers.guests.qemu.spec import QemuGuestSpec
from workers.qemu_engine.destination import listen
from workers.qemu_engine.source import uri

_ADDRESS = "10.9.1.1"
_PORTS = (49152, 49155)
_SECONDS = 120.0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[LocalGuests, LocalGuests]]:
    (tmp_path / "ram").mkdir()
    made = LocalGuests(tmp_path / "a", tmp_path / "ram"), LocalGuests(tmp_path / "b", tmp_path / "ram")
    yield made
    for host in made:
        for left in host.list():
            host.stop(left.name)


@pytest.mark.parametrize("pin_all", [False, True])
@pytest.mark.parametrize("backend", ["anonymous", "file"])
def test_a_guest_moves_over_rdma(hosts: tuple[LocalGuests, LocalGuests], pin_all: bool, backend: str) -> None:
    shape = {"name": "vm1", "memory": "65544K", "accel": "tcg", "memory_backend": backend}  # its firmware runs
    guest = hosts[0].start_qemu(QemuGuestSpec.from_json(shape))
    twin = hosts[1].incoming(guest.description())
    asked, parameters = read_options([f"rdma-pin-all={'on' if pin_all else 'off'}"])
    settings = own_settings(asked.to_json(), parameters, transport="verbs", channels=1)
    with ExitStack() as stack:
        stack.callback(guest.close)
        stack.callback(twin.close)
        receiver, sender = twin.own_migration(), guest.own_migration()
        receiver.prepare(settings.capabilities, settings.parameters)
        port = listen(receiver, "verbs", _ADDRESS, _PORTS)
        sender.prepare(settings.at_source(), settings.parameters)
        sender.set_off(uri("verbs", _ADDRESS, port))
        until("its pause", lambda: sender.figures().status in ("pre-switchover", "failed"), _SECONDS)
        assert sender.figures().status == "pre-switchover", sender.figures()
        assert sender.figures().transferred > 0
        sender.switch_over()
        for end in (sender, receiver):
            until("the end", lambda end=end: end.figures().status == "completed", _SECONDS)
        assert twin.status() is RunState.PAUSED
        twin.cont()
        until("its life", lambda: twin.status() is RunState.RUNNING, _SECONDS)
        time.sleep(0.5)
        assert twin.status() is RunState.RUNNING
