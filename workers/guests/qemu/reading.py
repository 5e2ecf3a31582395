"""The shape of a QEMU that runs, read from what it says of itself, for which `vm.toml` would have the words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from workers.guests.qemu.blockers import Named
from workers.guests.qemu.inspection import asked, children, hmp, machine_memory
from workers.guests.qemu.monitor import Monitor

_NET = re.compile(r"^[ \\]*([^:]+): index=\d+,type=([a-z0-9-]+)(?:,.*?ifname=([^,\s]+))?", re.MULTILINE)
_CACHES = {
    (True, True): "none",
    (True, False): "directsync",
    (False, True): "writeback",
    (False, False): "writethrough",
}
_KNOWN = ("virtio-blk-pci", "virtio-net-pci", "virtio-balloon-pci")


def read_shape(monitor: Monitor, pid: int, name: str) -> tuple[dict[str, Any], list[str]]:
    """As `QemuGuestSpec.from_json` takes it, and what of the machine no shape can say. Raises HostError."""
    unsaid: list[str] = []
    devices = sorted(_placed(monitor))
    paths: dict[str, list[str]] = {kind: [path for _, path, its in devices if its == kind] for kind in _KNOWN}
    unsaid += [f"the device {path} is a {kind}" for _, path, kind in devices if kind not in _KNOWN]
    machine = {key: str(_get(monitor, "/machine", key) or "") for key in ("kernel", "initrd", "append", "firmware")}
    shape: dict[str, Any] = {
        "name": name,
        "memory": monitor.execute("query-memory-size-summary")["base-memory"],
        "vcpus": len(monitor.execute("query-cpus-fast")),
        "machine": str(_get(monitor, "/machine", "type")).removesuffix("-machine"),
        "accel": "kvm" if (asked(monitor, "query-kvm") or {}).get("enabled") else "tcg",
        "cpu": _cpu(monitor, pid),
        "uuid": monitor.execute("query-uuid")["UUID"],
        "disks": _disks(monitor, paths["virtio-blk-pci"], unsaid),
        "nics": _nics(monitor, paths["virtio-net-pci"], unsaid),
        "balloon": bool(paths["virtio-balloon-pci"]),
        "ram_id": machine_memory(monitor),
        "append": machine["append"],
    }
    # Firmware that was not chosen has a bare name, QEMU's own; what was chosen must have a path that means something
    # elsewhere too.
    shape |= {key: machine[key] for key in ("kernel", "initrd") if machine[key]}
    shape |= {"firmware": machine["firmware"]} if "/" in machine["firmware"] else {}
    return shape, unsaid


def _placed(monitor: Monitor) -> Iterator[tuple[int, str, str]]:
    """Added devices: address on the bus, QOM path, type."""
    for container in ("/machine/peripheral", "/machine/peripheral-anon"):
        for each in children(monitor, container):
            path = f"{container}/{each.name}"
            address = _get(monitor, path, "addr")
            yield address if isinstance(address, int) else -1, path, each.kind


def _disks(monitor: Monitor, paths: list[str], unsaid: list[str]) -> list[dict[str, Any]]:
    blocks = monitor.execute("query-block")
    direct = {node["node-name"]: node["cache"]["direct"] for node in monitor.execute("query-named-block-nodes")}
    found = []
    for path in paths:
        inserted = next((each.get("inserted") for each in blocks if each.get("qdev", "").startswith(path + "/")), None)
        if not inserted:
            unsaid.append(f"the disk {path} has no image")
            continue
        writes_back = _get(monitor, path, "write-cache") != "off"
        found.append(
            {
                "path": inserted["file"],
                "format": inserted["drv"],
                "cache": _CACHES[direct.get(inserted["node-name"], inserted["cache"]["direct"]), writes_back],
                "read_only": inserted["ro"],
            }
        )
    return found


def _nics(monitor: Monitor, paths: list[str], unsaid: list[str]) -> list[dict[str, Any]]:
    known: Mapping[str, tuple[str, str]] = {
        name: (kind, tap) for name, kind, tap in _NET.findall(hmp(monitor, "info network"))
    }
    found = []
    for path in paths:
        net = Named(str(_get(monitor, path, "netdev")), "")
        kind, tap = known.get(net.name, ("none", ""))
        if kind not in ("user", "tap"):
            unsaid.append(f"the card {path} has a network back-end of type {kind}")
            continue
        found.append({"mac": str(_get(monitor, path, "mac")).lower()} | ({"tap": tap} if kind == "tap" else {}))
    return found


def _cpu(monitor: Monitor, pid: int) -> str:
    """What -cpu was given: features that it adds or takes away are nowhere else in one piece."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    for option, value in pairwise(words):
        if option in ("-cpu", "--cpu"):
            return value
    kind = str(monitor.execute("query-hotpluggable-cpus")[0]["type"])
    return kind.rpartition("-cpu")[0].rpartition("-")[0] or kind


def _get(monitor: Monitor, path: str, name: str) -> Any:
    return asked(monitor, "qom-get", path=path, property=name)
