"""The product's own sending and serving sides, a process each: what its movers do between being paired and READY.

As with QEMU, both processes run and have opened their devices before the clock starts. Connecting, greeting, surveying
for zero pages, registering, writing, flushing, the last message and its answer are all within it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from config.capabilities import Capabilities, MigrationCapability, MigrationParameters, read_options
from config.settings import load_settings
from tests.benchmarks.rdma.contestants import MEMORY, PIN_BUDGET, Contestant
from workers.conversation import Conversation
from workers.digests import PageDigests, differing, rollup_unit
from workers.pairing.agreement import pins
from workers.pairing.contract import Side, Ticket
from workers.protocol import MessageType
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import EMPTY
from workers.registration.choose import Facts, choose
from workers.registration.policies import make_policy
from workers.registration.registrar import Registrar
from workers.rounds.incoming import Incoming
from workers.rounds.pacing import Pacer
from workers.rounds.transfer import Transfer
from workers.rounds.zero_pages import ZeroPages
from workers.transports.contract import Endpoint
from workers.transports.open import open_endpoints

_ADDRESS = "10.9.1.1"
_SECONDS = 120.0


def migrate(how: Contestant, source: Path, destination: Path, watch: Callable[[int, int], None] | None) -> float:
    """Seconds from telling both sides of each other until the source has heard READY; see `qemu.migrate`."""
    with ExitStack() as stack:
        sender, receiver = (
            stack.enter_context(_Process(side, how, path))
            for side, path in ((Side.SOURCE, source), (Side.DESTINATION, destination))
        )
        offers = sender.said(), receiver.said()
        began = time.monotonic()
        sender.tell(offers[1])
        receiver.tell(offers[0])
        while watch and not wait([sender.pipe, receiver.pipe], 0.02):
            watch(sender.pid, receiver.pid)
        # Whichever fails first says why; the other one only that it lost its peer.
        first = wait([sender.pipe, receiver.pipe], _SECONDS)
        if receiver.pipe in first:
            receiver.said()
        sender.said()
        return time.monotonic() - began


class _Process:
    """One side in a process of its own, forked, so that it need not import anything."""

    def __init__(self, side: Side, how: Contestant, ram: Path) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        self._process = fork.Process(target=_run, args=(theirs, side, how, ram))
        self._process.start()
        theirs.close()
        assert self._process.pid
        self.pid = self._process.pid

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """It closes its endpoint and unmaps memory by itself, outside of the clock; killed if it cannot."""
        if kind is None:
            with suppress(BrokenPipeError):
                self.tell("end")
            self._process.join(_SECONDS)
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def tell(self, what: object) -> None:
        """Send it an object."""
        self.pipe.send(what)

    def said(self) -> Any:
        """What it said next. RuntimeError when that is how it failed, or nothing came."""
        if not self.pipe.poll(_SECONDS):
            raise RuntimeError(f"a side of Droveway said nothing for {_SECONDS:g} s")
        kind, what = self.pipe.recv()
        if kind == "failed":
            raise RuntimeError(f"a side of Droveway failed:\n{what}")
        return what


def _run(pipe: Connection, side: Side, how: Contestant, path: Path) -> None:
    capabilities, parameters = _asked(how)
    try:
        with ExitStack() as stack:
            ram = stack.enter_context(Ram([BlockFile(RamBlock("pc.ram", MEMORY), path)]))
            settings = load_settings(Path(os.devnull), {}, {"host.name": side.value, "host.address": _ADDRESS})
            opened = open_endpoints(side, settings, capabilities, parameters, ram)
            endpoint = stack.enter_context(closing(opened.endpoints[how.transport]))
            pipe.send(("offer", endpoint.offer()))
            endpoint.connect(pipe.recv(), _SECONDS)
            talk = Conversation(endpoint, lambda: None)
            talk.greet(Ticket("benchmark", "benchmark", 1, side, ""), _SECONDS)
            digests = PageDigests(ram.view, ram.size) if how.verified else None
            if side is Side.SOURCE:
                _send(endpoint, talk, ram, digests, capabilities, parameters)
            else:
                _serve(endpoint, talk, ram, digests)
            pipe.send(("done", None))
            pipe.recv()  # the clock has stopped, the other side has heard what we said last
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


def _asked(how: Contestant) -> tuple[Capabilities, MigrationParameters]:
    chosen = [f"transport={how.transport}"]
    if how.policy == "windowed":
        chosen.append(f"pin-budget={PIN_BUDGET >> 20}M")
    pin_all, verify = ("on" if wanted else "off" for wanted in (how.policy == "pin-all", how.verified))
    return read_options([f"rdma-pin-all={pin_all}", f"verify-ram={verify}"], chosen)


def _send(
    endpoint: Endpoint,
    talk: Conversation,
    ram: Ram,
    digests: PageDigests | None,
    capabilities: Capabilities,
    parameters: MigrationParameters,
) -> None:
    populated = ram.populated()
    choice = choose(
        Facts(
            memory=ram.size,
            touched=populated.size,
            source_limit=None,
            destination_limit=None,
            pin_all=MigrationCapability.RDMA_PIN_ALL in capabilities,
            pin_budget=parameters.pin_budget,
            locks=pins(endpoint.kind, capabilities.to_json()),
        )
    )
    registrar = Registrar(talk, endpoint, ram.size, _SECONDS, time.monotonic)
    transfer = Transfer(
        endpoint,
        talk,
        make_policy(choice, registrar, parameters.chunk_size),
        ZeroPages(ram.view, ram.size),
        digests,
        pacer=Pacer(0, time.monotonic()),
        chunk_size=parameters.chunk_size,
        timeout=_SECONDS,
        progress=lambda done, total: None,
    )
    transfer.send_batches(0, "bulk", populated.size, transfer.prepare(populated))
    transfer.send(1, "final", EMPTY)
    check = digests.rollup(rollup_unit(ram.size, parameters.chunk_size)).astype("<u8").tobytes() if digests else b""
    talk.say(MessageType.DIGESTS, blob=check)
    talk.expect([MessageType.READY], _SECONDS)


def _serve(endpoint: Endpoint, talk: Conversation, ram: Ram, digests: PageDigests | None) -> None:
    with Incoming(endpoint, talk, ram, digests, _SECONDS) as incoming:
        said = incoming.serve(lambda: None)
        if digests:
            unit = rollup_unit(ram.size, MigrationParameters().chunk_size)
            if differing(digests.rollup(unit), np.frombuffer(said.blob, "<u8").astype(np.uint64), unit):
                raise RuntimeError("the digests differ")
        talk.say(MessageType.READY, {"epoch": 1})
