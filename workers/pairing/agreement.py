"""Two offers → one way to move this guest, or the reason why there is none. Pure, and the same on both sides.

Nobody leads: each side puts both offers through `agree` and comes to the same end, so nothing has to be acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import RefusedError
from config.units import BYTES
from workers.pairing.engine import QEMU, Engine, choose
from workers.pairing.offer import TRANSPORTS, Offer
from workers.registration.choose import LEAST_LOCKABLE
from workers.registration.limits import LockLimits
from workers.wire import spoken

#: Capabilities without which the guest arrives just as well, only by a longer way. Anything else that is asked for
#: and lacking is refused: the operator asked for a property of the move, not for a speed.
HARMLESS = {
    "xbzrle": "pages are sent whole",
    "zero-pages": "pages of zeros are sent like any other",
    "auto-converge": "the guest is not throttled",
}


@dataclass(frozen=True, slots=True)
class Note:
    """Where the move differs from what was asked, and why."""

    about: str
    reason: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How this guest will be moved. `chunk_size` in bytes."""

    transport: str
    channels: int
    chunk_size: int
    capabilities: Mapping[str, bool]
    notes: tuple[Note, ...]
    engine: Engine
    #: What both speak (workers/wire.py).
    wire: int

    def to_json(self) -> dict[str, Any]:
        """For the report: what was chosen, and each fall-back with its reason."""
        return {
            "wire": self.wire,
            "engine": self.engine.name.value,
            "engine-reason": self.engine.reason,
            "transport": self.transport,
            "channels": self.channels,
            "chunk-size": self.chunk_size,
            "capabilities": dict(self.capabilities),
            "notes": [{"about": note.about, "reason": note.reason} for note in self.notes],
        }


def agree(source: Offer, destination: Offer) -> Agreement:
    """The one way in which both can move the guest. Raises RefusedError whose reason is the rule that refused.

    Rules, first to last: `version`, `request-differs`, `engine`, `page-size`, `ram-blocks`, `capability`, `transport`,
    `memory-lock`, `memory-cgroup`, `host-memory`, `on-demand-paging`.
    """
    wire = spoken(source.host, source.wire, destination.host, destination.wire)
    _same_request(source, destination)
    able = [engine for engine in source.engines if engine in destination.engines]
    engine = choose(source.parameters.get("engine", "auto"), able, source.not_from_outside)
    _same_memory(source, destination)
    capabilities, notes = _capabilities(source, destination)
    transport, passed_over = _transport(source, destination)
    pinned = pins(transport, capabilities)
    refuse_beyond_limits(source, source.host, source.limits, exists=True, pinned=pinned)
    refuse_beyond_limits(source, destination.host, destination.limits, exists=False, pinned=pinned)
    if capabilities.get("on-demand-paging"):
        _paged(source, destination, transport, passed_over)
    channels, chunk_size, lowered = _sizes(source, destination, transport)
    mtu = _mtu(source, destination, transport)
    if engine.name is QEMU:
        notes += _left_to_qemu(capabilities, transport)
        why = "over RDMA" if transport == "verbs" else "with xbzrle" if capabilities.get("xbzrle") else ""
        if why and channels > 1:
            channels, lowered = 1, [*lowered, Note("channels", f"1 instead of {channels}: QEMU takes no more {why}")]
    notes = [*notes, *passed_over, *mtu, *lowered]
    return Agreement(transport, channels, chunk_size, capabilities, tuple(notes), engine, wire)


def pins(transport: str, capabilities: Mapping[str, bool]) -> bool:
    """Whether what is registered over `transport` is locked without anybody asking: a device pins it, that cannot fault
    it in. Over tcp only `rdma-pin-all` locks memory.
    """
    return transport != "tcp" and not capabilities.get("on-demand-paging")


def pins_certainly(source: Offer) -> bool:
    """The same, from what the source offers alone: while tcp is among it, the destination may yet have nothing else."""
    return bool(source.transports) and all(pins(kind, source.capabilities) for kind in source.transports)


