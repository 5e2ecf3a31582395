"""Which RDMA device, port and GID to use: what the kernel says of them in sysfs, and the choice among them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.errors import DeviceError, SettingsError

_SYSFS = Path("/sys/class/infiniband")
_ACTIVE = "ACTIVE"


@dataclass(frozen=True, slots=True)
class Gid:
    """One entry of a port's GID table; `version` 2 is RoCE v2, which is routable, 1 is RoCE v1, 0 is InfiniBand."""

    index: int
    address: ipaddress.IPv6Address
    version: int


@dataclass(frozen=True, slots=True)
class Port:
    """One port of one device as sysfs shows it, below `path`. `state` is ACTIVE, DOWN, INIT…; `ethernet` means RoCE.

    `software`: soft-RoCE (rxe), which has no card and moves the data on the processor of whoever posts.
    """

    device: str
    number: int
    state: str
    ethernet: bool
    lid: int
    software: bool
    path: Path

    def __str__(self) -> str:
        return f"{self.device} port {self.number}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The port to use and the GID to be reached by."""

    port: Port
    gid: Gid


def all_ports(sysfs: Path = _SYSFS) -> list[Port]:
    """Every port of every RDMA device of this host, by name."""
    paths = sorted(sysfs.glob("*/ports/*"), key=lambda path: (path.parts[-3], int(path.name)))
    return [_port(path.parts[-3], path) for path in paths]


def choose(
    ports: Sequence[Port],
    *,
    device: str | None = None,
    number: int | None = None,
    gid_index: int | None = None,
    address: str | None = None,
) -> Choice:
    """The port and GID that the settings name; what they leave open is the first active port, and the GID that routes.

    On Ethernet a GID stands for an IP address: `address` (this host's on the data network) is preferred, then RoCE v2
    over IPv4, then over IPv6. Raises SettingsError (no such device, port, index) or DeviceError (none, or none active).
    """
    if not ports:
        raise DeviceError(
            "this host has no RDMA device: load its driver (`rdma link` lists devices) or use transport=tcp"
        )
    named = [port for port in ports if device in (None, port.device) and number in (None, port.number)]
    if not named:
        wanted = " ".join([f"rdma.device={device}"] * bool(device) + [f"rdma.port={number}"] * bool(number))
        raise SettingsError(f"there is no {wanted} on this host; it has {', '.join(map(str, ports))}")
    active = [port for port in named if port.state == _ACTIVE]
    if not active:
        states = ", ".join(f"{port} is {port.state}" for port in named)
        raise DeviceError(f"no RDMA port is active ({states}): bring its link up, or name another by rdma.device")
    wanted_ip = _ipv6(address)
    tables = [(port, gids(port)) for port in active]
    # The first of those that have this host's address, else the first.
    best, table = max(tables, key=lambda entry: any(gid.address == wanted_ip for gid in entry[1]))
    return Choice(best, _gid(best, table, gid_index, wanted_ip))


def _gid(port: Port, table: Sequence[Gid], index: int | None, wanted: ipaddress.IPv6Address | None) -> Gid:
    if index is not None:
        for gid in table:
            if gid.index == index:
                return gid
        raise SettingsError(
            f"{port} has no GID {index}; rdma.gid_index can be one of {', '.join(str(gid.index) for gid in table)}"
        )
    if not table:
        raise DeviceError(f"{port} has no GID yet: give its network interface an address")
    return max(table, key=lambda gid: _preference(gid, wanted))


def _preference(gid: Gid, wanted: ipaddress.IPv6Address | None) -> tuple[int, bool, bool, bool, int]:
    return (
        gid.version,
        gid.address == wanted,
        gid.address.ipv4_mapped is not None,
        not gid.address.is_link_local,
        -gid.index,
    )


def _ipv6(address: str | None) -> ipaddress.IPv6Address | None:
    """An address as GIDs spell it; None for a name, which says nothing about a GID."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    return found if found.version == 6 else ipaddress.IPv6Address(f"::ffff:{found}")


def _port(device: str, path: Path) -> Port:
    return Port(
        device,
        int(path.name),
        _text(path / "state").partition(": ")[2],
        _text(path / "link_layer") == "Ethernet",
        int(_text(path / "lid") or "0", 16),
        (path.parent.parent / "parent").exists(),  # rxe's own attribute: the network interface that it borrows
        path,
    )


def gids(port: Port) -> list[Gid]:
    """The filled entries of a port's GID table. It may have a thousand empty ones: those are only looked at."""
    found = []
    folder = port.path / "gids"
    for name in sorted((entry.name for entry in folder.iterdir()), key=int):
        text = _read(f"{folder}/{name}")
        if text.strip("0:\n"):
            address = ipaddress.IPv6Address(text.strip())
            if int(address) & (1 << 64) - 1:  # an empty entry of InfiniBand has a prefix all the same
                kind = _text(port.path / "gid_attrs" / "types" / name)
                found.append(Gid(int(name), address, {"RoCE v2": 2, "IB/RoCE v1": 1}.get(kind, 0)))
    return found


def _text(path: Path) -> str:
    return _read(str(path)).strip()


def _read(path: str) -> str:
    """One attribute, by three system calls: what `open` adds costs four times as much, a thousand times over."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, 4096).decode()
    except OSError:  # the attributes of an empty entry cannot be read
        return ""
    finally:
        os.close(file)
