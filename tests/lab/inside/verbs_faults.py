"""What goes wrong on a real device, and what it is called. Runs in a lab machine (tests/lab/test_inside.py).

A real guest writes to its memory all the while. After each fault it goes on, whole, and nothing is left: no queue pair,
no region, no pinned page.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.errors import (
    DeviceError,
    DrovewayError,
    LinkLostError,
    LocalProtectionError,
    MemoryLockError,
    PeerError,
    PeerLostError,
    RemoteAccessError,
)
from tests.contract.transport_makers import MIB, connect, make_ram
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec
from workers.ram import Ram, RamBlock
from workers.ranges import PAGE_SIZE, RangeTable
from workers.transports.contract import RemoteRegion, Writes
from workers.transports.verbs import VerbsEndpoint, VerbsSettings
from workers.transports.verbs.offer import MAX_CHANNELS

SIZE = 16 * MIB
PATIENCE = 60.0


# --- what the tests are written in ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryGuest]:
    host = LocalGuests(tmp_path_factory.mktemp("host"), Path("/dev/shm"))
    guest = host.start(MemoryGuestSpec("witness", SIZE, dirty_rate=1_000_000, check_rate=1_000_000))
    guest.wait_filled(PATIENCE)
    yield guest
    host.stop("witness")


@pytest.fixture(autouse=True)
def unharmed(guest: MemoryGuest) -> Iterator[None]:
    """After every test: the guest runs and finds its memory whole, and the kernel holds nothing of ours."""
    yield
    assert guest.status() is RunState.RUNNING
    assert guest.query_oracle(full=True)["full_check"]["corrupt"] == 0
    assert resources() == (0, 0)
    assert pinned() == 0


def resources() -> tuple[int, int]:
    """Queue pairs and regions that programs hold on either device; the kernel's own have no process id."""

    def count(kind: str) -> int:
        shown = subprocess.run(["rdma", "-j", "resource", "show", kind], capture_output=True, check=True, text=True)
        return sum("pid" in one for one in json.loads(shown.stdout or "[]"))

    return count("qp"), count("mr")


def pinned() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPin:"))
    return int(line.split()[1]) << 10


@dataclass
class Pair:
    source: VerbsEndpoint
    destination: VerbsEndpoint
    source_ram: Ram
    destination_ram: Ram


@contextmanager
def pair(guest: MemoryGuest, **settings: Any) -> Iterator[Pair]:
    """Two connected endpoints, the guest's own memory behind the source's."""
    with ExitStack() as stack:
        source_ram = stack.enter_context(Ram(guest.block_files()))
        destination_ram = stack.enter_context(closing(make_ram((RamBlock("pc.ram", SIZE),))))
        destination = VerbsEndpoint(destination_ram, VerbsSettings("destination", device="rxe2", **settings))
        stack.callback(destination.close)
        source = VerbsEndpoint(source_ram, VerbsSettings("source", device="rxe1", **settings))
        stack.callback(source.close)
        connect(source, destination)
        yield Pair(source, destination, source_ram, destination_ram)


def register(pair: Pair, start: int, end: int) -> RemoteRegion:
    pair.source.register(RangeTable([(start, end)]))
    (region,) = pair.destination.register(RangeTable([(start, end)]))
    return region


def write(region: RemoteRegion, start: int, length: int) -> Writes:
    at = start - region.start + region.address
    return Writes(np.array([start]), np.array([length]), np.array([at]), np.array([region.key], np.uint64))


