"""PID 1 of a lab machine: starts what the host asks for over a virtio port, and says how it ended.

Requests and replies are lines of JSON; what a process prints goes to files in the share, where the host reads it while
the process runs. Sleeps in select() in between: the guest has one processor for everything. If it fails, so does PID 1,
the kernel panics, and QEMU ends: the host never waits for a machine that has lost its agent. Needs the standard library
alone, since `-I -S` starts it in half the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

OUTPUTS = Path("/run/share/.outputs")


class Agent:
    """Every process that the host started, by the host's number for it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Until the machine is switched off."""
        wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._reply(ready=True)
        received = b""
        while True:
            readable, _, _ = select.select([self._port, wake], [], [])
            if wake in readable:
                os.read(wake, 4096)
                self._reap()
            if self._port in readable:
                received += os.read(self._port, 65536)
                *lines, received = received.split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, request: dict[str, Any]) -> None:
        match request["do"]:
            case "start":
                self._start(request)
            case "signal" if request["number"] in self._processes:  # else it ended while the request was on its way
                pid = self._processes[request["number"]].pid
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if request["group"] else os.kill)(pid, request["signal"])

    def _start(self, request: dict[str, Any]) -> None:
        number = request["number"]
        with (
            (OUTPUTS / f"{number}.out").open("wb", buffering=0) as stdout,
            (OUTPUTS / f"{number}.err").open("wb", buffering=0) as stderr,
        ):
            try:
                user = request["user"] and pwd.getpwnam(request["user"])
                process = subprocess.Popen(
                    request["argv"],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=request["env"],
                    cwd=request["cwd"],
                    user=user and user.pw_uid,
                    group=user and user.pw_gid,
                    extra_groups=user and [],
                    start_new_session=True,
                )
            except (OSError, LookupError) as error:
                stderr.write(f"{request['argv'][0]}: {error}\n".encode())
                self._reply(started=number, pid=None)
                self._reply(ended=number, returncode=127)  # as a shell says it
                return
        self._processes[number] = process
        self._reply(started=number, pid=process.pid)

    def _reap(self) -> None:
        """Collect whatever ended: as PID 1 we also get the orphans of others."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for number, process in list(self._processes.items()):
                    if process.pid == ended[0]:
                        process.returncode = os.waitstatus_to_exitcode(ended[1])  # else Popen would wait for it again
                        del self._processes[number]
                        self._reply(ended=number, returncode=process.returncode)

    def _reply(self, **reply: object) -> None:
        line = json.dumps(reply).encode() + b"\n"
        while line:
            line = line[os.write(self._port, line) :]


def main() -> None:
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    OUTPUTS.mkdir()
    while not (ports := list(Path("/dev").glob("vport*p*"))):  # the driver meets its port shortly after it was loaded
        time.sleep(0.02)
    Agent(os.open(ports[0], os.O_RDWR)).serve()


if __name__ == "__main__":
    main()
