"""What QEMU says of its own migration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """What `query-migrate` says. Units: bytes, bytes/s, seconds. An incoming QEMU has a status only.

    None: it has not said; for a rate that it does not know yet it says 0.
    """

    status: str
    #: What went over the wire, with QEMU's own words between the pages.
    transferred: int = 0
    #: Guest memory: sent whole, found zero (untouched memory too), sent as differences (xbzrle).
    whole: int = 0
    zero: int = 0
    delta: int = 0
    remaining: int = 0
    total: int = 0
    #: Looks at all of memory: one at the beginning, one after each pass.
    looks: int = 0
    rate: float | None = None
    #: Known from the first look on that comes 1 s after the one before.
    dirty_rate: float | None = None
    #: As long as it is not known QEMU says the downtime limit.
    expected_downtime: float | None = None
    #: What came before the first page: with rdma-pin-all, the locking.
    setup: float | None = None
    error: str = ""

    @property
    def sent(self) -> int:
        """Guest memory that went over the wire."""
        return self.whole + self.delta

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Figures:
        """Read an answer. QEMU leaves out what it has no figures of yet."""
        ram = said.get("ram", {})
        page, dirtied = ram.get("page-size", 0), ram.get("dirty-pages-rate", 0)
        expected, setup = said.get("expected-downtime"), said.get("setup-time")
        return cls(
            status=said.get("status", "none"),
            transferred=ram.get("transferred", 0),
            whole=ram.get("normal-bytes", 0),
            zero=ram.get("duplicate", 0) * page,
            delta=said.get("xbzrle-cache", {}).get("bytes", 0),
            remaining=ram.get("remaining", 0),
            total=ram.get("total", 0),
            looks=ram.get("dirty-sync-count", 0),
            rate=ram.get("mbps", 0.0) * 1e6 / 8 or None,
            dirty_rate=float(dirtied * page) if dirtied else None,
            expected_downtime=None if expected is None else expected / 1e3,
            setup=None if setup is None else setup / 1e3,
            error=said.get("error-desc", ""),
        )