def ends(call: Callable[[], object]) -> DrovewayError:
    """The error that ends it, within reason."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            call()
        except DrovewayError as error:
            return error
        time.sleep(0.01)
    raise AssertionError("nothing ended it")


def flushed(pair: Pair) -> DrovewayError:
    return ends(lambda: pair.source.flush(PATIENCE))


def command(line: str) -> None:
    subprocess.run(line.split(), check=True)


def loses(percent: int, device: str = "veth1") -> None:
    command(f"tc qdisc replace dev {device} root netem loss {percent}%")


def loses_nothing(device: str = "veth1") -> None:
    command(f"tc qdisc del dev {device} root")


# --- refused writes ---------------------------------------------------------------------------------------------------


def refused(pair: Pair, writes: Writes) -> str:
    """Both sides' view of a write that the destination's device refused; the memory there is as it was."""
    before = bytes(pair.destination_ram.view)
    pair.source.post(writes)
    error = flushed(pair)
    assert type(error) is RemoteAccessError, error
    theirs = ends(lambda: pair.destination.receive(0.01))
    assert type(theirs) is PeerError, theirs
    assert bytes(pair.destination_ram.view) == before
    return str(error)


def test_a_wrong_remote_key(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, MIB)
        said = refused(made, write(replace(region, key=region.key ^ 0x100), 0, PAGE_SIZE))
    assert "REM_ACCESS_ERR" in said


def test_a_write_out_of_bounds(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, MIB)
        made.source.register(RangeTable([(MIB, 2 * MIB)]))
        said = refused(made, write(region, MIB, PAGE_SIZE))
    assert f"{PAGE_SIZE} bytes from guest memory {MIB:#x}" in said


def test_a_region_deregistered_while_writes_to_it_fly(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, MIB)
        command("tc qdisc replace dev veth1 root netem delay 500ms")  # else they land while they are posted
        try:
            made.source.post(write(region, 0, MIB))
            made.destination.deregister([region])
            error = flushed(made)
        finally:
            loses_nothing()
        assert type(error) is RemoteAccessError, error


def test_a_write_from_memory_that_is_not_registered_here_never_reaches_the_device(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        (region,) = made.destination.register(RangeTable([(0, MIB)]))
        with pytest.raises(ValueError, match="not registered"):
            made.source.post(write(region, 0, PAGE_SIZE))


def test_a_local_key_that_the_device_does_not_know(guest: MemoryGuest) -> None:
    """Only a defect of ours could post it, so it is posted beneath the check."""
    with pair(guest) as made:
        region = register(made, 0, MIB)
        bad, device = write(region, 0, PAGE_SIZE), made.source._device
        first = device.expect(0, bad, PAGE_SIZE)
        unknown = np.array([0xDEAD00], np.uint32)
        device.post(0, made.source._requests[0].fill(made.source_ram.address, bad, unknown, first, MAX_CHANNELS))
        error = flushed(made)
        assert type(error) is LocalProtectionError, error


# --- the peer and the link --------------------------------------------------------------------------------------------


def _destination_to_be_killed(offers: Any) -> None:
    ram = make_ram((RamBlock("pc.ram", SIZE),))
    endpoint = VerbsEndpoint(ram, VerbsSettings("destination", device="rxe2"))
    offers.send(endpoint.offer())
    endpoint.connect(offers.recv(), PATIENCE)
    offers.send(endpoint.register(RangeTable([(0, SIZE)])))
    signal.pause()


@pytest.mark.parametrize("busy", [True, False])
def test_a_peer_that_is_killed(guest: MemoryGuest, busy: bool) -> None:
    offers, theirs = multiprocessing.Pipe()
    peer = multiprocessing.get_context("spawn").Process(target=_destination_to_be_killed, args=(theirs,))
    peer.start()
    with ExitStack() as stack:
        ram = stack.enter_context(Ram(guest.block_files()))
        source = stack.enter_context(closing(VerbsEndpoint(ram, VerbsSettings("source", device="rxe1"))))
        offer = offers.recv()
        offers.send(source.offer())
        source.connect(offer, PATIENCE)
        (region,) = offers.recv()
        source.register(RangeTable([(0, SIZE)]))
        if busy:
            for at in range(0, 8 * MIB, MIB):
                source.post(write(region, at, MIB))
        os.kill(peer.pid or 0, signal.SIGKILL)
        peer.join()
        error = ends(lambda: source.flush(PATIENCE) if busy else source.receive(0.01))
        assert type(error) is PeerLostError, error


def test_a_link_that_is_away_for_a_second_is_ridden_out(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, SIZE)
        loses(100)
        try:
            for at in range(0, 8 * MIB, MIB):
                made.source.post(write(region, at, MIB))
            time.sleep(1)
            assert made.source.in_flight() == 8 * MIB
        finally:
            loses_nothing()
        made.source.flush(PATIENCE)


def test_a_link_that_loses_one_packet_of_a_hundred_only_costs_time(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, SIZE)
        loses(1)
        try:
            made.source.post(write(region, 0, MIB))
            made.source.flush(PATIENCE)
        finally:
            loses_nothing()


def test_a_link_that_stays_away_is_a_lost_link(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, MIB)
        loses(100)
        try:
            began = time.monotonic()
            made.source.post(write(region, 0, MIB))
            error = flushed(made)
            assert type(error) is LinkLostError, error
            assert "RETRY_EXC_ERR" in str(error)
            assert time.monotonic() - began < 60
        finally:
            loses_nothing()


def test_a_port_that_goes_down_is_named(guest: MemoryGuest) -> None:
    with pair(guest) as made:
        region = register(made, 0, MIB)
        command("ip link set veth1 down")
        try:
            made.source.post(write(region, 0, MIB))
            error = flushed(made)
            assert type(error) is LinkLostError, error
            assert "no longer active" in str(error)
        finally:
            _bring_veth1_back()


def _bring_veth1_back() -> None:
    """Its routes and neighbours went with its link (tests/lab/network made them)."""
    command("ip link set veth1 up")
    command("ip route replace 10.8.0.0/24 dev veth1 src 10.8.0.1 table 101")
    command("ip neigh replace 10.8.0.2 lladdr 02:00:00:00:08:02 dev veth1 nud permanent")
    deadline = time.monotonic() + PATIENCE
    while "ACTIVE" not in Path("/sys/class/infiniband/rxe1/ports/1/state").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_network_that_passes_no_large_packet_is_found_out_before_the_guest_is_touched(guest: MemoryGuest) -> None:
    """A switch that was left at MTU 1500 between hosts that were set to 9000."""
    command("tc qdisc add dev veth2 clsact")
    large = (
        "tc filter add dev veth2 ingress matchall action police mtu 1600 rate 10gbit burst 1m conform-exceed pipe/drop"
    )
    command(large)
    try:
        with pytest.raises(PeerLostError, match="no packet of 4096 bytes passes"), pair(guest):
            pass
    finally:
        command("tc qdisc del dev veth2 clsact")


# --- limits -----------------------------------------------------------------------------------------------------------


def _as_nobody(answer: Any) -> None:
    """With 8 MiB to lock: half of it can be registered, twice as much not; what was registered stays in order."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, 8 * MIB))
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ram = make_ram((RamBlock("pc.ram", SIZE),))
    with closing(VerbsEndpoint(ram, VerbsSettings("destination", device="rxe2"))) as endpoint:
        kept = endpoint.register(RangeTable([(0, 4 * MIB)]))
        before = pinned()
        try:
            endpoint.register(RangeTable([(4 * MIB, 12 * MIB)]))
        except MemoryLockError as error:
            said = str(error)
        still = pinned() == before and ram.populated() == RangeTable([(0, 4 * MIB)])
        endpoint.deregister(kept)
        endpoint.register(RangeTable([(4 * MIB, 8 * MIB)]))
        answer.send((said, still, before))


