"""What a mover that died left behind, finished from this host's journal: the same table, the same actions.

Where the facts do not allow an end yet (the guest was given and nobody confirmed; or READY was said and nobody decided)
the outcome is `unresolved`, and settling is tried again later: it never guesses.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config.errors import HostError, RefusedError
from workers.attempt import Attempt, Job, Status
from workers.guests.contract import Guest, RunState
from workers.guests.local import LocalGuests
from workers.handover.drive import recover, recovering
from workers.handover.journal import Journal, Line, all_guests, driving, last_line
from workers.handover.machine import Entry, Fact, facts_of, may_run
from workers.handover.states import State
from workers.pairing.contract import Pairing, Side

_OUTCOMES = {
    State.ABORTED: ("failed", "mover-died", "the source's mover died before the guest was given away: it goes on here"),
    State.TAKEN_BACK: ("failed", "taken-back", "the guest was taken back from a fenced host, under a higher epoch"),
    State.RELEASED: ("completed", None, None),
    State.TAKEN: ("completed", None, None),
    State.DISCARDED: ("failed", "mover-died", "the incoming copy was removed: the guest goes on at the source"),
    State.GIVEN: ("unresolved", "unresolved", "the guest was given away and the destination has not confirmed"),
    State.READY: ("unresolved", "unresolved", "the copy is complete and waits for the source's word"),
}


def settle(attempt: Attempt, guests: LocalGuests, state_dir: Path, pairing: Pairing, *, fenced: bool = False) -> Status:
    """Finish a dead mover's attempt as far as it goes now; the status that says how, also written to its directory.

    Raises RefusedError (reason `busy`) while the mover lives after all or another process settles; UnreachableError
    only when `fenced`.
    """
    job = attempt.job()
    before = attempt.status()
    with driving(state_dir, job.guest) as journal:
        status = dataclasses.replace(before, **_settled(job, guests, journal, pairing, fenced=fenced))
    with contextlib.suppress(OSError):  # a full disk: settling again comes to the same end
        attempt.report(status)
    return status


def _settled(job: Job, guests: LocalGuests, journal: Journal, pairing: Pairing, *, fenced: bool) -> dict[str, Any]:
    if journal.last is None or journal.last.migration != job.migration:
        # It died before BEGUN: nothing was touched, or a later attempt has settled the guest since.
        return {
            "state": "failed",
            "outcome": "failed",
            "reason": "mover-died",
            "message": "the mover died at its start",
        }
    guest = _copy(guests, job.guest, journal.last)
    try:
        state = recover(recovering(journal, pairing, guest), fenced=fenced)
    finally:
        if guest is not None:  # a worker lives long: what it keeps of a guest, no mover can have
            guest.close()
    outcome, reason, message = _OUTCOMES[state]
    return {
        "state": "device" if outcome == "unresolved" else outcome,
        "phase": "ended",
        "outcome": outcome,
        "reason": reason,
        "message": message,
    }


def _copy(guests: LocalGuests, name: str, last: Line) -> Guest | None:
    """This host's copy of the guest, running or not; None when there is none."""
    incoming = (last.side, last.entry) == (Side.DESTINATION, Entry.BEGUN)
    if incoming and guests.half_made(name):
        guests.stop(name)
    try:
        guest = guests.open(name)
    except RefusedError:
        return None
    if incoming and _runs(guest):
        return None  # an incoming twin never ran: this one is another guest of the same name, and not ours to end
    return guest


def _runs(guest: Guest) -> bool:
    try:
        return guest.status() is RunState.RUNNING
    except HostError:
        return False


def told_by_journals(state_dir: Path) -> Iterator[tuple[str, int, Fact, str]]:
    """(guest, epoch, fact, migration) that this host's journals vouch for: told again, so that Redis may forget."""
    for guest in all_guests(state_dir):
        line = last_line(state_dir, guest)
        if line is not None:
            for epoch, fact in facts_of(line.handed):
                yield guest, epoch, fact, line.migration


def highest_epochs(state_dir: Path) -> dict[str, int]:
    """Per guest, the highest epoch that this host has seen: admission must go above it."""
    lines = {guest: last_line(state_dir, guest) for guest in all_guests(state_dir)}
    return {guest: line.epoch for guest, line in lines.items() if line is not None}


def owned_here(state_dir: Path, guest: str) -> bool:
    """Whether this host's journal lets the guest run here; a guest without a journal was never handed over."""
    line = last_line(state_dir, guest)
    return line is None or may_run(line.handed)
