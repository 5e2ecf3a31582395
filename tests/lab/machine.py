"""A lab machine: Debian's kernel under QEMU, the host's file system as its own, and commands run in it.

The machine is emulated (TCG), so it needs no KVM and nothing of the host's kernel. It sees the host's files at their
own paths, read-only, with memory over /run, /tmp, /var/tmp, /var/lib and /dev/shm; `share` is writable on both sides.
The clock that counts is the host's: what takes 1 s here takes 20 to 50 in there for Python, 3 to 10 for the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks.one_machine.tied import tied_to_us

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LAB = REPOSITORY / ".lab"
SHARE_IN_GUEST = Path("/run/share")
HOST_IN_GUEST = "10.0.2.2"  # QEMU's user network leads this address to the host's loopback
#: PCI addresses of the devices of a machine with `spare` ones.
SPARE_CARD, SPARE_DISK = "0000:00:10.0", "0000:00:11.0"

# x86-64-v2. Newer models are slower here: with `erms` the kernel copies by `rep movsb`, which TCG executes byte by byte
# (rxe: 105 MB/s with this model, 37 with `max`).
_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"
_BOOT_SECONDS = 120.0  # 7 on two quiet cores, 35 with eight jobs on them
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class MachineError(Exception):
    """The machine did not boot, or is gone; the message ends with its console's last lines."""


def why_no_lab() -> str | None:
    """What this host lacks for a lab machine, or None."""
    if not (LAB / ".installed").exists():
        return "no RDMA lab in .lab: `make lab` builds it on Debian"
    if shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64 for the RDMA lab: `make lab` installs it on Debian"
    return None


@dataclass(frozen=True, slots=True)
class Result:
    """How a process in the machine ended, and what it printed. A negative `returncode` is the signal that ended it."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a cable between two machines. `number` (1 or 2) becomes part of the machine's addresses on it."""

    number: int
    plug: socket.socket


def link() -> tuple[LinkEnd, LinkEnd]:
    """A cable: frames go through a socket pair, so there is no port or path to leave behind."""
    one, two = socket.socketpair()
    return LinkEnd(1, one), LinkEnd(2, two)


