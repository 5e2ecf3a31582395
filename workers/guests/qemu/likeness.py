"""Whether two QEMUs are the same machine, to device state that would be loaded and to the guest that would run in it.

Compared is all that QEMU says of the board, the processors, every device on every bus with every property, and the
RAM blocks; left out is what lies on the host's side (which file, socket or tap device) and what the guest itself sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.queries import hmp, qom_get

#: Properties of the host's side: names of back-ends, how it reads, whom it lets share.
_HOSTS_OWN = frozenset(
    {"chardev", "drive", "netdev", "iothread", "share-rw", "rerror", "werror", "discard_granularity"}
)
#: Where the guest's firmware puts a window.
_GUESTS_OWN = frozenset({"MCFG"})
#: Of the board: what time it is, and names for what is compared by itself.
_BOARDS_OWN = frozenset({"rtc-time", "memory-backend", "dumpdtb", "suppress-vmdesc", "dump-guest-core", "mem-merge"})
_BOARDS_OWN |= {"graphics"}
_SCALARS = ("bool", "int", "int32", "int64", "uint", "str", "size", "OnOff", "enum", "SMP", "MemorySize", "Boot")
_DEVICE = re.compile(r'^( *)dev: ([^,]+), id "')
_BUS = re.compile(r"^( *)bus: (.+)$")
_PROPERTY = re.compile(r"^ *([\w.-]+) = (.*)$")
_RAM_BLOCK = re.compile(r"^ *(\S+) +(\d+ \S+) +0x[0-9a-f]+ +0x[0-9a-f]+ +0x([0-9a-f]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Likeness:
    """What is compared: part → property → value."""

    parts: Mapping[str, Mapping[str, Any]]


def likeness_of(monitor: Monitor) -> Likeness:
    """Read it. Raises HostError."""
    processor = monitor.execute("query-cpus-fast")[0]["qom-path"]
    parts: dict[str, Mapping[str, Any]] = {
        "the board": _scalars(monitor, "/machine", _BOARDS_OWN),
        "the first processor": _scalars(monitor, processor, frozenset()),
        "the processors": {
            str(sorted(each["props"].items())): each["type"] for each in monitor.execute("query-hotpluggable-cpus")
        },
        "the RAM blocks": {
            name: f"{int(total, 16)} bytes in pages of {page}"
            for name, page, total in _RAM_BLOCK.findall(hmp(monitor, "info ramblock"))
        },
    }
    return Likeness(parts | devices_in(hmp(monitor, "info qtree")))


def differences(theirs: Likeness, ours: Likeness) -> list[str]:
    """What differs, each in a phrase; nothing when they are one machine. Pure."""
    found = []
    for part in sorted(theirs.parts.keys() | ours.parts.keys()):
        if part not in ours.parts:
            found.append(f"{part} is there, ours would have none")
        elif part not in theirs.parts:
            found.append(f"{part} is missing, ours would have it")
        else:
            found += _unlike(part, theirs.parts[part], ours.parts[part])
    return found


def _unlike(part: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return [
        f"{part}: {name} is {theirs.get(name, 'missing')}, ours would be {ours.get(name, 'missing')}" for name in names
    ]


def devices_in(tree: str) -> dict[str, Mapping[str, Any]]:
    """Devices with their properties, from `info qtree`, each named by the way to it. Pure."""
    way: list[tuple[int, str]] = []
    devices: list[tuple[int, str, str, dict[str, Any]]] = []
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        if found := _BUS.match(line):
            way = [*(each for each in way if each[0] < depth), (depth, found[2])]
        elif found := _DEVICE.match(line):
            way = [*(each for each in way if each[0] < depth), (depth, found[2])]
            devices.append((depth, "/".join(name for _, name in way[:-1]), found[2], {}))
        elif devices and (found := _PROPERTY.match(line)) and found[1] not in _HOSTS_OWN | _GUESTS_OWN:
            devices[-1][3][found[1]] = _plain(found[1], found[2])
    return _named(devices)


def _named(devices: list[tuple[int, str, str, dict[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """By bus, type and address; those without an address are counted, for their order says nothing."""
    counted: Counter[str] = Counter()
    made: dict[str, Mapping[str, Any]] = {}
    for _, bus, kind, properties in sorted(devices, key=lambda each: (each[1], each[2], sorted(each[3].items()))):
        name = f"{kind} on {bus}" + (f" at {properties['addr']}" if "addr" in properties else "")
        counted[name] += 1
        made[name if counted[name] == 1 else f"{name}, number {counted[name]}"] = properties
    return made


def _plain(name: str, value: str) -> str:
    return '"on"' if name == "write-cache" and value == '"auto"' else value  # what auto comes to with any -blockdev


def _scalars(monitor: Monitor, path: str, left_out: frozenset[str]) -> dict[str, Any]:
    said = monitor.execute("qom-list", path=path)
    names = [each["name"] for each in said if each["type"].startswith(_SCALARS) and each["name"] not in left_out]
    return {name: qom_get(monitor, path, name) for name in names}
