"""A virtual machine handed from one QEMU to another by a test itself, without workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.until import until
from workers.guests.qemu.guest import QemuGuest


def hand_over(source: QemuGuest, twin: QemuGuest, change: Callable[[bytes], bytes] = lambda piece: piece) -> None:
    """Pause the source, copy its RAM and hand its state over, each piece as `change` makes it.

    Both are paused then. Raises HostError with what either QEMU says.
    """
    backward: list[bytes] = []
    with (
        twin.incoming_state(backward.append) as incoming,
        source.outgoing_state(lambda piece: incoming.feed(change(piece))) as outgoing,
    ):
        source.stop()
        shutil.copyfile(source.places.ram, twin.places.ram)  # a disk's state is judged by what is in memory, too
        outgoing.save()
        until("the state is loaded", incoming.loaded, 30)

        def completed() -> bool:
            while backward:
                outgoing.answer(backward.pop(0))
            return outgoing.completed()

        until("the source knows", completed, 30)
