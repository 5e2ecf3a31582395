"""What two verbs endpoints tell each other through pairing, as JSON. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import MessageError

#: The bound of the parameter `channels`.
MAX_CHANNELS = 128
MTUS = (256, 512, 1024, 2048, 4096)
_BITS_24 = (1 << 24) - 1
_LINK_LAYERS = ("ethernet", "infiniband")


@dataclass(frozen=True, slots=True)
class QueuePairName:
    """What the other side connects a queue pair to: its number and first packet sequence number, 24 bits each."""

    qpn: int
    psn: int


@dataclass(frozen=True, slots=True)
class VerbsOffer:
    """One side's offer.

    `gid` and `lid` are where its port is (`lid` is 0 on Ethernet), `mtu` the port's active MTU in bytes. `scratch` is
    a page of the destination's own, no guest memory, for the first write and for reads that follow writes:
    (address, remote key), None on the source. `odp` says whether its device can fault memory in. `control` is the
    control connection's own offer.
    """

    device: str
    link_layer: str
    gid: str
    lid: int
    mtu: int
    queue_pairs: tuple[QueuePairName, ...]
    scratch: tuple[int, int] | None
    odp: bool
    control: Mapping[str, Any]

    def encode(self) -> dict[str, Any]:
        """The offer as JSON; `channels` is for the agreement, which knows no transport's insides."""
        return {
            "device": self.device,
            "link_layer": self.link_layer,
            "gid": self.gid,
            "lid": self.lid,
            "mtu": self.mtu,
            "channels": len(self.queue_pairs),
            "queue_pairs": [[pair.qpn, pair.psn] for pair in self.queue_pairs],
            "scratch": list(self.scratch) if self.scratch else None,
            "odp": self.odp,
            "control": dict(self.control),
        }


def decode_offer(data: Mapping[str, Any]) -> VerbsOffer:
    """Read an offer; unknown fields are ignored, as a later version may add some. Raises MessageError."""
    pairs, scratch, control = data.get("queue_pairs"), data.get("scratch"), data.get("control")
    if not isinstance(pairs, list) or not 1 <= len(pairs) <= MAX_CHANNELS:
        raise _malformed(f"queue_pairs must be a list of 1 to {MAX_CHANNELS}")
    if scratch is not None:
        address, key = _pair(scratch, "scratch")
        scratch = (_number(address, "scratch", (1 << 64) - 1), _number(key, "scratch", (1 << 32) - 1))
    if not isinstance(control, Mapping):
        raise _malformed("control must be an object")
    if data.get("link_layer") not in _LINK_LAYERS:
        raise _malformed(f"link_layer must be one of {', '.join(_LINK_LAYERS)}")
    if data.get("mtu") not in MTUS:
        raise _malformed(f"mtu must be one of {', '.join(map(str, MTUS))}")
    return VerbsOffer(
        device=str(data.get("device"))[:64],
        link_layer=data["link_layer"],
        gid=_gid(data.get("gid")),
        lid=_number(data.get("lid"), "lid", (1 << 16) - 1),
        mtu=int(data["mtu"]),
        queue_pairs=tuple(_queue_pair(pair) for pair in pairs),
        scratch=scratch,
        odp=data.get("odp") is True,
        control=control,
    )


def _queue_pair(pair: object) -> QueuePairName:
    qpn, psn = _pair(pair, "queue_pairs")
    return QueuePairName(_number(qpn, "queue_pairs", _BITS_24), _number(psn, "queue_pairs", _BITS_24))


def _pair(value: object, field: str) -> tuple[object, object]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _malformed(f"{field} must be pairs of numbers")
    return value[0], value[1]


def _number(value: object, field: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise _malformed(f"{field} must hold numbers of 0 to {most}")
    return value


def _gid(value: object) -> str:
    try:
        return str(ipaddress.IPv6Address(str(value)).exploded)
    except ValueError:
        raise _malformed(f"gid {str(value)[:64]!r} is no GID") from None


def _malformed(reason: str) -> MessageError:
    return MessageError(
        f"the verbs offer of the other side is malformed ({reason}): check that both run the same version"
    )
