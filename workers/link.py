"""From two workers that cannot see each other to one connected, greeted, agreed channel between two movers.

The source offers first: its guest's description and RAM blocks. The destination starts the incoming twin from that,
opens its transports on the twin's memory, and answers. Then each side judges both offers and comes to the same end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from config.capabilities import SUPPORTED, SUPPORTED_BY_QEMU, EngineChoice, TransportChoice
from config.capabilities import MigrationCapability as Capability
from config.errors import CancelledError, DrovewayError, PeerError
from workers.conversation import Conversation
from workers.dirty.choose import KINDS
from workers.fault_injection import point
from workers.guests.contract import Guest
from workers.migration import Migration
from workers.pairing.agreement import Agreement, agree, pins
from workers.pairing.contract import Side
from workers.pairing.engine import choose, engines
from workers.pairing.offer import MAX_REASON, Offer, blocks_of, decode, encode
from workers.protocol import MessageType
from workers.ram import Ram
from workers.ranges import PAGE_SIZE
from workers.registration.choose import Choice, Facts
from workers.registration.choose import choose as choose_policy
from workers.registration.limits import LockLimits, lock_limits
from workers.registration.registrar import GRANULE
from workers.transports.contract import Endpoint
from workers.transports.open import Opened, open_endpoints
from workers.wire import UNSAID, WIRE

#: Seconds for the transport to connect once both offers are known.
CONNECT_TIMEOUT = 20.0
#: Seconds between two looks of a source whether it may send, and between two words to the destination meanwhile.
_LOOK, _TOLD_EVERY = 0.02, 10.0
#: Seconds for which the destination is asked to wait for the next of these words.
_WAITS = 120


@dataclass(frozen=True, slots=True)
class Link:
    """A connected pair of movers, seen from one end."""

    endpoint: Endpoint
    talk: Conversation
    agreement: Agreement
    source: Offer
    destination: Offer


def engine_offered(migration: Migration, theirs: Offer) -> EngineChoice:
    """Who will move this guest, as the destination sees it. Raises RefusedError (`engine`)."""
    return choose(migration.parameters.engine, theirs.engines, theirs.not_from_outside).name


def ram_for(engine: EngineChoice, guest: Guest) -> Ram:
    """The guest's memory as far as this process is to reach it: not at all when QEMU moves it."""
    return Ram.elsewhere(guest.blocks()) if engine is EngineChoice.QEMU else Ram(guest.block_files())


@contextmanager
def link_as_source(migration: Migration, guest: Guest, ram: Ram, not_from_outside: str | None = None) -> Iterator[Link]:
    """Offer, wait for the answer, agree, connect. Closes the endpoint at the end, whatever happened.

    `not_from_outside`: why QEMU must move this guest, if it must.
    """
    with ExitStack() as cleanup:
        with migration.phase("pairing", "setup"):
            opened = _open(cleanup, migration, ram)
            populated = ram.populated().aligned(GRANULE).clipped(ram.size).size if ram.size else None
            mine = _offer(migration, guest, ram, opened, lock_limits(), not_from_outside, populated)
            migration.pairing.publish(encode(mine))
            theirs = decode(migration.pairing.await_offer(migration.settings.worker.pairing_timeout))
            link = _connect(migration, opened.endpoints, mine, theirs)
        try:
            yield link
        finally:
            migration.progress.merge("transport", {"kind": link.endpoint.kind, **link.endpoint.figures().to_json()})


def await_source(migration: Migration) -> Offer:
    """The destination's first step: the source's offer."""
    return decode(migration.pairing.await_offer(migration.settings.worker.pairing_timeout))


@contextmanager
def link_as_destination(
    migration: Migration, guest: Guest, ram: Ram, theirs: Offer, limits: LockLimits
) -> Iterator[Link]:
    """Agree, answer, connect. Closes the endpoint at the end, whatever happened.

    `limits` are this host's from before the twin started, which may have taken all of its memory since.
    """
    with ExitStack() as cleanup:
        opened = _open(cleanup, migration, ram)
        mine = _offer(migration, guest, ram, opened, limits, guest.not_from_outside)
        agree(theirs, mine)  # refused before the source is told to connect
        migration.pairing.publish(encode(mine))
        yield _connect(migration, opened.endpoints, mine, theirs)


