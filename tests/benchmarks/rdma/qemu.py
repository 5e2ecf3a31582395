"""QEMU's own migration, between two QEMUs of one machine: both run and are told everything before the clock starts."""

from __future__ import annotations

import itertools
import json
import select
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tasks.one_machine.tied import tied_to_us
from tests.benchmarks.rdma.contestants import MEMORY, Contestant

_ADDRESS = "10.9.1.1"
_UNLIMITED = 100_000_000_000  # bytes/s; the default is 128 MiB/s
_SECONDS = 120.0
_ports = itertools.count(4444)


class Qemu:
    """A stopped guest whose RAM is the file `ram`, mapped shared, as memory that RDMA is to read must be."""

    def __init__(self, ram: Path, *, incoming: bool) -> None:
        qmp = ram.with_suffix(".qmp")
        qmp.unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-machine", "pc,memory-backend=ram", "-m", f"{MEMORY >> 20}M"]
        command += ["-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={ram},share=on"]
        command += ["-qmp", f"unix:{qmp},server=on,wait=off", *(["-incoming", "defer"] if incoming else [])]
        self._said = ram.with_suffix(".log")
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(tied_to_us(command), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        self.pid = self._process.pid
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""
        try:
            self._connect(qmp)
        except BaseException:
            self.close()
            raise
        #: What its migration came to last; its MIGRATION events say so.
        self.status = "none"

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns; RuntimeError with its reason when it refuses."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            for said in self._hear():
                if "return" in said:
                    return said["return"]
                if "error" in said:
                    raise RuntimeError(f"QEMU refuses {command}: {said['error']['desc']}\n{self._said.read_text()}")

    def fileno(self) -> int:
        """To be waited for; `listen` then."""
        return self._socket.fileno()

    def listen(self) -> None:
        """Take in what it says by itself. RuntimeError when its migration failed."""
        self._hear()
        if self.status == "failed":
            reason = self.execute("query-migrate").get("error-desc", "no reason given")
            raise RuntimeError(f"QEMU's migration failed: {reason}\n{self._said.read_text()}")

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _connect(self, qmp: Path) -> None:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                self._socket.connect(str(qmp))
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"QEMU did not start: {self._said.read_text()}") from None
                time.sleep(0.02)
            else:
                break
        self.execute("qmp_capabilities")

    def _hear(self) -> list[dict[str, Any]]:
        received = self._socket.recv(65536)
        if not received:
            raise RuntimeError(f"QEMU ended: {self._said.read_text()}")
        *lines, self._received = (self._received + received).split(b"\n")
        said = [json.loads(line) for line in lines]
        for each in said:
            if each.get("event") == "MIGRATION":
                self.status = each["data"]["status"]
        return [each for each in said if "event" not in each and "QMP" not in each]


def migrate(how: Contestant, source: Path, destination: Path, watch: Callable[[int, int], None] | None) -> float:
    """Seconds from `migrate` until both QEMUs have said that it is complete.

    `watch(source's pid, destination's)` is called every 20 ms meanwhile.
    """
    port = next(_ports)
    uri = f"{'rdma' if how.transport == 'verbs' else 'tcp'}:{_ADDRESS}:{port}"
    capabilities = {"events": True, "rdma-pin-all": how.policy == "pin-all"}
    asked = [{"capability": name, "state": state} for name, state in capabilities.items()]
    with ExitStack() as stack:
        sender, receiver = (Qemu(path, incoming=path is destination) for path in (source, destination))
        for one in (sender, receiver):
            stack.callback(one.close)
            one.execute("migrate-set-capabilities", capabilities=asked)
            one.execute("migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
        receiver.execute("migrate-incoming", uri=uri)
        began = time.monotonic()
        sender.execute("migrate", uri=uri)
        while {sender.status, receiver.status} != {"completed"}:
            ready, _, _ = select.select([sender, receiver], [], [], 0.02 if watch else _SECONDS)
            if not ready and not watch:
                raise RuntimeError(f"QEMU said nothing for {_SECONDS:g} s: {sender.status}, {receiver.status}")
            for one in ready:
                one.listen()
            if watch:
                watch(sender.pid, receiver.pid)
        return time.monotonic() - began
