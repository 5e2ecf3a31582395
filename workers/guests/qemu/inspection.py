"""What one running QEMU says of itself, and what the kernel says of its process: facts for `blockers`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config.errors import HostError
from workers.guests.qemu.blockers import Backend, Image, MemoryDevice, Named, Plugged, SourceFacts
from workers.guests.qemu.files import identity, read_once
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.needs import Needs
from workers.guests.qemu.queries import (
    BALLOON,
    DISK,
    NIC,
    asked,
    children,
    devices,
    machine_memory,
    nets,
    plugged,
    qom_get,
)
from workers.guests.qemu.spec import QemuGuestSpec

#: Looks at a balloon, and seconds between two. QEMU does not tell the size that was asked for, only the one that is; a
#: guest that is on its way hands over a MiB within tens of milliseconds.
_BALLOON_LOOKS, _BALLOON_PAUSE = 5, 0.1


def facts_of(
    monitor: Monitor, pid: int, *, ram_id: str = "", shape: Plugged | None = None, monitor_problem: str = ""
) -> SourceFacts:
    """Ask, and look at process `pid`. `ram_id` empty: whatever the machine's own is. Raises HostError."""
    ram_id = ram_id or machine_memory(monitor)
    backends = tuple(_backend(monitor, said) for said in monitor.execute("query-memdev") if said.get("id"))
    path = next((each.path for each in backends if each.name == ram_id), "")
    migration = monitor.execute("query-migrate")
    capabilities = asked(monitor, "query-migrate-capabilities")
    found = list(devices(monitor))
    return SourceFacts(
        memory=monitor.execute("query-memory-size-summary")["base-memory"],
        ram_id=ram_id,
        backends=backends,
        mapped=shared_bytes(pid, path),
        devices=tuple(Named(each.name.rpartition("/")[2], each.kind) for each in found),
        objects=tuple(children(monitor, "/objects")),
        nets=tuple(Named(name, kind) for name, kind, _ in nets(monitor) if kind != "nic"),
        nodes=tuple(Named(node["node-name"], node["drv"]) for node in monitor.execute("query-named-block-nodes")),
        open_devices=frozenset(_open_devices(pid)),
        memory_devices=tuple(_memory_devices(monitor)),
        balloon=tuple(_balloon(monitor)),
        capabilities=None if capabilities is None else frozenset(each["capability"] for each in capabilities),
        blocked_reasons=tuple(migration.get("blocked-reasons", ())),
        monitor_problem=monitor_problem,
        migration=migration.get("status", ""),
        run_state=monitor.execute("query-status")["status"],
        plugged=plugged(monitor, found),
        shape=shape,
    )


def needs_of(monitor: Monitor, spec: QemuGuestSpec) -> Needs:
    """What a destination must have of this QEMU's guest. Raises HostError."""
    disks = {disk.path for disk in spec.disks} | set(_open_images(monitor))
    found = []
    for path, contents in [*((path, False) for path in sorted(disks)), *((path, True) for path in read_once(spec))]:
        try:
            found.append(identity(path, contents=contents))
        except OSError as error:
            raise HostError(f"{path} of guest {spec.name} cannot be looked at ({error.strerror})") from None
    return Needs(files=tuple(found), features=tuple(sorted(_features(monitor))))


def shape_of(spec: QemuGuestSpec) -> Plugged:
    """What our command line plugs into a guest of this shape."""
    counted = {DISK: len(spec.disks), NIC: len(spec.nics), BALLOON: int(spec.balloon)}
    return Plugged(
        kinds={kind: count for kind, count in counted.items() if count},
        disks=tuple(Image(disk.path, disk.format, disk.read_only) for disk in spec.disks),
        macs=tuple(nic.mac for nic in spec.nics),
    )


# --- QMP --------------------------------------------------------------------------------------------------------------


def _backend(monitor: Monitor, said: Mapping[str, Any]) -> Backend:
    path = f"/objects/{said['id']}"
    kind = str(qom_get(monitor, path, "type") or "memory backend of an unknown type")
    file = qom_get(monitor, path, "mem-path") if kind == "memory-backend-file" else None
    return Backend(said["id"], kind, bool(said.get("share")), said["size"], file or "")


def _memory_devices(monitor: Monitor) -> Iterator[MemoryDevice]:
    for said in asked(monitor, "query-memory-devices") or ():
        data = said["data"]
        size = data.get("size", 0)
        yield MemoryDevice(data.get("id") or said["type"], said["type"], size, data.get("requested-size", size))


def _balloon(monitor: Monitor) -> Iterator[int]:
    for look in range(_BALLOON_LOOKS):
        if (said := asked(monitor, "query-balloon")) is None:
            return
        yield said["actual"]
        if look + 1 < _BALLOON_LOOKS:
            time.sleep(_BALLOON_PAUSE)


def _open_images(monitor: Monitor) -> Iterator[str]:
    """Files behind block nodes, backing files among them."""
    for node in monitor.execute("query-named-block-nodes"):
        if node["drv"] in ("file", "host_device") and Path(node["file"]).is_absolute():
            yield node["file"]


def _features(monitor: Monitor) -> Iterator[str]:
    """Features that the guest's first processor really has, of those that this host can give and a move can keep."""
    model = {"name": "max"}
    known = asked(monitor, "query-cpu-model-expansion", type="static", model=model)
    if known is None:
        return
    processor = monitor.execute("query-cpus-fast")[0]["qom-path"]
    for name, said in known["model"]["props"].items():
        if said is True and qom_get(monitor, processor, name) is True:
            yield name


# --- /proc ------------------------------------------------------------------------------------------------------------


def shared_bytes(pid: int, path: str) -> int:
    """How much of the file at `path` the process has mapped shared and writable; 0 without such a file."""
    try:
        said = Path(path).stat()
        lines = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    mapped: Counter[int] = Counter()
    for line in lines:
        span, rights, _, _, inode, *_ = line.split(None, 5)
        if rights[1] == "w" and rights[3] == "s":
            start, end = (int(word, 16) for word in span.split("-"))
            mapped[int(inode)] += end - start
    return mapped[said.st_ino]


def _open_devices(pid: int) -> Iterator[str]:
    directory = Path(f"/proc/{pid}/fd")
    try:
        entries = list(directory.iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("/dev/"):
            yield target