def _open(cleanup: ExitStack, migration: Migration, ram: Ram) -> Opened:
    parameters = migration.parameters
    if not ram.size and parameters.transport is TransportChoice.AUTO:
        # QEMU's RDMA code takes one connection and no TLS: it is for whoever asks for it.
        parameters = replace(parameters, transport=TransportChoice.TCP)
    opened = open_endpoints(migration.job.side, migration.settings, migration.capabilities, parameters, ram)
    for endpoint in opened.endpoints.values():
        cleanup.callback(endpoint.close)
    return opened


def _offer(
    migration: Migration,
    guest: Guest,
    ram: Ram,
    opened: Opened,
    limits: LockLimits,
    not_from_outside: str | None,
    populated: int | None = None,
) -> Offer:
    return Offer(
        host=migration.job.host,
        wire=WIRE,
        blocks=blocks_of(ram.blocks),
        page_size=PAGE_SIZE,
        capabilities=migration.capabilities.to_json(),
        parameters=migration.parameters.to_json(),
        supported=frozenset(
            capability.value for capability in SUPPORTED | (frozenset() if ram.size else SUPPORTED_BY_QEMU)
        ),
        transports={kind: endpoint.offer() for kind, endpoint in opened.endpoints.items()},
        unavailable={kind: _one_line(why) for kind, why in opened.unavailable.items()},
        trackers=KINDS,
        memlock=limits.memlock,
        cgroup=limits.cgroup,
        available=limits.available,
        populated=populated,
        guest=guest.description() if migration.job.side is Side.SOURCE else None,
        engines=engines(not_from_outside, guest.not_by_itself),
        not_from_outside=_one_line(not_from_outside) if not_from_outside else None,
    )


def _one_line(reason: str) -> str:
    return " ".join(reason.split())[:MAX_REASON]


def _connect(migration: Migration, endpoints: Mapping[str, Endpoint], mine: Offer, theirs: Offer) -> Link:
    side = migration.job.side
    source, destination = (mine, theirs) if side is Side.SOURCE else (theirs, mine)
    agreement = agree(source, destination)
    endpoint = endpoints[agreement.transport]
    for kind, other in endpoints.items():
        if kind != agreement.transport:
            other.close()
    point(f"{side}.connecting")
    endpoint.connect(theirs.transports[agreement.transport], CONNECT_TIMEOUT)
    talk = Conversation(endpoint, migration.check, agreement.wire)
    talk.greet(migration.job.ticket, CONNECT_TIMEOUT)
    migration.timeline.mark("greeted")
    migration.progress.merge("choices", agreement.to_json())
    return Link(endpoint, talk, agreement, source, destination)


def registration_policy(migration: Migration, link: Link) -> Choice:
    """How memory is registered: both sides come to the same by what they offered. Raises RefusedError (`memory-lock`):
    too little can be locked."""
    agreed = link.agreement.capabilities
    facts = Facts(
        memory=link.source.memory,
        touched=link.source.touched,
        source_limit=link.source.memlock,
        destination_limit=link.destination.memlock,
        pin_all=agreed[Capability.RDMA_PIN_ALL],
        pin_budget=migration.parameters.pin_budget,
        locks=pins(link.agreement.transport, agreed),
    )
    return choose_policy(facts)


def await_links(migration: Migration, link: Link) -> None:
    """A source that is connected sends nothing before admission has let it onto the links: others use them.

    Its supervisor says so through its directory, so that a Redis that is away only makes it wait, and nothing is lost.
    """
    if migration.granted():
        return
    # A destination of before knows that word only where QEMU moves the guest, and waits for two minutes.
    told = -math.inf if link.agreement.wire > UNSAID else math.inf
    with migration.phase("links", "setup"):
        while not migration.granted():
            migration.check()
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                link.talk.say(MessageType.GOING_ON, {"seconds": _WAITS})
            link.talk.hear_nothing(_LOOK)


@contextmanager
def refusals_told(migration: Migration) -> Iterator[Callable[[], None]]:
    """When the body fails before the two are connected, tell the other side why, so that it need not wait.

    The body calls what it is given once they are connected: from then on the connection tells.
    """
    connected = False

    def tell_no_more() -> None:
        nonlocal connected
        connected = True

    try:
        yield tell_no_more
    except DrovewayError as error:
        if not connected and not isinstance(error, PeerError | CancelledError):
            with suppress(DrovewayError):  # what went wrong first is what counts
                migration.pairing.refuse(error.reason, str(error))
        raise
