"""Who competes in `make bench-rdma`, and over what. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Bytes of every contestant's guest.
MEMORY = 256 << 20
#: The least that the product takes; a quarter of the guest.
PIN_BUDGET = 64 << 20
#: Where a half-used guest's memory lies: every other stretch of this many bytes was never touched.
STRETCH = 8 << 20


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of moving a guest. Everything that is not named here is the program's own default.

    `used`: all of the guest's memory, or half. `verified`: the product's verify-ram; QEMU has nothing like it.
    """

    name: str
    program: Literal["qemu", "droveway"]
    transport: Literal["verbs", "tcp"]
    policy: Literal["pin-all", "dynamic", "windowed"] = "dynamic"
    used: Literal["all", "half"] = "all"
    verified: bool = False


#: In the order in which they run, backwards in every other round: whom a bar compares are neighbours, so that a host
#: that becomes busy meanwhile disturbs both alike.
CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("qemu-tcp", "qemu", "tcp"),
        Contestant("tcp", "droveway", "tcp"),
        Contestant("qemu-dynamic", "qemu", "verbs"),
        Contestant("half-dynamic", "droveway", "verbs", used="half"),
        Contestant("dynamic", "droveway", "verbs"),
        Contestant("pin-all", "droveway", "verbs", "pin-all"),
        Contestant("half-pin-all", "droveway", "verbs", "pin-all", used="half"),
        Contestant("qemu-pin-all", "qemu", "verbs", "pin-all"),
        Contestant("windowed", "droveway", "verbs", "windowed"),
        Contestant("dynamic-verified", "droveway", "verbs", verified=True),
    )
}
#: Whose pinned memory is looked at over time, in runs of their own, since looking takes time.
WATCHED = ("qemu-dynamic", "qemu-pin-all", "dynamic", "pin-all", "windowed")
