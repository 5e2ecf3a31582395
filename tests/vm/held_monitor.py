"""A monitor that somebody holds, without the wait: nobody is ever let in there, however long it takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from workers.guests.qemu.monitor import CONNECT_SECONDS, Monitor


def give_up_soon(monkeypatch: pytest.MonkeyPatch, held: Path) -> None:
    """Guests give this one up after half a second; the others, which are free, may answer late as ever."""

    def connect(name: str, path: Path | socket.socket, seconds: float = CONNECT_SECONDS) -> Monitor:
        return Monitor(name, path, 0.5 if path == held else seconds)

    for module in ("guest", "adoption"):
        monkeypatch.setattr(f"workers.guests.qemu.{module}.Monitor", connect)