def test_a_memlock_limit_binds_who_is_not_root(guest: MemoryGuest) -> None:
    mine, theirs = multiprocessing.Pipe()
    peer = multiprocessing.get_context("spawn").Process(target=_as_nobody, args=(theirs,))
    peer.start()
    said, still, before = mine.recv()
    peer.join()
    assert still, "nothing of the refused call stays: neither pinned nor populated"
    for number in (8 * MIB, before):  # asked and limit, held
        assert str(number) in said


@pytest.mark.parametrize("depth", [2, 5])
def test_queues_at_their_limit_lose_nothing(guest: MemoryGuest, depth: int) -> None:
    """Every second page, so that each is a request of its own: hundreds of times what the queues hold."""
    size = 4 * MIB
    pages = np.arange(0, size, 2 * PAGE_SIZE)
    noise = np.random.default_rng(depth).integers(0, 256, size, np.uint8)
    with ExitStack() as stack:
        rams = [stack.enter_context(closing(make_ram((RamBlock("pc.ram", size),)))) for _ in range(2)]
        np.frombuffer(rams[0].view, np.uint8)[:] = noise
        source, destination = (
            stack.enter_context(
                closing(VerbsEndpoint(ram, VerbsSettings(role, channels=2, device=device, depth=depth)))
            )
            for ram, role, device in zip(rams, ("source", "destination"), ("rxe1", "rxe2"), strict=True)
        )
        connect(source, destination)
        source.register(RangeTable([(0, size)]))
        (region,) = destination.register(RangeTable([(0, size)]))
        keys = np.full(len(pages), region.key, np.uint64)
        source.post(Writes(pages, np.full(len(pages), PAGE_SIZE), pages + region.address, keys))
        source.flush(PATIENCE)
        landed = np.frombuffer(rams[1].view, np.uint8).reshape(-1, PAGE_SIZE)[::2]
        assert np.array_equal(landed, noise.reshape(-1, PAGE_SIZE)[::2])


def test_a_device_that_cannot_fault_memory_in_says_so(guest: MemoryGuest) -> None:
    """The agreement refuses `on-demand-paging` by this; beneath it the device itself would."""
    with pair(guest, on_demand_paging=True) as made:
        assert made.source.offer()["odp"] is False
        with pytest.raises(DeviceError, match="Invalid argument"):
            made.destination.register(RangeTable([(0, MIB)]))


def test_more_channels_than_the_device_can_complete_is_refused(guest: MemoryGuest) -> None:
    with Ram(guest.block_files()) as ram, pytest.raises(DeviceError, match="fewer channels"):
        VerbsEndpoint(ram, VerbsSettings("source", device="rxe1", channels=128, depth=1 << 20))
