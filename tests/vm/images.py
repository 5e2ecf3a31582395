"""What tests' machines boot beside the lab's own: the same with more in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.requirements import missing

_LAB = Path(__file__).resolve().parents[2] / ".lab"
_INIT = """#!/bin/busybox sh
for module in /modules/*.ko; do /bin/busybox insmod $module; done
exec /bin/busybox sh /init.lab
"""


def initrd_with_balloon(directory: Path) -> Path:
    """The lab's initrd with the drivers of virtio's PCI bus and balloon, loaded before its first program."""
    made, root = directory / "balloon-initrd", directory / "balloon-root"
    (root / "modules").mkdir(parents=True)
    with (_LAB / "vm-initrd").open("rb") as archive:
        subprocess.run(["busybox", "cpio", "-id"], cwd=root, stdin=archive, check=True, capture_output=True)
    (root / "init").rename(root / "init.lab")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    for number, module in enumerate(_modules("virtio_pci", "virtio_balloon")):
        (root / "modules" / f"{number:02}.ko").write_bytes(module.read_bytes())
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with made.open("wb") as archive:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            cwd=root,
            input=names.encode(),
            stdout=archive,
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return made


def _modules(*names: str) -> list[Path]:
    """These and what they need, in the order of loading."""
    versions = list((_LAB / "kernel" / "lib" / "modules").glob("*"))
    if not versions:
        missing("no kernel modules for virtual machines (`make lab` downloads them)")
    found: dict[Path, None] = {}
    for name in names:
        command = ["modprobe", "-d", str(_LAB / "kernel"), "-S", versions[0].name, "--show-depends", name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= {Path(line.split()[1]): None for line in said.splitlines() if line.startswith("insmod ")}
    return list(found)
