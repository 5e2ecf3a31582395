"""Two Droveway hosts, each in a lab machine: real workers, started there by the product's own command line.

Redis and the producer are on the host of the machines, which they reach as 10.0.2.2. host-a is 10.7.0.1, host-b
10.7.0.2; their directories are the product's defaults, in the machines' memory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from config.settings import load_settings
from tasks.ledger.ledger import Ledger
from tests.lab.machine import HOST_IN_GUEST, LAB, REPOSITORY, SHARE_IN_GUEST, Machine, Running
from tests.metrics_page import parsed
from tests.redis_server import RedisServer
from tests.until import until as wait_until
from workers.pairing.contract import Side

#: Seconds in which anything that is going to happen has happened, on a machine that emulates two others.
PATIENCE = 300.0
#: Four fifths are used: more than the smallest window. They pass the cable in 3 to 10 s.
MEMORY = 96 << 20
DIRTY_RATE = 256 << 10  # a page costs an emulated processor 2 ms, and it has other things to do
COMMAND = str(REPOSITORY / ".venv" / "bin" / "droveway")
PYTHON = str(REPOSITORY / ".venv" / "bin" / "python")
#: Compiled here, since the machines cannot write beside the sources: half of a start is compiling otherwise.
_BYTE_CODE = LAB / "byte-code"
_STARTED_THERE = (
    "tests.lab.inside.hand tasks.cli.main tasks.cli.worker tasks.app celery.apps.worker celery.bin.worker "
    "celery.worker.consumer celery.concurrency.thread kombu.transport.redis workers.mover workers.guests.memory_process"
)
#: A guest may be paused for as long as an emulated processor takes. Each round costs one a second, whatever its size.
_PARAMETERS = {"downtime-limit": "2s", "max-rounds": "4", "on-stall": "force"}

until = partial(wait_until, seconds=PATIENCE, every=0.1)


class LabHost:
    """One host of the fleet."""

    def __init__(self, machine: Machine, name: str, number: int, redis_port: int) -> None:
        settings = load_settings(
            Path(os.devnull),
            {},
            {
                "redis.url": f"redis://{HOST_IN_GUEST}:{redis_port}/0",
                "redis.connect_timeout": 30,
                "redis.socket_timeout": 60,
                "host.name": name,
                "host.address": f"10.7.0.{number}",
                "worker.pairing_timeout": PATIENCE,
                "worker.lease": 120,
                "worker.reconcile_interval": 5,
            },
        )
        self.name = name
        self.machine = machine
        self._environment = settings.environment() | {
            "DROVEWAY_FAULT": f"file={SHARE_IN_GUEST}/fault",
            "PYTHONPYCACHEPREFIX": str(_BYTE_CODE),
        }
        self._processes: list[Running] = []
        self._lines: TextIO | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        """Start the worker of both roles, and our hand, which `meet` then waits for."""
        self._server = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._server.settimeout(PATIENCE)
        self._start(PYTHON, "-m", "tests.lab.inside.hand", HOST_IN_GUEST, str(self._server.getsockname()[1]))
        self.worker = self._start(COMMAND, "worker")

    def meet(self) -> None:
        """Wait until our hand can be asked."""
        try:
            connection, _ = self._server.accept()
        except TimeoutError:
            raise AssertionError(f"our hand did not reach out\n{self.report()}") from None
        connection.settimeout(PATIENCE)
        self._stack.enter_context(connection)
        self._lines = self._stack.enter_context(connection.makefile("rw"))

    def _start(self, *argv: str) -> Running:
        running = self.machine.start(argv, env=self._environment)
        self._processes.append(running)
        return running

    def close(self) -> None:
        """Stop the worker as systemd would, and end our hand."""
        self._stack.close()
        for running in self._processes:
            running.signal(signal.SIGTERM)
        for running in self._processes:
            running.wait(PATIENCE)

    def ask(self, do: str, **arguments: object) -> Any:
        """What our hand (tests/lab/inside/hand.py) answers."""
        assert self._lines
        self._lines.write(json.dumps({"do": do, "with": arguments}) + "\n")
        self._lines.flush()
        reply = json.loads(self._lines.readline())
        assert "error" not in reply, reply["error"]
        return reply["value"]

    def shell(self, command: str) -> str:
        """What this command prints in the machine."""
        result = self.machine.run(["bash", "-c", command], PATIENCE)
        assert result.returncode == 0, result
        return result.stdout

    def set_fault(self, fault: str) -> None:
        """DROVEWAY_FAULT of movers that start from now on."""
        (self.machine.share / "fault").write_text(fault)

    def lose_everything(self) -> None:
        """Drop every packet that this host sends over the cable."""
        self.shell(f"tc qdisc add dev {self._cable} root netem loss 100%")

    def lose_nothing(self) -> None:
        """Drop none any more; harmless when none was dropped."""
        self.machine.run(["tc", "qdisc", "del", "dev", self._cable, "root"], PATIENCE)

    @property
    def _cable(self) -> str:
        return str(json.loads(self.shell("rdma -j link show rxe0/1"))[0]["netdev"])

    def metrics(self, side: Side) -> dict[str, float]:
        """What this side's worker shows."""
        return parsed(self.ask("metrics", side=side))

    def mover(self, side: Side, states: str = "RSD") -> int | None:
        """Process of the one mover of this side that is in one of these states, as in /proc/PID/stat."""
        for name, mover in self.ask("movers").items():
            if name.endswith(f".{side}") and mover["state"] in states:
                return int(mover["pid"])
        return None

    def left_without_attempts(self) -> dict[str, list[str]] | None:
        """What is there that a migration might leave, once the worker has removed its attempts."""
        left = self.ask("left")
        return None if left.pop("attempts") else left

    def signal(self, number: signal.Signals, pid: int) -> None:
        """Send a signal to a process of this host; nothing happens if it has ended."""
        self.machine.run(["bash", "-c", f"kill -{int(number)} {pid}"], PATIENCE)

    def report(self) -> str:
        """Everything that was said on this host."""
        said = [running.report() for running in self._processes]
        return "\n".join((f"=== {self.name}", *said, self.ask("log") if self._lines else ""))


