"""What was lost is rung again, what was cut off is settled by whoever knows, what nobody holds is taken back.

`examine` is pure: the open records and the fleet → findings, each with what is to be done and why. `reconcile` does it.
Running it twice, or in two places at once, is harmless: every step is conditional in the ledger. Nothing here decides
where a guest is: only the hosts' journals know, so hosts are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from config.errors import UnreachableError
from tasks.bell import Bell
from tasks.ledger.ledger import Ledger
from tasks.records import Fleet, MigrationRecord, SideRecord
from tasks.requests import admit
from tasks.steps import SILENCE
from workers.pairing.contract import Side

#: Seconds after which a doorbell that nobody answered is rung again: a worker answers within one, if it is there.
RING_AGAIN = 10.0
#: Seconds after its admission in which a source must have taken a migration up. Above the movers' own time to pair, so
#: that a destination that waits gives up first and says why.
ABANDON_AFTER = 120.0


class Action(StrEnum):
    """What is done about a finding."""

    NONE = "none"  # explained only
    RING = "ring"
    ABANDON = "abandon"
    ASK = "ask"  # the host, which settles its own attempts from its journal
    RELEASE = "release"
    FREE = "free"  # its share of a shared link: nobody may be sending on it


@dataclass(frozen=True, slots=True)
class Finding:
    """One migration's trouble. `side` and `host`: where; None when it is of no one side."""

    migration: str
    guest: str
    action: Action
    reason: str
    side: Side | None = None
    host: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "migration": self.migration,
            "guest": self.guest,
            "action": str(self.action),
            "reason": self.reason,
            "side": None if self.side is None else str(self.side),
            "host": self.host,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass found and did. `failures` are steps that could not be taken now; the next pass tries again."""

    findings: tuple[Finding, ...]
    admitted: tuple[str, ...]
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "admitted": list(self.admitted),
            "failures": list(self.failures),
        }


def examine(records: Iterable[MigrationRecord], fleet: Fleet, now: float) -> list[Finding]:
    """What is wrong with these records; `now` is the server's clock."""
    return [finding for record in records for finding in _examine(record, fleet, now)]


def reconcile(ledger: Ledger, bell: Bell) -> Report:
    """One pass over the fleet's record. Raises UnreachableError when it cannot even be read."""
    ledger.prune()
    findings = examine(ledger.open(), ledger.fleet(), ledger.now())
    failures = []
    for finding in findings:
        try:
            _act(finding, ledger, bell)
        except UnreachableError as error:
            failures.append(f"{finding.migration}: {error}")
    return Report(tuple(findings), tuple(admit(ledger, bell)), tuple(failures))


def _examine(record: MigrationRecord, fleet: Fleet, now: float) -> Iterator[Finding]:
    if record.ended:
        yield from _leftovers(record, now)
    elif record.admitted is None:
        reason = record.waiting or "it has not been looked at since it was submitted"
        yield Finding(record.migration, record.guest, Action.NONE, f"waits: {reason}")
    else:
        for side in Side:
            yield from _live_side(record, side, fleet, now)
        yield from _silent_share(record, now)


def _silent_share(record: MigrationRecord, now: float) -> Iterator[Finding]:
    """What a move of two dead hosts keeps of the links that others need; see ledger/free_links.lua."""
    if not record.crosses or record.granted is None or record.source.outcome or record.destination.outcome:
        return
    heard = max(record.side(side).lease or record.granted for side in Side)
    if now - heard > SILENCE:
        ends = f"{record.source.host} and {record.destination.host}"
        links = ", ".join(sorted(record.crosses))
        reason = f"nobody has spoken for it on {ends} in {now - heard:.0f} s; its share of {links} was still counted"
        yield Finding(record.migration, record.guest, Action.FREE, reason)


def _live_side(record: MigrationRecord, side: Side, fleet: Fleet, now: float) -> Iterator[Finding]:
    assert record.admitted is not None
    there = record.side(side)
    if there.claimed is None:
        waited = now - record.admitted
        if side is Side.SOURCE and waited > ABANDON_AFTER:
            reason = f"its source never took it up in {waited:.0f} s"
            yield Finding(record.migration, record.guest, Action.ABANDON, reason, side, there.host)
        elif not _worker_alive(there.host, side, fleet):
            reason = f"no {side} worker is alive on {there.host}; start `droveway worker` there"
            yield Finding(record.migration, record.guest, Action.NONE, reason, side, there.host)
        elif not record.restored and now - max(record.admitted, record.rung or 0) > RING_AGAIN:
            reason = f"{there.host} has not answered its doorbell"
            yield Finding(record.migration, record.guest, Action.RING, reason, side, there.host)
    elif there.outcome is None and _unresolved(there):
        reason = "the guest was given away and not yet confirmed"
        yield Finding(record.migration, record.guest, Action.ASK, reason, side, there.host)
    elif there.outcome is None and _lapsed(there, now):
        reason = f"the worker on {there.host} no longer renews its lease"
        yield Finding(record.migration, record.guest, Action.ASK, reason, side, there.host)


def _leftovers(record: MigrationRecord, now: float) -> Iterator[Finding]:
    for side in Side:
        there = record.side(side)
        if there.at_work and _lapsed(there, now):
            reason = f"it {record.state} and {there.host} still holds a slot for it, without a lease"
            yield Finding(record.migration, record.guest, Action.RELEASE, reason, side, there.host)
            yield Finding(record.migration, record.guest, Action.ASK, reason, side, there.host)
    if record.settled:
        reason = f"it {record.state}, and is still counted as open"
        yield Finding(record.migration, record.guest, Action.RELEASE, reason)


def _act(finding: Finding, ledger: Ledger, bell: Bell) -> None:
    match finding.action:
        case Action.RING:
            record = ledger.find(finding.migration)
            if record is not None and record.epoch is not None and finding.side is not None:
                bell.ring(record, finding.side)
                ledger.rung(finding.migration)
        case Action.ABANDON:
            record = ledger.find(finding.migration)
            if record is not None and record.epoch is not None:
                message = (
                    f"{finding.reason}; the guest was not touched. See that a source worker runs on {finding.host}."
                )
                ledger.abandon(finding.migration, record.epoch, ABANDON_AFTER, message)
        case Action.ASK if finding.host is not None:
            bell.reconcile(finding.host)
        case Action.RELEASE:
            ledger.release(finding.migration)
        case Action.FREE:
            ledger.free_links(finding.migration, SILENCE)


def _worker_alive(host: str, side: Side, fleet: Fleet) -> bool:
    known = fleet.hosts.get(host)
    return known is not None and side in known.alive


def _lapsed(side: SideRecord, now: float) -> bool:
    return side.lease is None or side.lease < now


def _unresolved(side: SideRecord) -> bool:
    return side.progress is not None and side.progress.get("outcome") == "unresolved"
