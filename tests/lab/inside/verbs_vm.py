"""A virtual machine whose memory goes over RDMA. Runs in a lab machine, so it is an emulation within an emulation.

Both movers are threads of one child process: four workers and two movers a move would import Python's modules for many
minutes on an emulated processor, and what they add is tried elsewhere. The kernel has no PAGEMAP_SCAN, and writes to a
QEMU's memory itself: what was written is found by content.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from config.capabilities import read_options
from config.settings import Settings, load_settings
from tests.until import until
from tests.vm.machine import Console, await_ticks, vm_spec
from workers import destination, source
from workers.attempt import Attempt, Job
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.qemu.guest import QemuGuest
from workers.metrics.timeline import Timeline
from workers.migration import Migration, Progress
from workers.pairing.contract import Side
from workers.pairing.in_memory import Meeting

WAYS = (("alpha", "beta"), ("beta", "alpha"))
NAME = "vm1"
TRANSPORT = "verbs"
#: The address of the device (tests/lab/network, loopback).
ADDRESS = "10.9.1.1"
#: Everything takes its time here; what counts is what arrives.
PARAMETERS = ["downtime-limit=20s", "max-rounds=2", "on-stall=force"]
#: MiB of the machine that its witness works on, and those that it writes a second.
WITNESSED, RATE = 8, 1
SECONDS = 600.0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Settings]]:
    """Settings by host; their machines are ended."""
    made = {}
    for name in ("alpha", "beta"):
        ram = Path("/dev/shm") / f"droveway-lab-vm-{os.getpid()}" / name
        ram.mkdir(parents=True)
        where = {"host.name": name, "host.state_dir": str(tmp_path / name), "host.ram_dir": str(ram)}
        made[name] = load_settings(Path(os.devnull), {}, where | {"host.address": ADDRESS})
    yield made
    for settings in made.values():
        guests = LocalGuests(settings.host.state_dir, settings.host.ram_dir)
        for left in guests.list():
            guests.stop(left.name)
        settings.host.ram_dir.rmdir()
    ram.parent.rmdir()


def test_to_and_fro_over_rdma_every_page_is_as_it_was_left(hosts: dict[str, Settings]) -> None:
    with closing(Console()) as console:
        guest = guests_of(hosts["alpha"]).start_qemu(vm_spec(NAME, mib=WITNESSED, rate=RATE))
        console.follow(guest)
        await_ticks(guest, 5)
        for epoch, (here, there) in enumerate(WAYS, start=1):
            before = console.said()[-1].checked
            move(hosts[here], hosts[there], epoch)
            moved = guests_of(hosts[there]).open(NAME)
            assert isinstance(moved, QemuGuest)
            console.follow(moved)
            assert moved.status() is RunState.RUNNING
            assert not guests_of(hosts[here]).holds(NAME)
            until(
                "a look at every page",
                lambda before=before: console.said()[-1].checked > before + 2 * WITNESSED * 256,
                SECONDS,
            )
        said = console.said()
    assert not said[-1].bad
    assert [line.tick for line in said] == list(range(len(said)))


def guests_of(settings: Settings) -> LocalGuests:
    return LocalGuests(settings.host.state_dir, settings.host.ram_dir)


def move(here: Settings, there: Settings, epoch: int) -> None:
    """Both sides, to their end, in a process whose end lets go of both guests' monitors, as a mover's does."""
    child = multiprocessing.get_context("fork").Process(target=both_sides, args=(here, there, epoch))
    child.start()
    child.join(SECONDS)
    assert child.exitcode == 0


def both_sides(here: Settings, there: Settings, epoch: int) -> None:
    meeting = Meeting()
    sides = ((Side.SOURCE, here, there, source.run), (Side.DESTINATION, there, here, destination.run))
    migrations = [(migration(meeting, side, own, peer, epoch), run) for side, own, peer, run in sides]
    began = time.monotonic()
    with ThreadPoolExecutor(2) as movers:
        for ended in [movers.submit(run, each) for each, run in migrations]:
            ended.result()
    sending = migrations[0][0]
    assert sending.progress.status.choices["transport"] == TRANSPORT
    tracker, downtime = sending.progress.status.choices["tracker"], sending.timeline.seconds["downtime"]
    print(f"move {epoch}: {time.monotonic() - began:.1f} s, downtime {downtime:.1f} s, found by {tracker}", flush=True)


def migration(meeting: Meeting, side: Side, own: Settings, peer: Settings, epoch: int) -> Migration:
    capabilities, parameters = read_options(["verify-ram=on"], [f"transport={TRANSPORT}", *PARAMETERS])
    asked = capabilities.to_json(), parameters.to_json()
    memory = vm_spec(NAME).memory
    job = Job(f"m-{epoch}", NAME, epoch, side, f"{side}-{epoch}", own.host.name, peer.host.name, memory, *asked)
    attempt = Attempt.of(own.host.state_dir, job.ticket)
    attempt.prepare(job)
    pairing = meeting.claim(job.ticket)
    timeline = Timeline(time.monotonic)
    now = lambda: False, lambda: True  # never cancelled, and nobody else sends
    return Migration(job, own, capabilities, parameters, pairing, timeline, Progress(attempt), *now)
