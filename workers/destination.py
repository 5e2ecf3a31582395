"""The destination's side: start the incoming twin, serve the rounds, verify, take over. All stages: migration.py."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np

from config.capabilities import EngineChoice
from config.capabilities import MigrationCapability as Capability
from config.errors import HostError, MessageError, RefusedError, VerifyError
from workers.conversation import Conversation
from workers.digests import PageDigests, differing, rollup_unit
from workers.guests.blocker import refuse_blocked, standing
from workers.guests.contract import Guest
from workers.guests.local import LocalGuests
from workers.handover.drive import Handover
from workers.handover.journal import driving
from workers.handover.states import Event, State
from workers.link import (
    Link,
    await_source,
    engine_offered,
    link_as_destination,
    ram_for,
    refusals_told,
    registration_policy,
)
from workers.migration import Migration
from workers.pairing.agreement import pins_certainly, refuse_beyond_limits
from workers.pairing.contract import Side
from workers.pairing.offer import Offer
from workers.protocol import MessageType
from workers.qemu_engine import destination as qemu_engine
from workers.ram import Ram
from workers.registration.limits import LockLimits, lock_limits
from workers.rounds.incoming import Incoming
from workers.wire import WIRE, spoken

#: Seconds for which a source whose connection stands may say nothing: a chunk of 1 MiB paced to 100 KiB/s takes 10.
_SILENCE = 120.0
#: Seconds for the incoming guest to load its device state once the memory is there.
_LOADING = 60.0


def run(migration: Migration) -> None:
    """Take the guest. Raises what went wrong; the journal knows where the guest is then."""
    job, host = migration.job, migration.settings.host
    with driving(host.state_dir, job.guest) as journal, refusals_told(migration) as connected:
        with migration.phase("pairing", "setup"):
            theirs = await_source(migration)
            limits = lock_limits()
            engine = engine_offered(migration, theirs)
            _refuse_what_does_not_fit(migration, theirs, limits, engine)
            journal.begin(job.epoch, Side.DESTINATION, job.migration, job.peer_host)
            handover = Handover(journal, migration.pairing, State.LOADING, None, migration.timeline.mark)
        with handover.guarded():
            with migration.timeline.span("twin"):
                handover.guest = twin = _twin(migration, theirs)
            with ram_for(engine, twin) as ram, link_as_destination(migration, twin, ram, theirs, limits) as link:
                connected()
                with handover.over(link.talk):
                    if engine is EngineChoice.QEMU:
                        qemu_engine.receive(migration, link, twin, handover)
                    else:
                        _receive(migration, link, ram, handover)
                closing = migration.timeline.elapsed
            migration.timeline.add("deregistration", migration.timeline.elapsed - closing, closing)


def _refuse_what_does_not_fit(migration: Migration, theirs: Offer, limits: LockLimits, engine: EngineChoice) -> None:
    """Refused before BEGUN, which makes a guest of this name on this host an incoming copy that may be discarded."""
    job, host = migration.job, migration.settings.host
    spoken(theirs.host, theirs.wire, job.host, WIRE)
    if LocalGuests(host.state_dir, host.ram_dir).holds(job.guest):
        raise RefusedError(
            f"a guest named {job.guest} is on {job.host} already: stop it there, or go elsewhere", "guest-exists"
        )
    if theirs.guest is None or theirs.guest.get("name") != job.guest:
        raise MessageError(f"the source's offer does not describe {job.guest}: run the same release on both hosts")
    if theirs.memory > job.memory:
        raise RefusedError(
            f"{job.guest} has {theirs.memory} bytes of memory, {job.memory} were reserved here: migrate it again",
            "host-memory",
        )
    pinned = pins_certainly(theirs)  # otherwise `agree` looks again, once the transport is known
    refuse_beyond_limits(theirs, theirs.host, theirs.limits, exists=True, pinned=pinned)
    refuse_beyond_limits(theirs, job.host, limits, exists=False, pinned=pinned)
    guests = LocalGuests(host.state_dir, host.ram_dir)
    found = standing(guests.obstacles(dict(theirs.guest)), by_qemu=engine is EngineChoice.QEMU)
    refuse_blocked(job.guest, job.host, found)


def _twin(migration: Migration, theirs: Offer) -> Guest:
    """The incoming guest, started from what the source said of its own."""
    host = migration.settings.host
    assert theirs.guest is not None  # refused before
    return LocalGuests(host.state_dir, host.ram_dir).incoming(dict(theirs.guest))


def _receive(migration: Migration, link: Link, ram: Ram, handover: Handover) -> None:
    """Rounds, device state, the comparison, READY, and the source's decision."""
    verify = link.agreement.capabilities[Capability.VERIFY_RAM]
    digests = PageDigests(ram.view, ram.size) if verify else None
    talk = link.talk
    # The source chooses, from the same facts; here it only tells whose memory this is.
    migration.progress.merge("choices", {"policy": registration_policy(migration, link).policy})
    assert handover.guest is not None
    with (
        Incoming(link.endpoint, talk, ram, digests, _SILENCE) as incoming,
        handover.guest.incoming_state(partial(_answer, talk)) as state,
        talk.aside(MessageType.STATE, lambda message: state.feed(bytes(message.blob))),
    ):
        with migration.phase("rounds", "active"):
            said = incoming.serve(lambda: _report(migration, incoming))
        with migration.phase("handover", "device"):
            if digests:
                _compare(digests, said.blob, rollup_unit(ram.size, link.agreement.chunk_size))
            talk.attend(state.loaded, _LOADING, "the guest did not load its device state")
            handover.happen(Event.LOADED)
            handover.await_decision()
    _ask_what_it_felt(migration, handover)


def _ask_what_it_felt(migration: Migration, handover: Handover) -> None:
    """The guest runs by now; what it says is a figure, and no reason to fail."""
    if handover.guest is None:
        return
    with suppress(HostError):
        gap = handover.guest.felt_gap()
        if gap is not None:
            migration.progress.merge("seconds", {"guest_gap": gap})


def _answer(talk: Conversation, piece: bytes) -> None:
    """What QEMU says back, but not that it hung up: it does when it cannot load, and the reason is told by ERROR."""
    if piece:
        talk.say(MessageType.STATE, blob=piece)


def _report(migration: Migration, incoming: Incoming) -> None:
    migration.check()
    sizes = {"transferred": incoming.written, "registered": incoming.registered, "registered_most": incoming.most}
    migration.progress.merge("bytes", sizes)


def _compare(digests: PageDigests, check: bytes | memoryview, unit: int) -> None:
    """Raises VerifyError naming the first chunk that differs, MessageError when these are no digests."""
    if len(check) % 8:
        raise MessageError(f"the source sent {len(check)} bytes of digests, which is no whole number of them")
    theirs = np.frombuffer(check, "<u8")
    wrong = differing(digests.rollup(unit), theirs.astype(np.uint64), unit)
    if wrong:
        raise VerifyError(
            f"{len(wrong)} chunks of guest memory differ from what the source sent, the first at {wrong[0].start}: "
            "the guest stays at the source; check this host's memory and network"
        )
