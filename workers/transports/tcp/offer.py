"""What two sides tell each other through pairing about their TCP connections, as JSON. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import MessageError

#: The bound of the parameter `channels`.
MAX_CHANNELS = 128
_MAX_ADDRESSES = 16
TOKEN_SIZE = 32
_HEX_64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ControlOffer:
    """What one side says of its control connection.

    Shapes: `token` is 32 bytes, on the destination only, as are `addresses`; `fingerprint` is the hex SHA-256 of the
    side's DER certificate, None without TLS.
    """

    addresses: tuple[Address, ...]
    token: bytes | None
    fingerprint: str | None

    def encode(self) -> dict[str, Any]:
        """The offer as JSON."""
        return {
            "addresses": [str(address) for address in self.addresses],
            "token": self.token.hex() if self.token else None,
            "fingerprint": self.fingerprint,
        }


def decode_offer(data: Mapping[str, Any]) -> ControlOffer:
    """Read an offer; other fields are ignored, as a transport adds its own and a later version more.

    Raises MessageError.
    """
    addresses = data.get("addresses")
    if not isinstance(addresses, list) or len(addresses) > _MAX_ADDRESSES:
        raise _malformed(f"addresses must be a list of at most {_MAX_ADDRESSES}")
    token = _hex(data, "token")
    return ControlOffer(
        tuple(parse_address(address) for address in addresses),
        bytes.fromhex(token) if token else None,
        _hex(data, "fingerprint"),
    )


def decode_channels(data: Mapping[str, Any]) -> int:
    """How many data connections a tcp offer allows, 1 to 128. Raises MessageError."""
    channels = data.get("channels")
    if not isinstance(channels, int) or isinstance(channels, bool) or not 1 <= channels <= MAX_CHANNELS:
        raise _malformed(f"channels must be 1 to {MAX_CHANNELS}")
    return channels


def parse_address(text: object) -> Address:
    """Read "ip:port" or "[ip6]:port"; never a name: no peer sends us to a name server.

    Raises MessageError.
    """
    host, _, port = str(text).rpartition(":")
    try:
        number = int(port)
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise MessageError(f"{str(text)[:64]!r} is not of the form ip:port") from None
    if not 0 < number < 1 << 16:
        raise MessageError(f"{number} is not a port")
    return Address(str(ip), number)


def _hex(data: Mapping[str, Any], field: str) -> str | None:
    value = data.get(field)
    if value is None or (isinstance(value, str) and _HEX_64.fullmatch(value)):
        return value
    raise _malformed(f"{field} must be 64 hex digits or null")


def _malformed(reason: str) -> MessageError:
    return MessageError(f"the offer of the other side is malformed ({reason}): check that both run the same version")
