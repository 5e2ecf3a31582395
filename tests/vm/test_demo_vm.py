"""`droveway demo --vm` as it is called: what it promises, harm that cannot pass, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.until import until
from tests.vm.machine import vm_spec

_ROOT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-m", "tasks.cli.main", "demo", "--vm", "--memory", "160M", "--dirty-rate", "20M"]
_SECONDS = 280.0


class Place:
    """A temporary directory that a demo and everything it starts are given, so that they can be found again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = os.environ | {"TMPDIR": str(self.directory)} | environment
        return subprocess.Popen([*_COMMAND, *words], **pipes, text=True, env=environment, cwd=_ROOT)

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        demo = self.start(*words, **environment)
        out, err = demo.communicate(timeout=_SECONDS)
        return demo.returncode, out, err

    def assert_empty(self, names: list[str]) -> None:
        until("the end of every process", lambda: not self._processes(), 60)
        assert list(self.directory.glob("droveway-fleet-*")) == []
        assert [name for name in names if Path("/dev/shm", name).exists()] == []

    def names(self) -> list[str]:
        return [path.name for path in self.directory.glob("droveway-fleet-*")]

    def _processes(self) -> list[str]:
        mark, found = f"TMPDIR={self.directory}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(path.name)
            except OSError:
                continue
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    vm_spec("probe")  # says what is missing
    directory = Path(tempfile.mkdtemp(prefix="dw-"))  # not pytest's: paths of unix sockets must be short
    try:
        yield Place(directory)
    finally:
        shutil.rmtree(directory)


def test_it_moves_a_virtual_machine_to_and_fro_that_counts_on(place: Place) -> None:
    code, out, err = place.run("--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["counter"]["missing"] == 0
    assert document["counter"]["last"] > document["counter"]["first"]
    for move in document["migrations"]:
        assert move["state"] == "completed"
        assert move["transferred_bytes"] > 50 << 20
        assert move["guest"]["corrupt"] == 0
        assert move["guest"]["pages_checked"] >= (72 << 20) // 4096
        assert move["guest"]["longest_gap_seconds"] > 0
    place.assert_empty([])


def test_its_console_is_shown_from_both_hosts_in_turn(place: Place) -> None:
    code, out, _ = place.run()
    assert code == 0, out
    hosts = [line.split()[2] for line in out.splitlines() if line.startswith("console of ")]
    assert hosts[0] == "alpha:"
    assert hosts[-1] == "alpha:"
    assert "beta:" in hosts
    assert "left no number out" in out
    place.assert_empty([])


def test_memory_that_was_harmed_cannot_pass(place: Place) -> None:
    code, out, err = place.run("--json", DROVEWAY_FAULT="drop-final-dirty")
    assert code, err
    error = json.loads(out)["error"]
    assert error["exit_code"] == code == 6
    assert "CORRUPT" in error["message"]
    place.assert_empty([])


def test_it_clears_up_when_it_is_interrupted(place: Place) -> None:
    demo = place.start()
    until("the guest", lambda: list(place.directory.glob("droveway-fleet-*/alpha/guests/demo/pid")), 120)
    names = place.names()
    assert any(Path("/dev/shm", name).exists() for name in names)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    place.assert_empty(names)


def test_without_qemu_it_says_so_before_anything_starts(place: Place) -> None:
    code, _, err = place.run(PATH="/nowhere")
    assert code == 4
    assert "qemu-system-x86_64" in err
    place.assert_empty([])
