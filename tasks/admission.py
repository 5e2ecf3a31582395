"""What is refused at once: a request and the fleet as it is → a submission, or the rule that refuses it. Pure.

A slot that is only taken for now refuses nothing: the record waits for it, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from config.capabilities import read_options
from config.errors import RefusedError
from config.names import nearest
from tasks.messages import MigrateRequest
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, Priority, Submission
from workers.pairing.agreement import HARMLESS
from workers.pairing.contract import Side
from workers.wire import spoken


def judge(request: MigrateRequest, fleet: Fleet) -> Submission:
    """The submission for this request. Raises RequestError (the options), RefusedError (`reason` names the rule).

    Rules, first to last: `unknown-guest`, `guest-moved`, `same-host`, `pinned`, `cordoned`, `unknown-host`,
    `no-worker`, `version`, `busy`, `capability`, `memory-lock`, `host-memory`.
    """
    capabilities, parameters = read_options(request.capabilities, request.parameters)
    guest = _guest(request, fleet)
    if guest.host == request.destination:
        raise RefusedError(f"{guest.guest} is on {guest.host} already; choose another destination.", "same-host")
    _free_to_go(guest, request.destination, fleet)
    source = _host(guest.host, Side.SOURCE, fleet)
    destination = _host(request.destination, Side.DESTINATION, fleet)
    spoken(source.host, source.wire, destination.host, destination.wire)
    if guest.active not in (None, request.migration):
        raise busy(guest.guest, str(guest.active))
    asked = capabilities.to_json()
    for host in (source, destination):
        _able(host, asked)
        _lockable(host, asked, guest)
    if destination.free < guest.memory:
        raise RefusedError(
            f"{guest.guest} has {guest.memory} bytes, {destination.host} has {max(destination.free, 0)} left for"
            " guests; choose another destination or make room there.",
            "host-memory",
        )
    return Submission(
        request.migration,
        guest.guest,
        source.host,
        destination.host,
        guest.memory,
        asked,
        parameters.to_json(),
        request.expires,
        priority=Priority[request.priority.upper()],
    )


def _guest(request: MigrateRequest, fleet: Fleet) -> GuestRecord:
    guest = fleet.guests.get(request.guest)
    if guest is None:
        raise RefusedError(
            f"No host has a guest {request.guest}{nearest(request.guest, fleet.guests)}"
            " (`droveway guest list` on a host shows what it has).",
            "unknown-guest",
        )
    if request.source not in (None, guest.host):
        raise RefusedError(
            f"{guest.guest} is on {guest.host}, not on {request.source}; leave the source out or correct it.",
            "guest-moved",
        )
    return guest


def _free_to_go(guest: GuestRecord, destination: str, fleet: Fleet) -> None:
    for kept, name in ((Kept.GUEST, guest.guest), (Kept.HOST, guest.host), (Kept.HOST, destination)):
        if pin := fleet.pins.get((kept, name)):
            raise RefusedError(
                f"{kept} {name} is pinned: {pin.reason}; wait until that is over, or take it back (`droveway blocker"
                f" del {kept} {name}`).",
                "pinned",
            )
    if cordon := fleet.pins.get((Kept.CORDON, destination)):
        raise RefusedError(
            f"{destination} takes no guests: {cordon.reason}; choose another destination, or let it take them again"
            f" (`droveway uncordon {destination}`).",
            "cordoned",
        )


def _host(name: str, side: Side, fleet: Fleet) -> HostRecord:
    host = fleet.hosts.get(name)
    if host is None:
        raise RefusedError(
            f"No worker speaks for a host {name}{nearest(name, fleet.hosts)}; start `droveway worker` there.",
            "unknown-host",
        )
    if side not in host.alive:
        raise RefusedError(f"No {side} worker is alive on {name}; start `droveway worker` there.", "no-worker")
    return host


def _able(host: HostRecord, asked: Mapping[str, bool]) -> None:
    lacking = sorted(name for name, on in asked.items() if on and name not in host.capabilities | HARMLESS.keys())
    if lacking:
        raise RefusedError(
            f"The workers of {host.host} (release {host.version}) cannot do {', '.join(lacking)}; set it off or upgrade"
            " there.",
            "capability",
        )


def _lockable(host: HostRecord, asked: Mapping[str, bool], guest: GuestRecord) -> None:
    if asked.get("rdma-pin-all") and host.memlock is not None and host.memlock < guest.memory:
        raise RefusedError(
            f"rdma-pin-all locks the {guest.memory} bytes of {guest.guest}, the workers of {host.host} may lock"
            f" {host.memlock}: {guest.memory - host.memlock} are missing; raise LimitMEMLOCK there or set"
            " rdma-pin-all off.",
            "memory-lock",
        )


def busy(guest: str, migration: str) -> RefusedError:
    """The guest is taken, queued migrations included: the ledger holds one for each guest."""
    return RefusedError(
        f"{guest} is already migrating; `droveway status {migration}` shows how far it is.",
        "busy",
    )
