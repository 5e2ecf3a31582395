"""From a guest's shape to the command line that this host starts it with. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.guests.qemu.spec import Disk, Nic, QemuGuestSpec


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of one guest lie on this host."""

    binary: str
    ram: Path
    directory: Path
    #: Where the QMP sockets of a QEMU are that somebody else started; they may be one.
    monitor_elsewhere: Path | None = None
    status_elsewhere: Path | None = None

    @property
    def monitor(self) -> Path:
        """The QMP socket of whoever moves or changes the guest: QEMU talks to one client at a time."""
        return self.monitor_elsewhere or self.directory / "monitor"

    @property
    def status(self) -> Path:
        """The QMP socket of whoever only asks."""
        return self.status_elsewhere or self.directory / "status"

    @property
    def console(self) -> Path:
        """The serial console."""
        return self.directory / "console"

    @property
    def console_log(self) -> Path:
        """All that the console ever said on this host."""
        return self.directory / "console.log"

    @property
    def log(self) -> Path:
        """What QEMU says once it is up: a daemon has no standard error."""
        return self.directory / "qemu.log"

    @property
    def pid_file(self) -> Path:
        """Written by QEMU once it is up."""
        return self.directory / "qemu.pid"


def command_line(spec: QemuGuestSpec, places: Places, *, incoming: bool) -> list[str]:
    """QEMU's arguments. An incoming guest waits for `migrate-incoming`, and stays paused until `cont` (-S)."""
    words = [places.binary, "-name", f"guest={spec.name}", "-uuid", str(spec.uuid)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-pidfile", str(places.pid_file)]
    # Of what -d can turn on, page logs nothing in a machine; without any, -D is not even opened.
    words += ["-d", "page", "-D", str(places.log)]
    words += ["-accel", spec.accel, "-machine", f"{spec.machine},memory-backend={spec.ram_id}", "-cpu", spec.cpu]
    words += ["-smp", str(spec.vcpus), "-m", f"{spec.memory >> 10}K"]
    words += ["-object", _json(_ram(spec, places))]
    for name, path in (("monitor", places.monitor), ("status", places.status)):
        words += ["-chardev", _socket(name, path), "-mon", f"chardev={name},mode=control"]
    words += ["-chardev", f"{_socket('console', places.console)},logfile={_escaped(places.console_log)}"]
    words += ["-serial", "chardev:console"]
    for number, disk in enumerate(spec.disks):
        words += _disk(number, disk)
    for number, nic in enumerate(spec.nics):
        words += _nic(number, nic)
    words += ["-device", "virtio-balloon-pci,id=balloon"] if spec.balloon else []
    for option, value in (("-bios", spec.firmware), ("-kernel", spec.kernel), ("-initrd", spec.initrd)):
        words += [option, value] if value else []
    words += ["-append", spec.append] if spec.append else []
    return words + (["-incoming", "defer", "-S"] if incoming else [])


def _ram(spec: QemuGuestSpec, places: Places) -> dict[str, Any]:
    """A named file, shared: QEMU then leaves it out of its own stream (x-ignore-shared)."""
    if spec.memory_backend == "anonymous":
        return {"qom-type": "memory-backend-ram", "id": spec.ram_id, "size": spec.memory}
    return {
        "qom-type": "memory-backend-file",
        "id": spec.ram_id,
        "size": spec.memory,
        "mem-path": str(places.ram),
        "share": True,
        "align": 2 << 20,  # else QEMU maps it at an odd page, and no huge page ever fits (measured)
    }


def _disk(number: int, disk: Disk) -> list[str]:
    direct = disk.cache in ("none", "directsync")
    file = {
        "driver": "file",
        "filename": disk.path,
        "aio": disk.aio,
        "cache": {"direct": direct, "no-flush": False},
    }
    node = {
        "driver": disk.format,
        "node-name": f"disk{number}",
        "read-only": disk.read_only,
        "cache": {"direct": direct, "no-flush": False},
        "file": file | {"read-only": disk.read_only},
    }
    device = {
        "driver": "virtio-blk-pci",
        "id": f"virtio-disk{number}",
        "drive": f"disk{number}",
        "write-cache": "on" if disk.cache in ("none", "writeback") else "off",
    }
    return ["-blockdev", _json(node), "-device", _json(device)]


def _nic(number: int, nic: Nic) -> list[str]:
    backend = f"tap,id=net{number},ifname={nic.tap},script=no,downscript=no" if nic.tap else f"user,id=net{number}"
    # romfile: nobody boots from the network, and the option ROM would be sent while the guest is paused.
    device = {"driver": "virtio-net-pci", "netdev": f"net{number}", "mac": nic.mac, "romfile": ""}
    return ["-netdev", backend, "-device", _json(device | {"id": f"virtio-net{number}"})]


def _socket(name: str, path: Path) -> str:
    return f"socket,id={name},path={_escaped(path)},server=on,wait=off"


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _json(what: dict[str, Any]) -> str:
    return json.dumps(what)