def refuse_beyond_limits(source: Offer, host: str, limits: LockLimits, *, exists: bool, pinned: bool) -> None:
    """Refuse when `host` cannot lock, or hold, what the source asks for; the message has the number that is missing.

    `exists`: the guest's memory is populated there, as it is at the source. `pinned`: what is registered is locked even
    without `rdma-pin-all`, see `pins`. Raises RefusedError: `memory-lock`, `memory-cgroup`, `host-memory`.
    """
    to_lock, otherwise = _to_lock(source, pinned)
    _enough(to_lock, limits.memlock, "memory-lock", f"{host} may lock", f"raise LimitMEMLOCK of its workers{otherwise}")
    if exists:
        return
    where = f"the memory cgroup of the workers of {host} may grow by"
    _enough(source.touched, limits.cgroup, "memory-cgroup", where, "raise its memory.max, or go elsewhere")
    # All of it, touched or not: the guest may touch the rest on the day after.
    _enough(source.memory, limits.available, "host-memory", f"{host} can take up", "make room there, or go elsewhere")


def _to_lock(source: Offer, pinned: bool) -> tuple[int, str]:
    """Bytes that must be lockable at a time on either side, and what to ask for where they are not.

    Neither `dynamic` nor `pin-budget` needs more than a window: where less may be locked, the window is smaller.
    """
    if source.capabilities.get("rdma-pin-all"):
        return max(LEAST_LOCKABLE, source.touched), ", or set rdma-pin-all off"
    return LEAST_LOCKABLE if pinned else 0, ""


def _enough(needed: int, there: int | None, rule: str, have: str, remedy: str) -> None:
    if there is not None and there < needed:
        raise RefusedError(
            f"{have} {BYTES.format(there)} more, {BYTES.format(needed)} are needed: {BYTES.format(needed - there)} are"
            f" missing; {remedy}.",
            rule,
        )


#: Parameters that each host may lower in its own offer; the smaller one holds.
_NEGOTIATED = ("channels", "chunk-size")


def _same_request(source: Offer, destination: Offer) -> None:
    fixed = [
        {name: value for name, value in offer.parameters.items() if name not in _NEGOTIATED}
        for offer in (source, destination)
    ]
    if source.capabilities != destination.capabilities or fixed[0] != fixed[1]:
        raise RefusedError(
            f"{source.host} and {destination.host} were asked for different capabilities or parameters;"
            " submit the migration again.",
            "request-differs",
        )


def _same_memory(source: Offer, destination: Offer) -> None:
    if source.page_size != destination.page_size:
        raise RefusedError(
            f"{source.host} has pages of {source.page_size} bytes, {destination.host} of {destination.page_size};"
            " choose a destination with the same page size.",
            "page-size",
        )
    if source.blocks != destination.blocks:
        raise RefusedError(
            f"the incoming guest on {destination.host} has other RAM blocks than the one on {source.host};"
            " start it with the same memory.",
            "ram-blocks",
        )


def _capabilities(source: Offer, destination: Offer) -> tuple[dict[str, bool], list[Note]]:
    in_force, notes = dict(source.capabilities), []
    for name in sorted(name for name, on in in_force.items() if on):
        lacking = [offer.host for offer in (source, destination) if name not in offer.supported]
        if not lacking:
            continue
        if name not in HARMLESS:
            raise RefusedError(
                f"{' and '.join(lacking)} cannot do {name}; set it off or upgrade there.",
                "capability",
            )
        in_force[name] = False
        notes.append(Note(name, f"off: {' and '.join(lacking)} cannot do it, {HARMLESS[name]}"))
    return in_force, notes


def _left_to_qemu(in_force: dict[str, bool], transport: str) -> list[Note]:
    """Switch off what QEMU does not do where it moves the memory itself, with a note of each."""
    if in_force.get("on-demand-paging"):
        raise RefusedError(
            "QEMU's own RDMA code decides by itself how it locks memory: set it off.", "on-demand-paging"
        )
    lacks = {"verify-ram": "QEMU compares no memory, and leaves that to its connection's checksums"}
    if transport == "verbs":
        lacks["xbzrle"] = "QEMU sends pages whole over RDMA"
    else:
        lacks["rdma-pin-all"] = f"QEMU locks no memory over {transport}"
    off = [name for name in lacks if in_force.get(name)]
    in_force.update(dict.fromkeys(off, False))
    return [Note(name, f"off: {lacks[name]}") for name in off]


