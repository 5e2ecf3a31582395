"""Which processor models plans are told of: whoever asks is answered at once, and a QEMU is asked once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from config.errors import HostError
from workers.guests.qemu.cpu_models import CpuModels

SOON = 10.0


class Answering:
    """A QEMU that answers when the test lets it, and how often it was asked."""

    def __init__(self, *models: str) -> None:
        self.models = frozenset(models)
        self.lets = threading.Event()
        self.asked: list[str] = []
        self.fails = False

    def __call__(self, binary: str) -> frozenset[str]:
        self.asked.append(binary)
        assert self.lets.wait(SOON)
        if self.fails:
            raise HostError("it ended")
        return self.models


@pytest.fixture
def binary(tmp_path: Path) -> str:
    made = tmp_path / "qemu"
    made.write_bytes(b"one")
    made.chmod(0o755)
    return str(made)


def settled(models: CpuModels) -> frozenset[str]:
    models.known()
    if models._asking is not None:
        models._asking.join(SOON)
    return models.known()


def test_nobody_waits_for_a_qemu_that_is_slow_to_answer(binary: str) -> None:
    qemu = Answering("EPYC")
    models = CpuModels(binary, qemu)
    assert [models.known() for _ in range(3)] == [frozenset()] * 3
    qemu.lets.set()
    assert settled(models) == {"EPYC"}
    assert qemu.asked == [binary]


def test_it_is_asked_once_and_again_when_it_was_exchanged(binary: str) -> None:
    qemu = Answering("EPYC")
    qemu.lets.set()
    models = CpuModels(binary, qemu, again=0.0)
    assert [settled(models) for _ in range(3)] == [{"EPYC"}] * 3
    assert len(qemu.asked) == 1
    Path(binary).write_bytes(b"another")
    qemu.models = frozenset({"EPYC", "EPYC-Turin"})
    assert settled(models) == {"EPYC", "EPYC-Turin"}
    assert len(qemu.asked) == 2


def test_a_host_without_a_qemu_says_nothing_and_nothing_is_started(tmp_path: Path, binary: str) -> None:
    qemu = Answering("EPYC")
    qemu.lets.set()
    assert settled(CpuModels(str(tmp_path / "none"), qemu)) == frozenset()
    assert qemu.asked == []
    models = CpuModels(binary, qemu)
    assert settled(models) == {"EPYC"}
    os.unlink(binary)  # noqa: PTH108 - as a package manager would
    assert settled(models) == frozenset()


@pytest.mark.parametrize(("again", "times"), [(0.0, 3), (600.0, 1)])
def test_one_that_cannot_be_asked_is_asked_again_after_a_while(binary: str, again: float, times: int) -> None:
    qemu = Answering("EPYC")
    qemu.fails = True
    qemu.lets.set()
    models = CpuModels(binary, qemu, again=again)
    found = []
    for _ in range(3):
        found.append(models.known())
        if models._asking is not None:
            models._asking.join(SOON)
    assert found == [frozenset()] * 3
    assert len(qemu.asked) == times
