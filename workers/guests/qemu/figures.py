"""What QEMU says of its own migration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """What `query-migrate` says. Units: bytes, bytes/s, seconds. An incoming QEMU has a status only."""

    status: str
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    #: Looks at all of memory: one at the beginning, one after each pass.
    looks: int = 0
    rate: float = 0.0
    dirty_rate: float = 0.0
    expected_downtime: float = 0.0
    error: str = ""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Figures:
        """Read an answer. QEMU leaves out what it has no figures of yet."""
        ram = said.get("ram", {})
        return cls(
            status=said.get("status", "none"),
            transferred=ram.get("transferred", 0),
            remaining=ram.get("remaining", 0),
            total=ram.get("total", 0),
            looks=ram.get("dirty-sync-count", 0),
            rate=ram.get("mbps", 0.0) * 1e6 / 8,
            dirty_rate=float(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 0)),
            expected_downtime=said.get("expected-downtime", 0) / 1e3,
            error=said.get("error-desc", ""),
        )
