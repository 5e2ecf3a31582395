"""The fleet as Redis knows it now, as a `Cluster`. Pure: the records are read elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.planning.cluster import Cluster, Guest, Host
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, MigrationRecord
from workers.pairing.contract import Side


def cluster(fleet: Fleet, open_migrations: Iterable[MigrationRecord], now: float) -> Cluster:
    """The fleet at `now` (the server's clock).

    A migration that still waits for its slot counts as under way: its guest is taken, and its memory will be needed. A
    host that guests are on and nobody speaks for is stale, and so offers nothing. Of the CPU models that a host knows,
    those stand there that some guest has: a QEMU knows more than a hundred. A host that knows none of these keeps all.
    """
    going = {record.guest: record.destination.host for record in open_migrations if not record.ended}
    guests = {record.guest: _guest(record, going.get(record.guest, ""), fleet) for record in fleet.guests.values()}
    named = {host for guest in guests.values() for host in (guest.host, guest.moving_to) if host}
    silent = named - fleet.hosts.keys()
    wanted = frozenset(guest.cpu_model for guest in guests.values() if guest.cpu_model)
    hosts = {record.host: _host(record, wanted, fleet) for record in fleet.hosts.values()}
    hosts |= {name: Host(name, memory=0, stale=True, cordoned=_cordon(name, fleet)) for name in silent}
    return Cluster(hosts, guests, _uplinks(fleet), now)


def _host(record: HostRecord, wanted: frozenset[str], fleet: Fleet) -> Host:
    return Host(
        record.host,
        record.memory,
        record.cpus,
        record.bandwidth,
        outbound=record.slots[Side.SOURCE],
        inbound=record.slots[Side.DESTINATION],
        uplink=record.uplink,
        stream=record.measured,
        overhead=record.overhead,
        labels=record.labels,
        transports=frozenset(record.transports),
        wire=record.wire,
        cpu_models=wanted and (record.cpu_models & wanted or record.cpu_models),
        cordoned=_cordon(record.host, fleet),
        stale=record.alive != frozenset(Side),
    )


def _guest(record: GuestRecord, moving_to: str, fleet: Fleet) -> Guest:
    kept = fleet.pins.get((Kept.GUEST, record.guest)) or fleet.pins.get((Kept.HOST, record.host))
    return Guest(
        record.guest,
        record.host,
        record.memory,
        record.load,
        round(record.dirty_rate or 0),
        groups=record.anti_affinity,
        needs=record.needs,
        cpu_model=record.cpu_model,
        stays=kept.reason if kept else None,
        moving_to=moving_to,
        moved=record.moved,
    )


def _cordon(host: str, fleet: Fleet) -> str | None:
    """A pinned host takes no guests either."""
    kept = fleet.pins.get((Kept.CORDON, host)) or fleet.pins.get((Kept.HOST, host))
    return kept.reason if kept else None


def _uplinks(fleet: Fleet) -> dict[str, int]:
    """Where hosts name one uplink with two rates, the lower one is believed."""
    rates: dict[str, int] = {}
    for record in fleet.hosts.values():
        if record.uplink:
            rates[record.uplink] = min(record.uplink_bandwidth, rates.get(record.uplink, record.uplink_bandwidth))
    return rates
