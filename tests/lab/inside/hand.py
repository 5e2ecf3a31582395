"""Our hand on one host of the fleet in the lab: started in the machine once, asked over a connection to the test run.

A command of its own for every question would take 10 s of imports in there. Requests and replies are lines of JSON:
`{"do": NAME, "with": {...}}` is answered by `{"value": ...}` or `{"error": ...}`. Ends with the connection.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from config.settings import Settings, load_settings
from workers.guests.local import LocalGuests
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec

_SAMPLE_SECONDS = 0.25
#: Bytes a second. The default would take all of an emulated processor; every page is checked on request here.
_CHECK_RATE = 1 << 20


class Hand:
    """What can be asked for; every public method is a request."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        self._state_dir, self._ram_dir = settings.host.state_dir, settings.host.ram_dir
        self._guests = LocalGuests(self._state_dir, self._ram_dir)
        self._most_pinned: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, name: str, memory: int, dirty_rate: int) -> None:
        """A guest that has filled its memory."""
        for directory in (self._state_dir, self._ram_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guests.start(MemoryGuestSpec(name, memory, dirty_rate, check_rate=_CHECK_RATE)).wait_filled(120)

    def stop(self, name: str) -> None:
        """End it."""
        self._guests.stop(name)

    def oracle(self, name: str, full: bool) -> dict[str, Any]:
        """What the guest's own checks say, and its state of running."""
        guest = self._guests.open(name)
        assert isinstance(guest, MemoryGuest)
        return guest.query_oracle(full=full) | {"status": guest.status().value}

    def movers(self) -> dict[str, dict[str, Any]]:
        """By `migration.epoch.side`: process and its state as in /proc/PID/stat, of the movers that live."""
        found = {}
        for path in self._state_dir.glob("movers/[!.]*/pid"):
            said = _text(path)  # nothing when the attempt is just being removed
            pid = json.loads(said)["pid"] if said else None
            if stat := _text(Path(f"/proc/{pid}/stat")):
                found[path.parent.name] = {"pid": pid, "state": stat.rpartition(")")[2].split()[0]}
        return found

    def left(self) -> dict[str, list[str]]:
        """What a migration might leave: attempts, RAM files, guests, pinning processes, queue pairs of programs."""
        shown = subprocess.run(["rdma", "-j", "resource", "show", "qp"], capture_output=True, check=True).stdout
        return {
            "attempts": [path.name for path in self._state_dir.glob("movers/*")],
            "ram files": [path.name for path in self._ram_dir.glob("*")],
            "guests": [each.name for each in self._guests.list()],
            "pinned": [f"{path.parent.name}: {pinned}" for path in _processes() if (pinned := _pinned(path))],
            # The general service interface (GSI) is the kernel's own queue pair.
            "queue pairs": [json.dumps(each) for each in json.loads(shown or "[]") if each["type"] != "GSI"],
        }

    def most_pinned(self) -> dict[str, int]:
        """By `migration.epoch.side`: the most bytes seen pinned (VmPin) in its mover, looked at 4 times a second."""
        return self._most_pinned

    def metrics(self, side: str) -> str:
        """The page of this side's worker."""
        host = self._host
        port = host.metrics_source_port if side == "source" else host.metrics_destination_port
        with urllib.request.urlopen(f"http://{host.metrics_listen}:{port}/metrics", timeout=60) as page:
            return str(page.read().decode())

    def log(self) -> str:
        """What movers and guests wrote for people."""
        paths = sorted([*self._state_dir.glob("movers/*/log"), *self._state_dir.glob("guests/*/log")])
        return "\n".join(f"--- {path}\n{_text(path)[-4000:]}" for path in paths)

    def _watch(self) -> None:
        while True:
            for name, mover in self.movers().items():
                pinned = _pinned(Path(f"/proc/{mover['pid']}/status"))
                self._most_pinned[name] = max(pinned, self._most_pinned.get(name, 0))
            time.sleep(_SAMPLE_SECONDS)


def _processes() -> list[Path]:
    return list(Path("/proc").glob("[0-9]*/status"))


def _pinned(status: Path) -> int:
    """VmPin in bytes; 0 of a process that is gone, and of a kernel thread."""
    for line in _text(status).splitlines():
        if line.startswith("VmPin:"):
            return int(line.split()[1]) << 10
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def main(address: str, port: int) -> None:
    hand = Hand(load_settings())
    with socket.create_connection((address, port)) as connection, connection.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            try:
                reply = {"value": getattr(hand, request["do"])(**request["with"])}
            except Exception as error:  # the asking test must hear of it, whatever it is
                reply = {"error": f"{type(error).__name__}: {error}"}
            lines.write(json.dumps(reply) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
