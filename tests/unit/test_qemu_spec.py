"""What a virtual machine's file may say, and the command line that comes of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from config.errors import RequestError
from workers.guests.qemu.command import Places, command_line
from workers.guests.qemu.spec import QemuGuestSpec

EXAMPLE = Path(__file__).resolve().parents[2] / "ops" / "examples" / "vm.toml"
SHAPE = {"name": "vm1", "memory": "2G"}
PLACES = Places("qemu", Path("/ram/a,b.ram"), Path("/state/g,1"))


def words(**more: object) -> list[str]:
    return command_line(QemuGuestSpec.from_json(SHAPE | more), PLACES, incoming=False)


def following(option: str, given: list[str]) -> list[str]:
    return [value for name, value in itertools.pairwise(given) if name == option]


def test_the_example_is_understood_and_survives_its_own_json() -> None:
    spec = QemuGuestSpec.from_file(EXAMPLE)
    assert (spec.name, spec.memory, spec.vcpus, len(spec.disks), len(spec.nics)) == ("vm1", 2 << 30, 2, 1, 1)
    assert (spec.anti_affinity, spec.needs) == (("db",), ("zone=eu-1",))
    assert QemuGuestSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "../up"}, "name"),
        ({"name": "Vm"}, "name"),
        ({"needs": ["zone"]}, "'zone' cannot be a label: write it like zone=eu-1"),
        ({"anti_affinity": ["D B"]}, "'D B' cannot be a group"),
        ({"anti_affinity": "db"}, "no list of at most 32 words"),
        ({"memory": "2GB"}, "memory: '2GB' is not understood"),
        ({"memory": "1.5K"}, "memory"),
        ({"memory": (2 << 30) + 1}, "memory"),
        ({"memory": 0}, "memory"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": "two"}, "vcpus"),
        ({"machine": "q35,accel=tcg"}, "machine"),
        ({"cpu": "max -S"}, "cpu"),
        ({"accel": "hvf"}, "accel"),
        ({"uuid": "1"}, "uuid"),
        ({"disks": [{"path": "disk.img"}]}, "disks.0.path: give an absolute path"),
        ({"disks": [{"path": "/d", "cache": "unsafe"}]}, "disks.0.cache"),
        ({"disks": [{"path": "/d", "format": "nvme"}]}, "disks.0.format"),
        ({"disks": [{"path": "/d", "cache": "writeback", "aio": "native"}]}, "disks.0: aio native"),
        ({"nics": [{"mac": "52:54"}]}, "nics.0.mac"),
        ({"nics": [{"mac": "52:54:00:00:00:01", "tap": "tap0,script=/bin/sh"}]}, "nics.0.tap"),
        ({"kernel": "linux"}, "kernel"),
        ({"arguments": ["-S"]}, "arguments"),
        ({"append": "quiet\0"}, "append"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        QemuGuestSpec.from_json(SHAPE | wrong)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(RequestError, match=r"memory.*vcpus.*disks"):
        QemuGuestSpec.from_json({"name": "vm1", "vcpus": 0, "disks": [{}]})


@pytest.mark.parametrize("content", [b"name = ", b"\xff", b"[]"])
def test_a_file_that_is_not_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vm.toml"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=str(path)):
        QemuGuestSpec.from_file(path)
    with pytest.raises(RequestError, match="cannot be read"):
        QemuGuestSpec.from_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("cpu", "model"),
    [("Skylake-Server-v5,-hle,+vmx", "Skylake-Server-v5"), ("EPYC", "EPYC"), ("host", ""), ("max,-x2apic", "")],
)
def test_a_model_that_can_be_compared_has_a_name_of_its_own(cpu: str, model: str) -> None:
    assert QemuGuestSpec.from_json({"name": "vm1", "memory": "1G", "cpu": cpu}).cpu_model == model


def test_ram_is_a_shared_file_and_the_machine_uses_it() -> None:
    given = words()
    (memory,) = map(json.loads, following("-object", given))
    assert (memory["qom-type"], memory["share"], memory["mem-path"]) == ("memory-backend-file", True, "/ram/a,b.ram")
    assert memory["size"] == 2 << 30
    assert following("-m", given) == ["2097152K"]
    assert following("-machine", given) == [f"q35,memory-backend={memory['id']}"]


def test_a_comma_in_a_path_stays_part_of_the_path() -> None:
    given = words(disks=[{"path": "/d,readonly=on"}])
    assert all("path=/state/g,,1/" in value for value in following("-chardev", given))
    (disk,) = map(json.loads, following("-blockdev", given))
    assert disk["file"]["filename"] == "/d,readonly=on"


@pytest.mark.parametrize(
    ("cache", "direct", "write_cache"),
    [("none", True, "on"), ("directsync", True, "off"), ("writeback", False, "on"), ("writethrough", False, "off")],
)
def test_cache_modes_are_those_of_qemus_drive(cache: str, direct: bool, write_cache: str) -> None:
    """docs/system/qemu-block-drivers: cache=MODE as its three switches."""
    given = words(disks=[{"path": "/d", "cache": cache}])
    (node,) = map(json.loads, following("-blockdev", given))
    assert node["cache"] == node["file"]["cache"] == {"direct": direct, "no-flush": False}
    (device,) = map(json.loads, following("-device", given))
    assert device["write-cache"] == write_cache


def test_only_an_incoming_one_waits() -> None:
    assert "-incoming" not in words()
    spec = QemuGuestSpec.from_json(SHAPE)
    assert following("-incoming", command_line(spec, PLACES, incoming=True)) == ["defer"]
