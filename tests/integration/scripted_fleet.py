"""A fleet on a real Redis whose movers the test plays: what is admitted ends when, and as, the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.bell import Bell
from tasks.jobs import JobRecord
from tasks.ledger.ledger import Answer, Ledger
from tasks.records import LocalGuest, MigrationRecord
from tasks.steps import snapshot, take_step
from tests.integration.console import GIB, OFFERED
from workers.attempt import Job, Status
from workers.pairing.contract import Side


class SilentBell:
    """Nobody hears it: the test plays the movers."""

    def ring(self, record: MigrationRecord, side: Side) -> None: ...

    def reconcile(self, host: str) -> None: ...


BELL: Bell = SilentBell()


def beat(ledger: Ledger, guests: Mapping[str, Sequence[str]]) -> None:
    """All hosts speak; each has these guests of 1 GiB."""
    for host, names in guests.items():
        for side in Side:
            ledger.heartbeat(host, side, OFFERED, [], [LocalGuest(name, GIB, 0) for name in names])


def stepped(ledger: Ledger, job: str) -> JobRecord:
    """After one step, whoever has just taken one."""
    with ledger._client.pipeline() as pipe:
        pipe.delete(f"droveway:job:{job}:turn").execute()
    take_step(ledger, BELL, job)
    return snapshot(ledger, job)


def end(ledger: Ledger, outcome: str, reason: str = "") -> list[str]:
    """Let every admitted move end so, on both its sides; the guests."""
    ended = []
    for record in ledger.open():
        if record.epoch is None or record.ended:
            continue
        ended.append(record.guest)
        made = record.guest, record.epoch
        ends = ((side, record.side(side).host, record.side(side.peer).host) for side in Side)
        jobs = [Job(record.migration, *made, side, "n", host, peer, GIB, {}, {}) for side, host, peer in ends]
        assert [ledger.claim(job.ticket) for job in jobs] == [Answer.OK, Answer.OK]
        for job in jobs:
            ledger.finish(job.ticket, Status(outcome=outcome, reason=reason, message=reason))
    ledger.admit()
    return ended


def lived(ledger: Ledger, job: str) -> JobRecord:
    """The job at its end, every move of it having gone well."""
    for _ in range(50):
        record = stepped(ledger, job)
        if record.ended:
            return record
        end(ledger, "completed")
    raise AssertionError(f"it does not end: {record}")
