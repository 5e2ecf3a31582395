"""Which port and GID are chosen, from trees that look like sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.errors import DeviceError, SettingsError
from workers.transports.verbs.ports import Port, all_ports, choose, gids

EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"
LINK_LOCAL = "fe80:0000:0000:0000:5054:00ff:fe00:0101"
GLOBAL = "2001:0db8:0000:0000:0000:0000:0000:0007"


def mapped(address: str) -> str:
    a, b, c, d = (int(part) for part in address.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


class Sysfs:
    """A host's RDMA devices as a directory tree."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def port(
        self,
        device: str,
        number: int = 1,
        *,
        state: str = "4: ACTIVE",
        layer: str = "Ethernet",
        lid: str = "0x0",
        table: dict[int, tuple[str, str]] | None = None,
    ) -> None:
        port = self.root / device / "ports" / str(number)
        (port / "gids").mkdir(parents=True)
        (port / "gid_attrs" / "types").mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "link_layer").write_text(layer + "\n")
        (port / "lid").write_text(lid + "\n")
        for index, (address, kind) in (table or {1: (mapped("10.0.0.1"), "RoCE v2")}).items():
            (port / "gids" / str(index)).write_text(address + "\n")
            if kind:
                (port / "gid_attrs" / "types" / str(index)).write_text(kind + "\n")

    def ports(self) -> list[Port]:
        return all_ports(self.root)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "infiniband")


def test_a_host_without_devices_says_what_to_do(sysfs: Sysfs) -> None:
    assert sysfs.ports() == []
    with pytest.raises(DeviceError, match=r"no RDMA device.*transport=tcp"):
        choose(sysfs.ports())


def test_empty_gids_are_passed_over_and_the_rest_is_read(sysfs: Sysfs) -> None:
    sysfs.port(
        "mlx5_0", lid="0x1f", table={0: (LINK_LOCAL, "IB/RoCE v1"), 1: (mapped("10.0.0.1"), "RoCE v2"), 7: (EMPTY, "")}
    )
    (port,) = sysfs.ports()
    assert (port.device, port.number, port.state, port.ethernet, port.lid) == ("mlx5_0", 1, "ACTIVE", True, 0x1F)
    assert [(gid.index, str(gid.address), gid.version) for gid in gids(port)] == [
        (0, "fe80::5054:ff:fe00:101", 1),
        (1, "::ffff:a00:1", 2),
    ]


def test_the_first_active_port_is_taken_and_numbers_sort_as_numbers(sysfs: Sysfs) -> None:
    sysfs.port("mlx5_0", 1, state="1: DOWN")
    sysfs.port("mlx5_0", 10)
    sysfs.port("mlx5_0", 2)
    assert choose(sysfs.ports()).port.number == 2


def test_the_port_that_has_this_hosts_address_goes_before_the_first(sysfs: Sysfs) -> None:
    sysfs.port("mlx5_0", table={1: (mapped("10.0.0.1"), "RoCE v2")})
    sysfs.port("mlx5_1", table={1: (mapped("10.0.0.2"), "RoCE v2")})
    assert choose(sysfs.ports(), address="10.0.0.2").port.device == "mlx5_1"
    assert choose(sysfs.ports(), address="data.example.org").port.device == "mlx5_0"


@pytest.mark.parametrize(
    ("table", "address", "chosen"),
    [
        ({0: (LINK_LOCAL, "RoCE v2"), 1: (mapped("10.0.0.1"), "RoCE v2")}, None, 1),
        ({2: (mapped("10.0.0.1"), "IB/RoCE v1"), 3: (mapped("10.0.0.1"), "RoCE v2")}, None, 3),
        ({1: (GLOBAL, "RoCE v2"), 2: (mapped("10.0.0.1"), "RoCE v2")}, None, 2),
        ({1: (GLOBAL, "RoCE v2"), 2: (mapped("10.0.0.1"), "RoCE v2")}, "2001:db8::7", 1),
        ({0: (LINK_LOCAL, "RoCE v2"), 1: (GLOBAL, "RoCE v2")}, None, 1),
        ({1: (mapped("10.0.0.1"), "RoCE v2"), 2: (mapped("10.0.0.9"), "RoCE v2")}, "10.0.0.9", 2),
        ({4: (mapped("10.0.0.1"), "RoCE v2"), 5: (mapped("10.0.0.2"), "RoCE v2")}, None, 4),
    ],
)
def test_a_gid_that_routes_is_preferred(sysfs: Sysfs, table, address: str | None, chosen: int) -> None:
    sysfs.port("rxe0", table=table)
    assert choose(sysfs.ports(), address=address).gid.index == chosen


def test_what_is_named_is_taken(sysfs: Sysfs) -> None:
    sysfs.port("mlx5_0")
    sysfs.port("mlx5_1", 1)
    sysfs.port("mlx5_1", 2, table={0: (LINK_LOCAL, "RoCE v2"), 1: (mapped("10.0.0.1"), "RoCE v2")})
    choice = choose(sysfs.ports(), device="mlx5_1", number=2, gid_index=0)
    assert (choice.port.device, choice.port.number, choice.gid.index) == ("mlx5_1", 2, 0)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"device": "mlx5_7"}, ["rdma.device=mlx5_7", "mlx5_0 port 1"]),
        ({"number": 3}, ["rdma.port=3", "mlx5_0 port 1"]),
        ({"gid_index": 9}, ["GID 9", "rdma.gid_index", "1"]),
    ],
)
def test_what_is_named_and_not_there_is_a_setting_to_correct(sysfs: Sysfs, named, words: list[str]) -> None:
    sysfs.port("mlx5_0")
    with pytest.raises(SettingsError) as refused:
        choose(sysfs.ports(), **named)
    for word in words:
        assert word in str(refused.value)


def test_ports_that_are_down_are_named_with_their_states(sysfs: Sysfs) -> None:
    sysfs.port("mlx5_0", 1, state="1: DOWN")
    sysfs.port("mlx5_0", 2, state="2: INIT")
    with pytest.raises(DeviceError, match="mlx5_0 port 1 is DOWN, mlx5_0 port 2 is INIT"):
        choose(sysfs.ports())


def test_a_port_without_an_address_yet_says_so(sysfs: Sysfs) -> None:
    sysfs.port("mlx5_0", table={0: (EMPTY, "")})
    with pytest.raises(DeviceError, match="no GID yet"):
        choose(sysfs.ports())


def test_infiniband_is_told_from_ethernet(sysfs: Sysfs) -> None:
    sysfs.port("mlx4_0", layer="InfiniBand", lid="0x12", table={0: (LINK_LOCAL, "IB/RoCE v1")})
    choice = choose(sysfs.ports())
    assert not choice.port.ethernet
    assert choice.port.lid == 0x12
