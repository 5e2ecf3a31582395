"""`droveway reconcile`: settle what was cut off, on this host and in the fleet, and say what cannot be settled yet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click

from config.errors import DrovewayError, HostError, RefusedError, UnreachableError, UnresolvedError
from config.names import check_name
from config.settings import Settings
from tasks.cli.endings import EndedError
from tasks.cli.following import unresolved
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering.reconciled import Settled, reconciled
from tasks.ledger.ledger import Ledger
from tasks.reconcile import Action, Finding, examine, reconcile
from workers.attempt import Attempt, Job, Status
from workers.guests.local import LocalGuests
from workers.pairing.redis import RedisPairing
from workers.settle import settle

#: Seconds in which a host whose worker is there settles what it was asked to.
_ASKED_SECONDS = 10.0


@click.command(cls=SettingsCommand)
@click.argument("guest", required=False)
@click.option("--fenced", metavar="HOST", help="HOST is switched off for good: take back what was given to it.")
@json_option
@click.pass_context
def command(context: click.Context, guest: str | None, fenced: str | None, as_json: bool) -> None:
    """Settle what was cut off: of GUEST, or of all guests.

    Rings again for what was lost, finishes from this host's journals what dead movers left, and asks the other hosts to
    do the same. Never guesses: what the journals cannot decide yet stays, paused, and this ends with exit code 8.

    --fenced is for a destination that is lost after a guest was given to it, run on the host that gave it away. You
    vouch that HOST does not run and cannot come back with the guest: if it does, the guest runs twice.

    \b
    Examples:
      droveway reconcile
      droveway reconcile web --fenced beta      # on the source, with beta's power off
    """
    invocation = invocation_of(context)
    only = check_name("guest", guest) if guest else None
    lost = check_name("host", fenced) if fenced else None
    settled = list(_settle_here(invocation.settings, only, lost))
    if lost and not any(each.peer == lost for each in settled):
        raise RefusedError(
            f"no handover with {lost} was cut off on {invocation.settings.host.name}; run this on the host that gave "
            "the guest away.",
            "nothing-fenced",
        )
    findings, failures, open_still = _settle_fleet(invocation.settings, only)
    left = {each.guest for each in settled if each.status.outcome == "unresolved"}
    document = {
        "settled": [each.to_json() for each in settled],
        "findings": [finding.to_json() for finding in findings],
        "failures": [str(failure) for failure in failures],
        "unresolved": sorted(left | open_still),
    }
    if not as_json and (settled or findings or not failures):
        show(reconciled(settled, findings))
    _conclude(document, failures, as_json=as_json)


def _conclude(document: dict[str, Any], failures: list[DrovewayError], *, as_json: bool) -> None:
    for failure in failures:
        if isinstance(failure, UnreachableError):
            raise EndedError(str(failure), failure.reason, failure.exit_code, document)
    if document["unresolved"] or failures:
        names = ", ".join(document["unresolved"])
        message = f"{names} stay unresolved: see that the workers of both hosts run, then reconcile again."
        if failures:
            message = str(failures[0])
        raise EndedError(message, UnresolvedError.reason, UnresolvedError.exit_code, document)
    if as_json:
        click.echo(json.dumps(document))


# --- this host --------------------------------------------------------------------------------------------------------


def _settle_here(settings: Settings, guest: str | None, fenced: str | None) -> Iterator[Settled]:
    """Finish what movers of this host that died left, from the journals; Redis may be away."""
    with closing(Ledger(settings)) as ledger:
        for attempt in Attempt.all(settings.host.state_dir):
            try:
                job = attempt.job()
                if (guest and job.guest != guest) or not attempt.started() or attempt.alive():
                    continue
                status = _settled(settings, attempt, job, fenced == job.peer_host)
            except HostError:
                if attempt.directory.exists():
                    raise
                continue  # this host's worker was done with it meanwhile
            yield Settled(job.migration, job.guest, job.side, job.peer_host, status, _recorded(ledger, job, status))


def _settled(settings: Settings, attempt: Attempt, job: Job, fenced: bool) -> Status:
    """How the attempt ended, or as far as it goes now."""
    status = attempt.status()
    if status.outcome not in (None, "unresolved"):
        return status
    guests = LocalGuests(settings.host.state_dir, settings.host.ram_dir)
    with closing(RedisPairing(settings.redis, job.ticket, job.host)) as pairing:
        try:
            return settle(attempt, guests, settings.host.state_dir, pairing, fenced=fenced)
        except RefusedError as error:  # this host's worker settles it this very moment
            return Status(phase="ended", reason=error.reason, message=str(error))


def _recorded(ledger: Ledger, job: Job, status: Status) -> str | None:
    """Tell the record; what stands in the way, when it cannot be told. This host's worker tells it later, then."""
    if status.outcome in (None, "unresolved"):
        return None
    try:
        ledger.finish(job.ticket, status)
    except UnreachableError as error:
        return str(error)
    return None


# --- the fleet --------------------------------------------------------------------------------------------------------


def _settle_fleet(settings: Settings, guest: str | None) -> tuple[list[Finding], list[DrovewayError], set[str]]:
    """What was found in the record; what stood in the way; the guests that are unresolved still."""
    try:
        with closing(Ledger(settings)) as ledger:
            report = reconcile(ledger, bell_for(settings))
            findings = [finding for finding in report.findings if guest in (None, finding.guest)]
            failures: list[DrovewayError] = [UnreachableError(failure) for failure in report.failures]
            return findings, failures, _await_asked(ledger, guest, findings)
    except UnreachableError as error:
        return [], [error], set()


def _await_asked(ledger: Ledger, guest: str | None, findings: list[Finding]) -> set[str]:
    """Give the hosts that were asked, and have a worker to answer, a moment; the guests that are unresolved then."""
    hosts = {finding.host for finding in findings if finding.action is Action.ASK}
    answering = any(host.alive for name, host in ledger.fleet().hosts.items() if name in hosts)
    deadline = time.monotonic() + _ASKED_SECONDS
    while (left := _unresolved(ledger, guest)) and answering and time.monotonic() < deadline:
        time.sleep(0.3)
    return left


def _unresolved(ledger: Ledger, guest: str | None) -> set[str]:
    records = [record for record in ledger.open() if not record.ended and guest in (None, record.guest)]
    waiting = examine(records, ledger.fleet(), ledger.now())
    return {record.guest for record in records if unresolved(record)} | {
        finding.guest for finding in waiting if finding.action is Action.ASK
    }
