"""What becomes of a test whose machine lacks what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest


def everything_is_required() -> bool:
    """Whether a gap in this machine is an error, as in CI."""
    return os.environ.get("DROVEWAY_REQUIRE_ALL") == "1"


def missing(what: str) -> NoReturn:
    """Skip at a desk; fail where everything is required, so that a gap there cannot look like a success."""
    if everything_is_required():
        pytest.fail(f"{what}, and DROVEWAY_REQUIRE_ALL=1 allows no skips", pytrace=False)
    pytest.skip(what)


def installed(program: str, package: str) -> str:
    """Where `program` is; its Debian package is installed now if it is lacking and we are root; else `missing`."""
    if shutil.which(program) is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run([Path(__file__).parent.parent / "ops" / "scripts" / "apt-install", package], check=True)
    return shutil.which(program) or missing(f"no {program} (Debian: {package})")
