"""The destination's side of engine=qemu: QEMU listens and loads; READY, and the source's decision, as ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

from config.errors import HostError, PeerLostError
from workers.guests.contract import Guest
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.own_migration import OwnMigration
from workers.guests.qemu.own_settings import own_settings
from workers.guests.qemu.tls_credentials import listening_name
from workers.handover.drive import Handover
from workers.handover.states import Event
from workers.link import Link
from workers.migration import Migration
from workers.protocol import Message, MessageType
from workers.qemu_engine.certificates import certificates

#: Seconds for the source to say that it is about to call, and then that it goes on.
_ANSWER = 120.0
#: Seconds between two looks at a QEMU that says nothing by itself.
_LOOK = 0.1


def receive(migration: Migration, link: Link, twin: Guest, handover: Handover) -> None:
    """Let QEMU load the guest, all of it; READY, and the source's decision."""
    assert isinstance(twin, QemuGuest)  # no other kind moves itself
    own = twin.own_migration()
    agreed, host = link.agreement, migration.settings.host
    settings = own_settings(
        agreed.capabilities, migration.parameters, transport=agreed.transport, channels=agreed.channels
    )
    tls = certificates(migration, agreed)
    caller = _await_call(link)
    own.prepare(settings.capabilities, settings.parameters)
    if tls.enabled:
        own.let_in(tls, caller)
    port = listen(own, agreed.transport, str(host.address), host.ports)
    link.talk.say(MessageType.LISTENING, {"address": host.advertised, "port": port, "name": listening_name(tls)})
    with migration.phase("rounds", "active"):
        _await_completed(migration, link, own)
    with migration.phase("handover", "device"):
        handover.happen(Event.LOADED)
        handover.await_decision()


def _await_call(link: Link) -> str:
    """The name in the certificate of whoever will connect. Until the source is let onto the links it says only that it
    goes on."""
    while True:
        message = link.talk.expect([MessageType.CALLING, MessageType.GOING_ON], _ANSWER)
        if message.type is MessageType.CALLING:
            return str(message.body["name"])


def listen(own: OwnMigration, transport: str, address: str, ports: tuple[int, int]) -> int:
    """Somewhere in this host's range, where firewalls let the data path through; the port."""
    where = f"[{address}]" if ":" in address else address
    if transport == "verbs":  # QEMU's RDMA code knows no ranges, and does not say where it listens
        return int(own.listen(_one_by_one(where, ports)).rpartition(":")[2])
    own.listen([f"tcp:{where}:{ports[0]},to={ports[1]}"])
    return own.port()


def _one_by_one(where: str, ports: tuple[int, int]) -> Iterator[str]:
    return (f"rdma:{where}:{port}" for port in range(ports[0], ports[1] + 1))


def _await_completed(migration: Migration, link: Link, own: OwnMigration) -> None:
    until = time.monotonic() + _ANSWER

    def go_on(message: Message) -> None:
        nonlocal until
        until = time.monotonic() + message.body["seconds"]

    with link.talk.aside(MessageType.GOING_ON, go_on):
        while (figures := own.figures()).status != "completed":
            migration.check()
            link.talk.hear_nothing(0)
            if figures.status in ("failed", "cancelled"):
                raise HostError(f"QEMU could not load the guest: {figures.error or 'it gives no reason'}")
            if time.monotonic() > until:
                raise PeerLostError("the source does not say any more that it goes on: its mover hangs, or was stopped")
            own.wait(_LOOK)
