"""Questions to one QEMU that more than one module asks: its objects, what is plugged in, and what lies behind that."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workers.guests.qemu.blockers import Image, Named, Plugged
from workers.guests.qemu.monitor import CommandRefusedError, Monitor

DISK, NIC, BALLOON = "virtio-blk-pci", "virtio-net-pci", "virtio-balloon-pci"
#: A back-end in what `info network` says: ` \ net0: index=0,type=tap,ifname=…`, or without a card before it `net0: …`.
_NET = re.compile(r"^[ \\]*([^:]+): index=\d+,type=([a-z0-9-]+)(?:,.*?ifname=([^,\s]+))?", re.MULTILINE)
_CHILD = re.compile(r"^child<(.+)>$")


def asked(monitor: Monitor, command: str, **arguments: Any) -> Any:
    """What QEMU says, None when it refuses: a device that it does not have, a command that it does not know."""
    try:
        return monitor.execute(command, **arguments)
    except CommandRefusedError:
        return None


def qom_get(monitor: Monitor, path: str, name: str) -> Any:
    """A property of an object; None when it has none of this name."""
    return asked(monitor, "qom-get", path=path, property=name)


def hmp(monitor: Monitor, command: str) -> str:
    """What the human monitor says, for what QMP has no words for."""
    return str(monitor.execute("human-monitor-command", command_line=command))


def children(monitor: Monitor, path: str) -> Iterator[Named]:
    """The objects right below a QOM path."""
    for each in asked(monitor, "qom-list", path=path) or ():
        if found := _CHILD.match(each["type"]):
            yield Named(each["name"], found[1])


def devices(monitor: Monitor) -> Iterator[Named]:
    """QOM path and type of all that somebody added with -device or device_add, whether he gave it an id or not."""
    for container in ("/machine/peripheral", "/machine/peripheral-anon"):
        for each in children(monitor, container):
            yield Named(f"{container}/{each.name}", each.kind)


def in_order(monitor: Monitor, found: Sequence[Named], kind: str) -> list[str]:
    """QOM paths of the devices of this type, by their address on the bus."""
    paths = [each.name for each in found if each.kind == kind]
    addresses = {path: qom_get(monitor, path, "addr") for path in paths}
    return sorted(paths, key=lambda path: (addresses[path] if isinstance(addresses[path], int) else -1, path))


def images(monitor: Monitor) -> list[Image]:
    """What the machine's disks are of, in no order."""
    blocks = monitor.execute("query-block")
    return [_image(each["inserted"]) for each in blocks if each.get("qdev") and each.get("inserted")]


def inserted(monitor: Monitor, paths: Sequence[str]) -> list[Mapping[str, Any] | None]:
    """What `query-block` says of the image of each of these devices; None where there is none."""
    blocks = monitor.execute("query-block")
    return [
        next((each.get("inserted") for each in blocks if each.get("qdev", "").startswith(path + "/")), None)
        for path in paths
    ]


def mac(monitor: Monitor, path: str) -> str:
    """The address of the card at this QOM path."""
    return str(qom_get(monitor, path, "mac")).lower()


def plugged(monitor: Monitor, found: Sequence[Named]) -> Plugged:
    """What is in the machine, of which `found` are the devices."""
    disks = inserted(monitor, in_order(monitor, found, DISK))
    return Plugged(
        kinds=Counter(each.kind for each in found),
        disks=tuple(_image(each) if each else None for each in disks),
        macs=tuple(mac(monitor, path) for path in in_order(monitor, found, NIC)),
    )


def _image(said: Mapping[str, Any]) -> Image:
    return Image(said["file"], said["drv"], said["ro"])


def nets(monitor: Monitor) -> list[tuple[str, str, str]]:
    """Network back-ends: id, type, and the tap device's name where there is one. A card is of the type `nic`."""
    return _NET.findall(hmp(monitor, "info network"))


def machine_memory(monitor: Monitor) -> str:
    """The id of the backend that is the machine's memory; empty when it has none."""
    path = qom_get(monitor, "/machine", "memory-backend") or ""
    return str(path).rpartition("/")[2]
