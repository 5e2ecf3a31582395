"""`make bench-scrape`: what it costs a migration to be watched: the same moves, scraped once a second and not at all.

Two hosts of this machine, each with both its workers, and an exporter. Moves with and without scrapes take turns, at a
pace below what two processors can send, as a link paces those of real hosts: at full speed two equal moves differed
here by half of their time, and no ratio said anything. What noise is left is shown beside: the same ratio between moves
that nobody scraped. A host without a processor to spare pays the processor time that its two workers take for a scrape
of each: a second of a move costs one. The exporter, which may be anywhere, is shown apart.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from config.settings import RedisSettings
from tasks.app import bell_for
from tasks.cli.guest import announce
from tasks.ledger.ledger import Ledger
from tasks.messages import MigrateRequest, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.requests import admit, submit, watch
from tests.benchmarks.document import document
from tests.benchmarks.rdma.report import Bar
from tests.redis_server import RedisServer
from workers.guests.memory_spec import MemoryGuestSpec
from workers.pairing.contract import Side

RESULTS = Path(__file__).resolve().parent.parent / "results" / "scrape.json"
ROOT = Path(__file__).resolve().parents[3]
_NAMES = ("alpha", "beta")
#: Bytes/s at which the guest is sent, and at which it writes.
_PACE, _DIRTY_RATE = 192 << 20, 10 << 20
#: Scrapes of each page, one after the other, by which the processor time of one is known.
_SCRAPES = 200


def main() -> int:
    """Run and report; exit code 1 when a bar is short."""
    arguments = _arguments()
    server = RedisServer()
    try:
        server.start()
        results = _measured(server, arguments.moves, arguments.memory << 20)
    finally:
        server.close()
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    print(document(results), end="")
    if not arguments.quick:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        RESULTS.write_text(document({"machine": machine, "date": date, **results}))
    bars = [
        Bar("scrape-cost, processor time", 1 + results["processor_share"], 1.01),
        Bar("scrape-cost, median of pairs", results["ratio"], 1.01),
    ]
    print(*bars, sep="\n")
    noise = results["noise_low"], results["noise_high"]
    print(f"noise: pairs of moves that nobody scraped, middle half {noise[0]:.3f} to {noise[1]:.3f}")
    return 0 if all(bar.met for bar in bars) else 1


def _measured(server: RedisServer, moves: int, memory: int) -> dict[str, float]:
    with LocalFleet(RedisSettings.model_validate({"url": server.url}), _NAMES, ram_bytes=2 * memory) as fleet:
        pages = []
        for host in fleet.hosts.values():
            ports = {"metrics_source_port": free_port(), "metrics_destination_port": free_port()}
            host.settings = host.settings.model_copy(update={"host": host.settings.host.model_copy(update=ports)})
            pages += ports.values()
        fleet.start()
        alpha = fleet.hosts["alpha"]
        guest = alpha.guests.start(MemoryGuestSpec("web", memory, _DIRTY_RATE))
        guest.wait_filled(120)
        with closing(Ledger(fleet.settings)) as ledger, exporter(fleet) as (port, pid):
            announce(ledger, alpha.settings, guest)
            workers = [alpha.pid(side) for side in Side]
            own = [alpha.settings.host.metrics_source_port, alpha.settings.host.metrics_destination_port]
            every = [*pages, port]
            there = _Guest(fleet, ledger)
            there.move()  # the first has imports and caches to pay for
            plain, watched, ratios = [], [], []
            for number in range(moves):
                pair = {}
                for scraped in (number % 2 == 0, number % 2 == 1):  # who goes first takes turns
                    with scraping(every) if scraped else silence():
                        pair[scraped] = there.move()
                plain.append(pair[False])
                watched.append(pair[True])
                ratios.append(pair[True] / pair[False])
            of_a_host, of_exporter = _processor_time(own, workers), _processor_time([port], [pid])
    noise = [later / earlier for earlier, later in itertools.pairwise(plain)]
    low, _, high = statistics.quantiles(noise, n=4) if len(noise) > 1 else (1.0, 1.0, 1.0)
    return {
        "moves": moves,
        "memory": memory,
        "plain_seconds": statistics.median(plain),
        "scraped_seconds": statistics.median(watched),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "noise_low": low,
        "noise_high": high,
        # Of one processor of a host, where a second of a move costs a scrape of both its workers.
        "processor_share": of_a_host,
        "exporter_seconds_a_scrape": of_exporter,
    }


class _Guest:
    """One guest that goes to and fro."""

    def __init__(self, fleet: LocalFleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._bell = bell_for(fleet.settings)
        self._at = 0

    def move(self) -> float:
        """Seconds, by its source's mover."""
        self._at = 1 - self._at
        paced = {"max-bandwidth": _PACE}
        request = MigrateRequest(
            migration=new_migration_id(), guest="web", destination=_NAMES[self._at], parameters=paced
        )
        submit(self._ledger, request)
        admit(self._ledger, self._bell)
        *_, record = watch(self._ledger, request.migration)
        assert record.state == "completed", record.message
        assert record.source.progress is not None
        return float(record.source.progress["seconds"]["total"])


@contextmanager
def silence() -> Iterator[None]:
    yield


@contextmanager
def scraping(ports: Sequence[int]) -> Iterator[None]:
    """Every page once a second, from a thread, the first at once."""
    ending = threading.Event()

    def scrape() -> None:
        while True:
            began = time.monotonic()
            for port in ports:
                fetch(port)
            if ending.wait(max(0.0, began + 1 - time.monotonic())):
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def exporter(fleet: LocalFleet) -> Iterator[tuple[int, int]]:
    """Its port and its process."""
    port = free_port()
    command = [sys.executable, "-m", "tasks.cli.main", "exporter", "--port", str(port)]
    environment = os.environ | fleet.settings.environment()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _processor_time(ports: Sequence[int], processes: Sequence[int]) -> float:
    """Seconds of processor time of these processes for a scrape of each page, what they do beside it taken off."""
    time.sleep(3)
    began, before = time.monotonic(), spent(processes)
    time.sleep(5)
    idle = (spent(processes) - before) / (time.monotonic() - began)
    began, before = time.monotonic(), spent(processes)
    for _ in range(_SCRAPES):
        for port in ports:
            fetch(port)
    return max(0.0, spent(processes) - before - idle * (time.monotonic() - began)) / _SCRAPES


def spent(processes: Sequence[int]) -> float:
    """Processor time so far, in seconds."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def fetch(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        page.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-scrape",
        description="Move a guest with and without a scrape a second. Prints figures, and a line for each bar; the "
        "exit code is 1 when one is short.",
    )
    parser.add_argument("--moves", type=int, default=15, metavar="N", help="of each kind")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of the guest")
    parser.add_argument("--quick", action="store_true", help="few and small, for a look; results are not kept")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.moves, arguments.memory = 3, 256
    return arguments


if __name__ == "__main__":
    sys.exit(main())