class Move:
    """A migration under way: `droveway migrate` on the machines' host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ended(self) -> bool:
        """Whether it has come to an end."""
        return self._process.poll() is not None

    def end(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """The document that it ended with, be it of success or failure."""
        out, err = self._process.communicate(timeout=seconds)
        assert out, err
        document = json.loads(out)
        assert isinstance(document, dict)
        return document

    def close(self) -> None:
        """End the command; the migration may go on."""
        self._process.kill()
        self._process.communicate()


class LabFleet:
    """host-a and host-b, their Redis, and one guest at a time."""

    def __init__(self, machines: tuple[Machine, Machine]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._redis = RedisServer("--port", str(port))
        self.hosts = {
            name: LabHost(machine, name, number, port)
            for machine, name, number in zip(machines, ("host-a", "host-b"), (1, 2), strict=True)
        }
        self._producer = load_settings(Path(os.devnull), {}, {"redis.url": self._redis.url, "host.name": "producer"})
        self._moves: list[Move] = []
        self._guests = 0
        self.guest = ""
        self.place = ""
        """Where the guest is."""

    def __enter__(self) -> Self:
        try:
            self._redis.start()
            byte_code(_STARTED_THERE)
            for host in self.hosts.values():
                host.start()
            for host in self.hosts.values():
                host.meet()
            until("the workers' word", self._all_speak)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the guest, the workers, Redis."""
        with ExitStack() as stack:
            stack.callback(self._redis.close)
            for host in self.hosts.values():
                stack.callback(host.close)
            if self.guest:
                stack.callback(self.remove_guest)
            for move in self._moves:
                move.close()

    def ledger(self) -> closing[Ledger]:
        """The record, as a producer sees it."""
        return closing(Ledger(self._producer))

    def _all_speak(self) -> bool:
        for host in self.hosts.values():
            assert host.worker.poll() is None, host.worker.report()
        with self.ledger() as ledger:
            hosts = ledger.fleet().hosts
        return set(hosts) == set(self.hosts) and all(hosts[name].alive == set(Side) for name in hosts)

    # --- the guest ----------------------------------------------------------------------------------------------------

    def new_guest(self, place: str) -> None:
        """A guest that writes, and that the fleet knows."""
        self._guests += 1
        self.guest, self.place = f"g{self._guests}", place
        self.hosts[place].ask("start", name=self.guest, memory=MEMORY, dirty_rate=DIRTY_RATE)
        until("the fleet's knowledge of the guest", self._is_known)

    def _is_known(self) -> bool:
        with self.ledger() as ledger:
            known = ledger.fleet().guests.get(self.guest)
        return known is not None and known.host == self.place

    def remove_guest(self) -> None:
        """End it wherever it is, with movers that have it after a failed test."""
        for host in self.hosts.values():
            for mover in host.ask("movers").values():
                host.signal(signal.SIGKILL, mover["pid"])
        for host in self.hosts.values():
            left = until(f"the end of attempts on {host.name}", host.left_without_attempts)
            for name in left["guests"]:
                host.ask("stop", name=name)
        self.guest = self.place = ""

    @property
    def here(self) -> LabHost:
        """Where the guest is."""
        return self.hosts[self.place]

    @property
    def there(self) -> LabHost:
        """Where it is not."""
        return next(host for host in self.hosts.values() if host.name != self.place)

    def move(self, *options: str, fault: str = "") -> Move:
        """Begin to move the guest to the other host; movers start with this fault."""
        for host in self.hosts.values():
            host.set_fault(fault)
        options = (*options, *(f"--set={name}={value}" for name, value in _PARAMETERS.items()))
        command = [COMMAND, "migrate", self.guest, "--to", self.there.name, "--json", *options]
        environment = os.environ | self._producer.environment()
        move = Move(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        self._moves.append(move)
        return move

    # --- the verdict --------------------------------------------------------------------------------------------------

    def assert_whole(self) -> None:
        """The guest's own check of every page finds none corrupt, and it goes on writing."""
        report = self.here.ask("oracle", name=self.guest, full=True)
        assert (report["status"], report["corrupt"]) == ("running", 0), report
        assert report["full_check"]["pages_checked"] > 0
        until("another write", lambda: self._written() > report["sequence"])

    def _written(self) -> int:
        return int(self.here.ask("oracle", name=self.guest, full=False)["sequence"])

    def assert_nothing_left(self) -> None:
        """No queue pair, pinned page, attempt, slot, reservation; one copy of the guest and of its memory."""
        for host in self.hosts.values():
            left = until(f"the end of attempts on {host.name}", host.left_without_attempts)
            ours = [self.guest] if host is self.here else []
            assert left.pop("guests") == ours, host.report()
            assert len(left.pop("ram files")) == len(ours), host.report()
            assert not any(left.values()), (host.name, left)
        with self.ledger() as ledger:
            assert ledger.open() == []
            for record in ledger.fleet().hosts.values():
                assert (record.reserved, set(record.admitted.values())) == (0, {0}), record

    def report(self) -> str:
        """What all of it said, for a failure's message."""
        return "\n".join(host.report() for host in self.hosts.values())


def byte_code(modules: str) -> dict[str, str]:
    """Have these compiled by this host's faster processor; the environment in which a lab machine finds that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = {"PYTHONPYCACHEPREFIX": str(_BYTE_CODE)}
    imports = f"import {', '.join(modules.split())}"
    subprocess.run([sys.executable, "-c", imports], env=environment | found, cwd=REPOSITORY, check=True)
    return found
