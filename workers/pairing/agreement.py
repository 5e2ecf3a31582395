"""Two offers → one way to move this guest, or the reason why there is none. Pure, and the same on both sides.

Nobody leads: each side puts both offers through `agree` and comes to the same end, so nothing has to be acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import RefusedError
from workers.pairing.offer import TRANSPORTS, Offer

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

    def to_json(self) -> dict[str, Any]:
        """For the report: what was chosen, and each fall-back with its reason."""
        return {
            "transport": self.transport,
            "channels": self.channels,
            "chunk-size": self.chunk_size,
            "capabilities": dict(self.capabilities),
            "notes": [{"about": note.about, "reason": note.reason} for note in self.notes],
        }


def agree(source: Offer, destination: Offer) -> Agreement:
    """The one way in which both can move the guest. Raises RefusedError whose reason is the rule that refused.

    Rules, first to last: `capabilities` and `parameters` asked alike, `page-size`, `ram-blocks`, `capability`,
    `memory-lock`, `transport`.
    """
    _same_request(source, destination)
    _same_memory(source, destination)
    capabilities, notes = _capabilities(source, destination)
    if capabilities.get("rdma-pin-all"):
        _lockable(source)
        _lockable(destination)
    transport, passed_over = _transport(source, destination)
    channels, chunk_size, lowered = _sizes(source, destination, transport)
    return Agreement(transport, channels, chunk_size, capabilities, (*notes, *passed_over, *lowered))


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


def _lockable(offer: Offer) -> None:
    if offer.memlock is not None and offer.memlock < offer.memory:
        raise RefusedError(
            f"rdma-pin-all locks {offer.memory} bytes, {offer.host} may lock {offer.memlock};"
            " raise LimitMEMLOCK there or set rdma-pin-all off.",
            "memory-lock",
        )


def _transport(source: Offer, destination: Offer) -> tuple[str, list[Note]]:
    passed_over: list[Note] = []
    choice = source.parameters.get("transport", "auto")
    for kind in TRANSPORTS if choice == "auto" else [kind for kind in TRANSPORTS if kind == choice]:
        lacking = [offer.host for offer in (source, destination) if kind not in offer.transports]
        if not lacking:
            return kind, passed_over
        if len(lacking) == 1:  # one side could have: worth a word; where neither can, there is nothing to explain
            passed_over.append(Note("transport", f"not {kind}: {lacking[0]} does not offer it"))
    raise RefusedError(
        f"{source.host} offers {_listed(source)}, {destination.host} {_listed(destination)}, and"
        f" transport={choice!s:.20} was asked for; enable one that both have, or ask for another.",
        "transport",
    )


def _listed(offer: Offer) -> str:
    return ", ".join(offer.transports) or "no transport"


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