def _transport(source: Offer, destination: Offer) -> tuple[str, list[Note]]:
    passed_over: list[Note] = []
    choice = source.parameters.get("transport", "auto")
    for kind in TRANSPORTS if choice == "auto" else [kind for kind in TRANSPORTS if kind == choice]:
        obstacle = _obstacle(kind, source, destination)
        if obstacle is None:
            return kind, passed_over
        if obstacle:
            passed_over.append(Note("transport", f"not {kind}: {obstacle}"))
    why = "; ".join(note.reason for note in passed_over)
    raise RefusedError(
        f"{source.host} offers {_listed(source)}, {destination.host} {_listed(destination)}, and"
        f" transport={choice!s:.20} was asked for{why and f' ({why})'}; enable one that both have, or ask for another.",
        "transport",
    )


def _obstacle(kind: str, source: Offer, destination: Offer) -> str | None:
    """Why the two cannot move memory over `kind`; None when they can, "" when neither has it nor has a reason."""
    both = (source, destination)
    lacking = [offer for offer in both if kind not in offer.transports]
    if len(lacking) == 2 and not any(kind in offer.unavailable for offer in both):
        return ""
    if lacking:
        return ", ".join(f"{offer.host} does not offer it{_because(offer, kind)}" for offer in lacking)
    layers = [offer.transports[kind].get("link_layer") for offer in both]
    if layers[0] != layers[1]:
        return f"the link of {source.host} is {layers[0]!s:.20}, that of {destination.host} {layers[1]!s:.20}"
    return None


def _because(offer: Offer, kind: str) -> str:
    return f" ({offer.unavailable[kind]})" if kind in offer.unavailable else ""


def _listed(offer: Offer) -> str:
    return ", ".join(offer.transports) or "no transport"


def _paged(source: Offer, destination: Offer, transport: str, passed_over: list[Note]) -> None:
    """Refuse `on-demand-paging` where the devices cannot fault memory in."""
    why = "; ".join(note.reason for note in passed_over) or f"memory would travel over {transport}"
    if transport == "verbs":
        unable = [offer for offer in (source, destination) if offer.transports[transport].get("odp") is not True]
        why = " and ".join(f"{offer.transports[transport].get('device')!s:.64} of {offer.host}" for offer in unable)
        why = why and f"{why} cannot fault memory in"
    if why:
        raise RefusedError(
            f"on-demand-paging needs RDMA devices that can on both hosts: {why}; set it off, or go elsewhere.",
            "on-demand-paging",
        )


def _mtu(source: Offer, destination: Offer, transport: str) -> list[Note]:
    """A note where one side's packets must be smaller than the other's device would make them."""
    mtus = {offer.host: offer.transports[transport].get("mtu") for offer in (source, destination)}
    known = {host: mtu for host, mtu in mtus.items() if type(mtu) is int}
    if len(set(known.values())) < 2:
        return []
    host = min(known, key=lambda host: known[host])
    wide = max(known.values())
    return [Note("mtu", f"{known[host]} instead of {wide}: that is {host}'s; make the MTUs of both netdevs alike")]


def _sizes(source: Offer, destination: Offer, transport: str) -> tuple[int, int, list[Note]]:
    agreed, notes = {}, []
    for name, least in (("channels", 1), ("chunk-size", source.page_size)):
        bounds = {offer.host: _bound(offer, name, transport, least) for offer in (source, destination)}
        host = min(bounds, key=lambda host: bounds[host])
        agreed[name] = bounds[host]
        if max(bounds.values()) != agreed[name]:
            notes.append(Note(name, f"{agreed[name]} instead of {max(bounds.values())}: {host} allows no more"))
    return agreed["channels"], agreed["chunk-size"], notes


def _bound(offer: Offer, name: str, transport: str, least: int) -> int:
    asked = offer.parameters.get(name)
    if type(asked) is not int or asked < least:
        raise RefusedError(f"{offer.host} offers {name} {asked!r:.40}; it must be at least {least}.", "request-differs")
    limit = offer.transports[transport].get(name)
    return min(asked, limit) if type(limit) is int and limit >= least else asked
