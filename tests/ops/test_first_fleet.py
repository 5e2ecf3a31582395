"""The README's way from nothing to a fleet: its commands as they stand there, one shell, from the first to the last."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.requirements import missing

ROOT = Path(__file__).parents[2]
HEADING = "## From nothing to a fleet that is encrypted and watched"
#: Files that the commands name, and that a checkout has.
CHECKOUT = ("Makefile", "config", "ops", "pyproject.toml", "requirements-dev.lock", "tasks", "workers")


def commands() -> str:
    """The indented lines of the section, without their indent."""
    _, _, rest = (ROOT / "README.md").read_text().partition(HEADING)
    section, _, _ = rest.partition("\n## ")
    return "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A place in which all that the commands make may lie, and be left by nobody."""
    for each in CHECKOUT:
        (tmp_path / each).symlink_to(ROOT / each)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    return tmp_path


@pytest.mark.timeout(900)
def test_the_readmes_way_to_a_fleet_is_one_that_works(checkout: Path) -> None:
    if os.geteuid() != 0:
        missing("the README's first fleet is run as root")
    for program in ("redis-server", "prometheus", "curl"):
        if shutil.which(program) is None:
            missing(f"no {program} (ops/scripts/ops-setup installs what is not there)")
    for port in (6379, 9090, 9641, 9643):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                missing(f"something listens on port {port} already, which the README's commands take")
    text = commands()
    assert text.count("droveway ") > 10, "the section was found"
    # Each of the five targets is scraped once in 15 s, at a time of its own.
    ask = 'up=$(curl -s "http://127.0.0.1:9090/api/v1/targets?state=active")'
    up = '[ "$(grep -o \\"health\\":\\"up\\" <<< "$up" | wc -l)" -ge 5 ]'
    keep = f"page=$(wc -c < fleet/move.html); until {ask}; {up}; do sleep 1; done"
    clearing = text.index("droveway guest stop web")
    script = f"set -euo pipefail\n{text[:clearing]}\n{keep}\n{text[clearing:]}\n"
    script += 'echo; echo page $page; echo "$up"'
    run = subprocess.Popen(
        ["bash", "-c", script], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = run.communicate(timeout=800)
    finally:
        _end(run, checkout)
    assert run.returncode == 0, said[-4000:]
    assert "beta completed: all 1 guests have left" in said
    assert said.count('"health":"up"') >= 5, said[-3000:]
    assert int(said.rpartition("page ")[2].split()[0]) > 5000
    assert not (checkout / "fleet").exists()
    assert not list(Path("/dev/shm").glob("droveway-alpha*"))


def _end(run: subprocess.Popen[str], checkout: Path) -> None:
    """What a run that failed half-way left behind."""
    for path in (checkout / "fleet").glob("*.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
