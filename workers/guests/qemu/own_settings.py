"""What a migration asks for, in the words of QEMU's own migration: QMP capabilities and parameters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from config.capabilities import MigrationParameters

#: Bytes/s where nobody set a limit: QEMU's own default of 128 MiB/s would leave the link idle.
NO_LIMIT = 1 << 40
#: Milliseconds, QEMU's most: any guest fits into that.
LONGEST_DOWNTIME = 2_000_000
#: Capabilities that QEMU keeps from one migration to the next, all of which some migration of ours switches on.
ALL_OFF: Mapping[str, bool] = dict.fromkeys(
    (
        "x-ignore-shared",
        "pause-before-switchover",
        "return-path",
        "multifd",
        "rdma-pin-all",
        "xbzrle",
        "auto-converge",
    ),
    False,
)
#: Before this version QEMU forgets, on its quick way through the dirty bitmap of a RAM block, to tell the emulated
#: processors that a page is clean again, and never learns of the next write to it ("physmem: Fix migration dirty bitmap
#: coherency with TCG memory access"). By 7.2, 11 of 11 guests of 128 MiB that wrote 20 MiB/s died after four passes.
SAFE_FOR_EMULATED = (9, 0)
#: It takes the quick way only through blocks of whole words of that bitmap: bytes.
WRITES_ARE_LOST_IN = 64 * 4096


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """Both sides get the same capabilities, but that only the source pauses before it switches over."""

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, int | str]

    def at_source(self) -> Mapping[str, bool]:
        """The capabilities of the side that sends."""
        return {**self.capabilities, "pause-before-switchover": True}


def own_settings(
    asked: Mapping[str, bool], parameters: MigrationParameters, *, transport: str, channels: int
) -> OwnSettings:
    """One to one, where QEMU has the word; `transport` and `channels` as agreed.

    RDMA and xbzrle take one connection in QEMU, whatever `channels` says: multifd would leave xbzrle without effect.
    """
    xbzrle = asked.get("xbzrle", False) and transport != "verbs"
    multifd = channels > 1 and transport != "verbs" and not xbzrle
    capabilities = {
        **ALL_OFF,
        "events": True,
        # Over RDMA it is a second connection, at which a destination of QEMU 7.2 dies without a word. It is not what we
        # go by: the destination's mover says READY only when its own QEMU has loaded everything.
        "return-path": transport != "verbs",
        # A destination takes its disks when it is told to run, so that until then the source can always go on.
        "late-block-activate": True,
        "multifd": multifd,
        "xbzrle": xbzrle,
        "auto-converge": asked.get("auto-converge", False),
        "rdma-pin-all": asked.get("rdma-pin-all", False) and transport == "verbs",
    }
    values: dict[str, int | str] = {
        "max-bandwidth": parameters.max_bandwidth or NO_LIMIT,
        "downtime-limit": parameters.downtime_limit_ms,
    }
    if multifd:
        values["multifd-channels"] = channels
    if xbzrle:
        values["xbzrle-cache-size"] = parameters.xbzrle_cache_size
    return OwnSettings(capabilities, values)
