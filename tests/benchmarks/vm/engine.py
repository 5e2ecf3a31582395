"""What a benchmark asks of whoever moves the machine: QEMU itself, or the product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from workers.guests.qemu.spec import QemuGuestSpec


@dataclass(frozen=True, slots=True)
class Place:
    """One QEMU as a benchmark sees it: its process, and a monitor socket that nobody else holds."""

    pid: int
    status: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """A move as whoever made it tells of it. Seconds and bytes.

    `moving`: from two QEMUs that both run until both have said that it is complete. `downtime`: by its own count.
    `sent`: memory on the wire. `spans`: the product's, as in `droveway show`.
    """

    moving: float
    downtime: float
    sent: int
    rounds: int
    spans: Mapping[str, Any] = field(default_factory=dict)


class NotMovedError(Exception):
    """The guest was not moved within the time or the rounds that there are; it goes on at the source."""


class Engine(Protocol):
    """Moves one machine once, from its first place to its second; a fresh one for each measurement."""

    @property
    def consoles(self) -> Sequence[Path]:
        """The console sockets at both places, whether they are there yet or not."""

    def start(self, spec: QemuGuestSpec) -> Place:
        """Start it at the first place."""

    def move(self) -> Outcome:
        """Everything that it takes once somebody asked for it, the start of the destination's QEMU included.

        Raises NotMovedError, and RuntimeError for what ought not to happen.
        """

    def destination(self) -> Place:
        """Where it runs after the move."""

    def end(self) -> None:
        """Leave nothing of it; harmless whatever happened before."""
