"""What is installed is what is in the tree: an unlisted folder or a forgotten script would only fail elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("config", "tasks", "workers")


def test_the_wheel_has_every_module_and_every_script(tmp_path: Path) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path / "out"), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for pattern in ("*.py", "*.lua", "*.j2")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert wanted <= packed, sorted(wanted - packed)
    assert not any(name.startswith("tests/") for name in packed)
