"""Makers of connected endpoint pairs, one a transport: all that the conformance suite knows about any of them.

A new transport adds a maker to MAKERS and runs the whole suite unchanged.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.contract.relay import Relay
from tests.contract.tls_certificates import Authority
from workers.ram import BlockFile, Ram, RamBlock
from workers.transports.contract import Endpoint
from workers.transports.stub import StubEndpoint, StubLink
from workers.transports.tcp import TcpEndpoint, TcpSettings, TlsFiles
from workers.transports.verbs import VerbsEndpoint, VerbsSettings

MIB = 1 << 20
#: Two blocks, so that there is an edge between them, which is no multiple of 1 MiB; small enough that both sides of a
#: pair can be locked by whoever has the usual limit of 8 MiB.
BLOCKS = (RamBlock("pc.ram", 2 * MIB + 8192), RamBlock("vram", 2 * MIB - 8192))


@dataclass
class Pair:
    """Two connected endpoints, the memories behind them, and a hand on the wire between them."""

    source: Endpoint
    destination: Endpoint
    source_ram: Ram
    destination_ram: Ram
    #: Nothing posted is confirmed from `hold()` until `release()`.
    hold: Callable[[], None]
    release: Callable[[], None]
    #: The connection breaks, for both at once.
    cut: Callable[[], None]


class Maker(Protocol):
    """Makes a pair and takes it away again, endpoints closed first."""

    def __call__(self, in_flight_limit: int = 8 * MIB, *, connected: bool = True) -> AbstractContextManager[Pair]: ...


def make_ram(blocks: tuple[RamBlock, ...] = BLOCKS) -> Ram:
    """Memory of a guest that has no name in any file system."""
    fds = [os.memfd_create(block.id) for block in blocks]
    try:
        for fd, block in zip(fds, blocks, strict=True):
            os.ftruncate(fd, block.size)
        return Ram([BlockFile(block, Path(f"/proc/self/fd/{fd}")) for fd, block in zip(fds, blocks, strict=True)])
    finally:
        for fd in fds:
            os.close(fd)


def connect(source: Endpoint, destination: Endpoint, source_view: dict[str, object] | None = None) -> None:
    """Exchange offers and connect both, as pairing does. `source_view`: what the source takes for the peer's offer."""
    failures: list[BaseException] = []

    def meet() -> None:
        try:
            destination.connect(source.offer(), 10)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=meet)
    thread.start()
    try:
        source.connect(source_view or destination.offer(), 10)
    finally:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def stub_pair(in_flight_limit: int = 8 * MIB, *, connected: bool = True) -> Iterator[Pair]:
    link = StubLink()
    with closing(make_ram()) as source_ram, closing(make_ram()) as destination_ram:
        source = StubEndpoint(source_ram, link, in_flight_limit)
        destination = StubEndpoint(destination_ram, link, in_flight_limit)
        with closing(source), closing(destination):
            if connected:
                connect(source, destination)
            yield Pair(source, destination, source_ram, destination_ram, link.hold, link.release, link.sever)


@contextmanager
def _tcp_pair(
    in_flight_limit: int,
    connected: bool,
    source_tls: TlsFiles | None,
    destination_tls: TlsFiles | None,
    lock: bool,
) -> Iterator[Pair]:
    with closing(make_ram()) as source_ram, closing(make_ram()) as destination_ram:
        settings = TcpSettings("source", channels=2, in_flight_limit=in_flight_limit, tls=source_tls, lock=lock)
        source = TcpEndpoint(source_ram, settings)
        settings = TcpSettings("destination", channels=3, tls=destination_tls, lock=lock)
        destination = TcpEndpoint(destination_ram, settings)
        with closing(source), closing(destination):
            offer = destination.offer()
            host, _, port = offer["addresses"][0].rpartition(":")
            with closing(Relay((host, int(port)))) as relay:
                if connected:
                    connect(source, destination, {**offer, "addresses": [relay.address]})
                yield Pair(source, destination, source_ram, destination_ram, relay.hold, relay.release, relay.cut)
                source.close()
                destination.close()


@contextmanager
def tcp_pair(in_flight_limit: int = 8 * MIB, *, connected: bool = True, lock: bool = False) -> Iterator[Pair]:
    with _tcp_pair(in_flight_limit, connected, None, None, lock) as pair:
        yield pair


@contextmanager
def tls_pair(in_flight_limit: int = 8 * MIB, *, connected: bool = True, lock: bool = False) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        files = authority.host("source"), authority.host("destination")
        with _tcp_pair(in_flight_limit, connected, *files, lock) as pair:
            yield pair


@contextmanager
def verbs_pair(in_flight_limit: int = 8 * MIB, *, connected: bool = True) -> Iterator[Pair]:
    """Over the lab's wire: rxe1 on veth1 is the source's, rxe2 on veth2 the destination's (tests/lab/network)."""
    with closing(make_ram()) as source_ram, closing(make_ram()) as destination_ram:
        settings = VerbsSettings(
            "source", channels=2, device="rxe1", in_flight_limit=in_flight_limit, posting_threads=2
        )
        source = VerbsEndpoint(source_ram, settings)
        destination = VerbsEndpoint(destination_ram, VerbsSettings("destination", channels=3, device="rxe2"))
        with closing(source), closing(destination):
            offer = destination.offer()
            host, _, port = offer["control"]["addresses"][0].rpartition(":")
            with closing(Relay((host, int(port)))) as relay:
                if connected:
                    connect(
                        source, destination, {**offer, "control": {**offer["control"], "addresses": [relay.address]}}
                    )
                with _wire() as (hold, release):
                    yield Pair(source, destination, source_ram, destination_ram, hold, release, relay.cut)
                source.close()
                destination.close()


@contextmanager
def _wire() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Lose every packet that leaves veth1; a queue pair sends them again, for 6 to 8 s."""

    def tc(*words: str) -> None:
        subprocess.run(["tc", "qdisc", words[0], "dev", "veth1", "root", *words[1:]], check=True)

    held = False

    def hold() -> None:
        nonlocal held
        tc("add", "netem", "loss", "100%")
        held = True

    def release() -> None:
        nonlocal held
        if held:
            tc("del")
            held = False

    try:
        yield hold, release
    finally:
        release()


#: `-locked`: as under `rdma-pin-all`, where memory is received straight into the mapping.
MAKERS: dict[str, Maker] = {
    "stub": stub_pair,
    "tcp": tcp_pair,
    "tcp-tls": tls_pair,
    "tcp-locked": partial(tcp_pair, lock=True),
    "tcp-tls-locked": partial(tls_pair, lock=True),
}
#: Those whose `register` locks memory: it counts as VmLck (mlock) or VmPin (a device), and against RLIMIT_MEMLOCK.
LOCKING = ["tcp-locked", "tcp-tls-locked"]
#: Those whose `register` neither locks nor populates.
UNLOCKED = ["tcp", "tcp-tls"]
if Path("/sys/class/infiniband/rxe2").exists():  # in a lab machine; tests/lab runs these suites there
    MAKERS["verbs"] = verbs_pair
    LOCKING.append("verbs")
