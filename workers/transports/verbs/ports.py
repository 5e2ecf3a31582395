"""Which RDMA device, port and GID to use: what the kernel says of them in sysfs, and the choice among them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
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
    """One port of one device as sysfs shows it. `state` is ACTIVE, DOWN, INIT…; `ethernet` means RoCE."""

    device: str
    number: int
    state: str
    ethernet: bool
    lid: int
    gids: tuple[Gid, ...]

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
    best = max(active, key=lambda port: any(gid.address == wanted_ip for gid in port.gids))
    return Choice(best, _gid(best, gid_index, wanted_ip))


def _gid(port: Port, index: int | None, wanted: ipaddress.IPv6Address | None) -> Gid:
    if index is not None:
        for gid in port.gids:
            if gid.index == index:
                return gid
        raise SettingsError(
            f"{port} has no GID {index}; rdma.gid_index can be one of {', '.join(str(gid.index) for gid in port.gids)}"
        )
    if not port.gids:
        raise DeviceError(f"{port} has no GID yet: give its network interface an address")
    return max(port.gids, key=lambda gid: _preference(gid, wanted))


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
        tuple(_gids(path)),
    )


def _gids(path: Path) -> Iterator[Gid]:
    for entry in sorted((path / "gids").iterdir(), key=lambda entry: int(entry.name)):
        address = ipaddress.IPv6Address(_text(entry) or "::")
        if int(address) & (1 << 64) - 1:  # an empty entry has a prefix at most
            kind = _text(path / "gid_attrs" / "types" / entry.name)
            yield Gid(int(entry.name), address, {"RoCE v2": 2, "IB/RoCE v1": 1}.get(kind, 0))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # reading the attributes of an empty entry fails with EINVAL
        return ""
