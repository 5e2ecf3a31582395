"""What this host has of what a described guest needs: facts for `blockers`, gathered without starting the guest."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from config.errors import HostError
from workers.guests.qemu.blockers import DestinationFacts, FilePair
from workers.guests.qemu.files import identity, read_once
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.needs import FileIdentity, Needs
from workers.guests.qemu.queries import asked
from workers.guests.qemu.spec import QemuGuestSpec

#: For QEMU to come up in, on a loaded host too. One that runs answers within milliseconds.
START_SECONDS = 60.0
_KVM = Path("/dev/kvm")
_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_API = 0xAE00, 0xAE01, 12
_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000


def facts_for(binary: str, spec: QemuGuestSpec, needs: Needs) -> DestinationFacts:
    """Ask this host's QEMU and kernel. Raises nothing: what cannot be asked is a fact too."""
    known: dict[str, Any] = {}
    accel_problem = accelerator_problem(spec.accel)
    try:
        with probed(binary, "-accel", spec.accel if not accel_problem else "tcg") as monitor:
            known = _known(monitor)
    except HostError as error:
        known = {"qemu_problem": str(error)}
    return DestinationFacts(
        machine=spec.machine,
        cpu=spec.cpu,
        accel=spec.accel,
        accel_problem=accel_problem,
        # Without its accelerator QEMU cannot say which features it would give.
        features_wanted=frozenset() if accel_problem else frozenset(needs.features),
        files=tuple(_files(spec, needs)),
        tap_problems={nic.tap: problem for nic in spec.nics if nic.tap and (problem := _tap_problem(nic.tap))},
        **known,
    )


@contextmanager
def probed(binary: str, *options: str) -> Iterator[Monitor]:
    """A QEMU without a machine, for the time of the body, to be asked what it knows. Raises HostError."""
    words = [binary, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S", *options]
    with not_outliving_us(words) as monitor:
        yield monitor


@contextmanager
def not_outliving_us(command: Sequence[str]) -> Iterator[Monitor]:
    """A QEMU for the time of the body: the kernel ends it, however we end. Raises HostError with its last words."""
    binary = command[0]
    if shutil.which(binary) is None:
        raise HostError(f"{binary} is not installed")
    with ExitStack() as cleanup:
        ours, theirs = socket.socketpair()
        cleanup.callback(ours.close)
        with theirs:
            # setpriv becomes QEMU, with the same process id.
            tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
            line = ["-chardev", f"socket,id=probe,fd={theirs.fileno()}", "-mon", "chardev=probe,mode=control"]
            try:
                process = subprocess.Popen(
                    [*tied, *command, *line],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                raise HostError(f"{binary} cannot be started ({error.strerror})") from None
        complaints = cleanup.enter_context(process).stderr
        cleanup.callback(process.kill)
        try:
            monitor = Monitor(binary, ours, START_SECONDS)
        except HostError as error:
            process.kill()
            said = complaints.read().decode("utf-8", "replace").strip() if complaints else ""
            raise HostError(f"{binary} cannot be asked: {said.splitlines()[-1] if said else error}") from None
        with monitor:
            yield monitor


def _known(monitor: Monitor) -> dict[str, Any]:
    machines = monitor.execute("query-machines")
    capabilities = asked(monitor, "query-migrate-capabilities")
    expanded = asked(monitor, "query-cpu-model-expansion", type="static", model={"name": "max"})
    features = expanded["model"]["props"] if expanded else {}
    return {
        "machines": frozenset(each[key] for each in machines for key in ("name", "alias") if key in each),
        "cpu_models": frozenset(each["name"] for each in monitor.execute("query-cpu-definitions")),
        "features": frozenset(name for name, said in features.items() if said is True),
        "capabilities": None if capabilities is None else frozenset(each["capability"] for each in capabilities),
    }


def _files(spec: QemuGuestSpec, needs: Needs) -> Iterator[FilePair]:
    """The files of the shape, and those behind them (backing files) that the source has open."""
    theirs: Mapping[str, FileIdentity] = {each.path: each for each in needs.files}
    once = read_once(spec)
    writable = {disk.path for disk in spec.disks if not disk.read_only}
    for path in dict.fromkeys([*(disk.path for disk in spec.disks), *theirs, *once]):
        ours, problem = None, ""
        try:
            ours = identity(path, contents=path in once)
        except OSError as error:
            problem = f"cannot be looked at here ({error.strerror})"
        if ours and not os.access(path, os.R_OK | (os.W_OK if path in writable else 0)):
            problem = f"may not be {'written' if path in writable else 'read'} here"
        yield FilePair(path, path not in once, theirs.get(path), ours, problem)


def accelerator_problem(accel: str) -> str:
    """Why this accelerator does not work here, as the end of a sentence; "" when it does."""
    if accel != "kvm":
        return ""
    try:
        descriptor = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"and {_KVM} cannot be opened here ({error.strerror})"
    try:
        if fcntl.ioctl(descriptor, _KVM_GET_API_VERSION) != _KVM_API:
            return f"and {_KVM} is of another version here"
        os.close(fcntl.ioctl(descriptor, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"and {_KVM} makes no machine here ({error.strerror})"
    finally:
        os.close(descriptor)
    return ""


def _tap_problem(name: str) -> str:
    """Opened as QEMU will, and closed again. A device that is not there would be made by that, so it is looked for."""
    if not re.fullmatch(r"[\w.-]{1,15}", name) or not Path(f"/sys/class/net/{name}").exists():
        return "is not on this host"
    if not Path(f"/sys/class/net/{name}/tun_flags").exists():
        return "is on this host, and no tap device"
    try:
        descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot be had: {_TUN} cannot be opened ({error.strerror})"
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        # Two hosts of one machine, and a guest between them: QEMU would be told the same.
        return "is in use here" if error.errno == errno.EBUSY else f"cannot be had here ({error.strerror})"
    finally:
        os.close(descriptor)
    return ""
