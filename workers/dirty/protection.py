"""Write protection of a guest's RAM: its userfaultfd, registered over every mapping; addresses are ram_addr."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from workers.dirty import kernel
from workers.dirty.mappings import GuestMapping, TrackedProcess, guest_mappings
from workers.ram import Ram

#: Seconds to wait for the userfaultfd of a worker that was killed a moment ago: the kernel takes 10 to 25 ms per GiB
#: to undo the protection when it closes the descriptor.
_RELEASE_GRACE = 5.0
_RELEASE_POLL = 0.02


class WriteProtection:
    """The right to protect a guest's RAM. Owns the descriptor; nothing is protected until `protect`."""

    def __init__(self, guest: TrackedProcess, ram: Ram, features: int) -> None:
        """Open and register. Raises HostError when the kernel or the guest's mappings do not allow it."""
        self.mappings = guest_mappings(guest, ram)
        self.fd = guest.userfaultfd()
        try:
            # A copy in a child of this process would outlive us, and with it the protection: the guest would hang.
            os.set_inheritable(self.fd, False)
            os.set_blocking(self.fd, False)
            kernel.handshake(self.fd, features)
            for mapping in self.mappings:
                _register(self.fd, mapping)
        except OSError as error:
            self.close()
            raise kernel.explained(error, "registering the guest's memory for write tracking") from None

    def protect(self, start: int, end: int) -> None:
        """Protect [start, end). Raises OSError."""
        for address, size in self.addresses(start, end):
            kernel.write_protect(self.fd, address, size)

    def unprotect(self, start: int, end: int) -> None:
        """Lift the protection of [start, end) and wake who waits there. Raises OSError."""
        for address, size in self.addresses(start, end):
            kernel.write_unprotect(self.fd, address, size)

    def addresses(self, start: int, end: int) -> list[tuple[int, int]]:
        """(address in the guest's process, size) of the pieces of guest memory [start, end)."""
        pieces = []
        for mapping in self.mappings:
            low, high = max(start, mapping.start), min(end, mapping.start + mapping.size)
            if low < high:
                pieces.append((mapping.address + low - mapping.start, high - low))
        return pieces

    def release(self) -> None:
        """Lift everything and wake every waiting write; the descriptor stays open."""
        for mapping in self.mappings:
            with contextlib.suppress(OSError):  # not registered yet, or the guest is gone
                kernel.unregister(self.fd, mapping.address, mapping.size)
                # Unregistering wakes only those who wait for missing pages, not for a write (seen on Linux 6.18).
                kernel.wake(self.fd, mapping.address, mapping.size)

    def close(self) -> None:
        """Lift everything and close. Harmless when repeated, or when the guest is gone."""
        if self.fd >= 0:
            self.release()  # closing does the same, unless the guest's process kept a copy of the descriptor
            os.close(self.fd)
            self.fd = -1


def _register(fd: int, mapping: GuestMapping) -> None:
    deadline = time.monotonic() + _RELEASE_GRACE
    while True:
        try:
            return kernel.register(fd, mapping.address, mapping.size)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(_RELEASE_POLL)