class Running:
    """A process in a machine."""

    def __init__(self, machine: Machine, number: int, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.pid: int | None = None
        """Its id in the machine; None if it could not be started (it then ended with 127)."""
        self._machine = machine
        self._number = number
        self._returncode: int | None = None
        self._started = False

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return self._output("out")

    @property
    def stderr(self) -> str:
        """What it printed there so far."""
        return self._output("err")

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._returncode

    def wait(self, timeout: float) -> Result:
        """Its end. After `timeout` seconds of the host's clock it is killed with its group, and TimeoutError raised."""
        try:
            self._machine.await_that(lambda: self._returncode is not None, timeout)
        except TimeoutError:
            self.signal(signal.SIGKILL, group=True)
            raise TimeoutError(
                f"{self._machine.name}: {self.argv} still ran after {timeout} s\n{self.report()}"
            ) from None
        assert self._returncode is not None
        return Result(self._returncode, self.stdout, self.stderr)

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to it, or to its whole group; nothing happens if it has ended."""
        self._machine.send(do="signal", number=self._number, signal=int(number), group=group)

    def report(self) -> str:
        """Its output and the machine's last console lines, for a failure's message."""
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}\n{self._machine.console_tail()}"

    def heard(self, reply: Mapping[str, Any]) -> None:
        """Take in what the agent said of it."""
        if "started" in reply:
            self.pid = reply["pid"]
            self._started = True
        else:
            self._returncode = reply["returncode"]

    def has_started(self) -> bool:
        """Whether the agent has said so."""
        return self._started

    def _output(self, suffix: str) -> str:
        return (self._machine.share / ".outputs" / f"{self._number}.{suffix}").read_text(errors="replace")


class Machine:
    """One virtual machine: `with` switches it on, its first command waits for the boot, the block's end ends it.

    Nothing of it stays: it has no sockets with names; QEMU ends with the *thread* that started it, however that ends;
    and its directory is removed by a process that outlives us for as long as that takes.
    """

    def __init__(
        self,
        name: str,
        memory: str = "3G",
        cpus: int = 1,
        link: LinkEnd | None = None,
        *,
        terminal: bool = False,
        spare: bool = False,
    ) -> None:
        """`memory` is taken from the host as it is touched. With `terminal` the console is our own stdin and stdout.

        With `spare` it has an IOMMU, and behind it a card and an NVMe controller that no driver has: for vfio.

        A second processor makes emulation slower (importing Celery: 8 to 17 s, not 5 to 11, on a busy host) and rxe no
        faster.
        """
        self.name = name
        self._memory, self._cpus, self._link, self._terminal = memory, cpus, link, terminal
        self._spare = spare
        self._running: dict[int, Running] = {}
        self._changed = threading.Condition()
        self._ready = False
        self._gone = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._directory = stack.enter_context(_directory_that_goes_with_us())
            self.share.mkdir()
            self._port, theirs = socket.socketpair()
            stack.callback(self._port.close)
            with theirs, (self._directory / "qemu").open("wb") as complaints:
                self._qemu = subprocess.Popen(
                    tied_to_us(self._command(theirs.fileno())),
                    stdin=None if self._terminal else subprocess.DEVNULL,
                    stdout=None if self._terminal else subprocess.DEVNULL,
                    stderr=complaints,
                    pass_fds=[theirs.fileno(), *([self._link.plug.fileno()] if self._link else [])],
                    # A Ctrl-C is for us: the machine goes when we leave its block.
                    start_new_session=not self._terminal,
                )
            if self._link:
                self._link.plug.close()
            stack.callback(self.kill)
            reader = threading.Thread(target=self._listen, name=f"lab {self.name}", daemon=True)
            reader.start()
            stack.callback(reader.join)
            stack.callback(self._port.shutdown, socket.SHUT_RDWR)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def qemu_pid(self) -> int:
        """QEMU's process id on the host."""
        return self._qemu.pid

    @property
    def share(self) -> Path:
        """A directory of the host, read-write, which the machine sees as /run/share."""
        return self._directory / "share"

    @property
    def console(self) -> str:
        """What the machine's kernel and its PID 1 printed."""
        file = self._directory / "console"
        return file.read_text(errors="replace") if file.exists() else ""

    def console_tail(self) -> str:
        """The last lines of the console and of QEMU's own complaints, for a failure's message."""
        qemu = (self._directory / "qemu").read_text(errors="replace")
        return f"--- console of {self.name}\n{self.console[-4000:]}\n--- QEMU\n{qemu[-2000:]}"

    def run(
        self,
        argv: Sequence[str],
        timeout: float,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path = REPOSITORY,
    ) -> Result:
        """Run it to its end; see `start` and `Running.wait`."""
        return self.start(argv, env=env, user=user, cwd=cwd).wait(timeout)

    def start(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, user: str | None = None, cwd: Path = REPOSITORY
    ) -> Running:
        """Start a process in a session of its own, as `user` (default root), `env` on top of a plain environment.

        What cannot be started ends with 127 and the reason on stderr.
        """
        self._await_boot()
        number = len(self._running) + 1
        running = self._running[number] = Running(self, number, argv)
        environment = {**_ENVIRONMENT, **(env or {})}
        self.send(do="start", number=number, argv=list(argv), env=environment, user=user, cwd=str(cwd))
        self.await_that(running.has_started, 60.0)
        return running

    def network(self, *kind: str) -> None:
        """Bring up the networks and RDMA devices that tests/lab/network describes: loopback, wired, or link N."""
        result = self.run([str(REPOSITORY / "tests" / "lab" / "network"), *kind], 60.0)
        if result.returncode != 0:
            raise MachineError(
                f"tests/lab/network {kind} failed in {self.name}: {result.stderr}\n{self.console_tail()}"
            )

    def kill(self) -> None:
        """End it as a power failure would."""
        self._qemu.kill()
        self._qemu.wait()

    def send(self, **request: object) -> None:
        """Tell the agent; MachineError if there is none any more."""
        try:
            self._port.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._no_machine() from error

    def await_that(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until what the agent said makes `condition` true: TimeoutError, or MachineError if the machine ends."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._gone, timeout):
                raise TimeoutError
            if not condition():
                raise self._no_machine()

    def _await_boot(self) -> None:
        try:
            self.await_that(lambda: self._ready, _BOOT_SECONDS)
        except TimeoutError:
            report = self.console_tail()
            raise MachineError(f"{self.name} did not boot within {_BOOT_SECONDS:.0f} s\n{report}") from None

    def _no_machine(self) -> MachineError:
        return MachineError(f"the machine {self.name} is gone\n{self.console_tail()}")

    def _listen(self) -> None:
        received = b""
        while data := self._receive():
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                with self._changed:
                    self._ready = True
                    if "ready" not in reply:
                        self._running[reply.get("started") or reply["ended"]].heard(reply)
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._port.recv(65536)
        except ConnectionError:
            return b""

    def _command(self, port: int) -> list[str]:
        python = os.path.realpath(sys.executable)
        boot = f"console=ttyS0 panic=-1 quiet mitigations=off repository={REPOSITORY} python={python}"
        boot += " intel_iommu=on" if self._spare else ""
        console = self._directory / "console"
        serial = f"stdio,signal=off,logfile={console}" if self._terminal else f"file,path={console}"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += ["-machine", "q35", "-accel", "tcg", "-cpu", _CPU, "-smp", str(self._cpus), "-m", self._memory]
        command += ["-kernel", str(LAB / "linux"), "-initrd", str(LAB / "initrd"), "-append", boot]
        command += ["-chardev", f"{serial},id=console", "-serial", "chardev:console"]
        for tag, path, options in (("root", Path("/"), ",readonly=on"), ("share", self.share, "")):
            command += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"]
            command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={port}"]
        command += ["-device", "virtserialport,chardev=agent,name=agent"]
        # romfile=: nobody boots from the network, and the option ROM's package is not installed.
        if self._link:
            command += ["-netdev", f"socket,id=link,fd={self._link.plug.fileno()}"]
            command += ["-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:01:0{self._link.number},romfile="]
        command += [
            "-netdev",
            "user,id=host,ipv6=off",
            "-device",
            "virtio-net-pci,netdev=host,mac=52:54:00:00:02:01,romfile=",
        ]
        if self._spare:
            command += ["-device", "intel-iommu", "-device", f"e1000e,addr={_slot(SPARE_CARD)},romfile="]
            command += ["-blockdev", "null-co,node-name=spare,size=16777216,read-zeroes=on"]
            command += ["-device", f"nvme,drive=spare,serial=spare,addr={_slot(SPARE_DISK)}"]
        return command


def _slot(address: str) -> str:
    """Of a device on the root bus, as its `addr` has it."""
    return address.rpartition(":")[2]


@contextlib.contextmanager
def _directory_that_goes_with_us() -> Iterator[Path]:
    """A directory under /tmp that is removed at the end of the block, or when this process ends in any other way."""
    directory = Path(tempfile.mkdtemp(prefix="droveway-lab-"))
    # Its stdin closes with us. The second try is for a QEMU that was still ending.
    sweep = 'cat; rm -rf "$0" || { sleep 1; rm -rf "$0"; }'
    with subprocess.Popen(
        ["sh", "-c", sweep, str(directory)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ):
        yield directory
