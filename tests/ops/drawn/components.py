"""Components of Grafana's front end, as npm has them, bundled with app.jsx into `.drawn`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tests.requirements import installed, missing

HERE = Path(__file__).parent
#: Outside of version control: what npm installs, the bundle, pictures.
FOLDER = HERE.parents[2] / ".drawn"
_MODULES = FOLDER / "node_modules"
_INSTALL = ("install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")
_BUNDLE = (
    "--bundle", "--format=iife", "--jsx=automatic", "--log-level=warning", "--loader:.svg=empty", "--loader:.ttf=empty",
    '--define:process.env.NODE_ENV="production"', "--define:global=window",
)  # fmt: skip
#: Where a Grafana serves what the components ask for, and where that is here. Without its fonts no width would be true.
_PUBLIC = {
    "build/img": "@grafana/ui/dist/public/img",
    "fonts/inter/Inter-Regular.woff2": "@fontsource/inter/files/inter-latin-400-normal.woff2",
    "fonts/inter/Inter-Medium.woff2": "@fontsource/inter/files/inter-latin-500-normal.woff2",
    "fonts/inter/Inter-Italic.woff2": "@fontsource/inter/files/inter-latin-400-italic.woff2",
    "fonts/roboto/L0xTDF4xlVMF-BfR8bXMIhJHg45mwgGEFl0_3vrtSM1J-gEPT5Ese6hmHSh0mQ.woff2": (
        "@fontsource/roboto-mono/files/roboto-mono-latin-400-normal.woff2"
    ),
}
_PAGE = f"""<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="app.css">
<body style="margin: 0"><div id="root"></div>
<script>window.__grafana_public_path__ = "{FOLDER.as_uri()}/public/"</script><script src="app.js"></script>
"""


def page() -> Path:
    """A page with `draw(answered, theme)` in it; what npm installs for it, it installs when the versions are others."""
    wanted, stamp = (HERE / "package.json").read_text(), _MODULES / ".installed"
    _new_enough(installed("node", "nodejs"), json.loads(wanted)["engines"]["node"])
    npm = installed("npm", "npm")
    if not stamp.exists() or stamp.read_text() != wanted:
        print("installing Grafana's components, some 460 MB", flush=True)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "package.json").write_text(wanted)
        done = subprocess.run([npm, *_INSTALL], cwd=FOLDER, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            missing(f"npm could not install Grafana's components: {done.stderr.strip()[-600:]}")
        stamp.write_text(wanted)
    bundle = [str(_MODULES / ".bin" / "esbuild"), str(HERE / "app.jsx"), f"--outdir={FOLDER}", *_BUNDLE]
    subprocess.run(bundle, env=os.environ | {"NODE_PATH": str(_MODULES)}, check=True)
    for asked, kept in _PUBLIC.items():
        link = FOLDER / "public" / asked
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(_MODULES / kept)
    (FOLDER / "page.html").write_text(_PAGE)
    return FOLDER / "page.html"


def _new_enough(node: str, needed: str) -> None:
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    (has, *_), (needs, *_) = (re.findall(r"\d+", each) for each in (version, needed))
    if int(has) < int(needs):
        missing(f"node {version} is too old to bundle Grafana's components, which takes {needed}")
