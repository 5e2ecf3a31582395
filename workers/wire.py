"""The number of what hosts say to each other: offers, messages between movers, transports, device state. Pure.

It moves when a release changes the meaning of any of them, or says something that the release before did not know. Each
host offers its number; two move guests between them when they are at most one apart, and speak the lower. So a fleet is
upgraded host by host, through every number in turn (ops/upgrades.md).
"""

from __future__ import annotations

from config.errors import RefusedError

WIRE = 5
#: Hosts of before this number was offered; 5 is the same but for that.
UNSAID = 4


def spoken(source: str, source_wire: int, destination: str, destination_wire: int) -> int:
    """The number that both speak. Raises RefusedError (`version`), which names the host to upgrade."""
    if abs(source_wire - destination_wire) > 1:
        older = source if source_wire < destination_wire else destination
        raise RefusedError(
            f"{source} speaks wire version {source_wire}, {destination} {destination_wire}: hosts must be at most one"
            f" apart; upgrade {older} first, release by release, or go elsewhere.",
            "version",
        )
    return min(source_wire, destination_wire)
