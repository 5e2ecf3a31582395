"""The shape of a QEMU that runs, read from what it says of itself, for which `vm.toml` would have the words."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.queries import (
    BALLOON,
    DISK,
    NIC,
    asked,
    devices,
    in_order,
    inserted,
    mac,
    machine_memory,
    nets,
    qom_get,
)

_CACHES = {
    (True, True): "none",
    (True, False): "directsync",
    (False, True): "writeback",
    (False, False): "writethrough",
}
_KNOWN = (DISK, NIC, BALLOON)


def read_shape(monitor: Monitor, pid: int, name: str) -> tuple[dict[str, Any], list[str]]:
    """As `QemuGuestSpec.from_json` takes it, and what of the machine no shape can say. Raises HostError."""
    unsaid: list[str] = []
    found = list(devices(monitor))
    unsaid += [f"the device {each.name} is a {each.kind}" for each in found if each.kind not in _KNOWN]
    machine = {key: str(qom_get(monitor, "/machine", key) or "") for key in ("kernel", "initrd", "append", "firmware")}
    shape: dict[str, Any] = {
        "name": name,
        "memory": monitor.execute("query-memory-size-summary")["base-memory"],
        "vcpus": len(monitor.execute("query-cpus-fast")),
        "machine": str(qom_get(monitor, "/machine", "type")).removesuffix("-machine"),
        "accel": "kvm" if (asked(monitor, "query-kvm") or {}).get("enabled") else "tcg",
        "cpu": _cpu(monitor, pid),
        "uuid": monitor.execute("query-uuid")["UUID"],
        "disks": _disks(monitor, in_order(monitor, found, DISK), unsaid),
        "nics": _nics(monitor, in_order(monitor, found, NIC), unsaid),
        "balloon": any(each.kind == BALLOON for each in found),
        "ram_id": machine_memory(monitor),
        "append": machine["append"],
    }
    # Firmware that was not chosen has a bare name, QEMU's own; what was chosen must have a path that means something
    # elsewhere too.
    shape |= {key: machine[key] for key in ("kernel", "initrd") if machine[key]}
    shape |= {"firmware": machine["firmware"]} if "/" in machine["firmware"] else {}
    return shape, unsaid


def _disks(monitor: Monitor, paths: list[str], unsaid: list[str]) -> list[dict[str, Any]]:
    direct = {node["node-name"]: node["cache"]["direct"] for node in monitor.execute("query-named-block-nodes")}
    found = []
    for path, image in zip(paths, inserted(monitor, paths), strict=True):
        if not image:
            unsaid.append(f"the disk {path} has no image")
            continue
        writes_back = qom_get(monitor, path, "write-cache") != "off"
        found.append(
            {
                "path": image["file"],
                "format": image["drv"],
                "cache": _CACHES[direct.get(image["node-name"], image["cache"]["direct"]), writes_back],
                "read_only": image["ro"],
            }
        )
    return found


def _nics(monitor: Monitor, paths: list[str], unsaid: list[str]) -> list[dict[str, Any]]:
    known = {name: (kind, tap) for name, kind, tap in nets(monitor)}
    found = []
    for path in paths:
        kind, tap = known.get(str(qom_get(monitor, path, "netdev")), ("none", ""))
        if kind not in ("user", "tap"):
            unsaid.append(f"the card {path} has a network back-end of type {kind}")
            continue
        found.append({"mac": mac(monitor, path)} | ({"tap": tap} if kind == "tap" else {}))
    return found


def _cpu(monitor: Monitor, pid: int) -> str:
    """What -cpu was given: features that it adds or takes away are nowhere else in one piece."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    for option, value in pairwise(words):
        if option in ("-cpu", "--cpu"):
            return value
    kind = str(monitor.execute("query-hotpluggable-cpus")[0]["type"])
    return kind.rpartition("-cpu")[0].rpartition("-")[0] or kind
