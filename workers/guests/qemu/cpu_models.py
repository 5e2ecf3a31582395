"""The processor models that this host's QEMU knows by name, for plans: asked in the background, nobody waits for it.

Whether the processor can give a model's features is another question, and asked of both hosts before a guest is moved
(blockers.py): it depends on what the guest was in fact given.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from config.errors import HostError
from workers.guests.qemu.guest import BINARY
from workers.guests.qemu.probing import probed

log = logging.getLogger("droveway.qemu")

#: Seconds after which a QEMU that could not be asked is asked again.
_ASK_AGAIN = 600.0

_Identity = tuple[int, int, int, int]


def cpu_models(binary: str) -> frozenset[str]:
    """What this QEMU calls its models; it takes a third of a second to start. Raises HostError."""
    with probed(binary) as monitor:
        return frozenset(str(each["name"]) for each in monitor.execute("query-cpu-definitions"))


class CpuModels:
    """What one host's QEMU knows, asked again only once its binary is another one. For one thread."""

    def __init__(
        self, binary: str = BINARY, ask: Callable[[str], frozenset[str]] = cpu_models, again: float = _ASK_AGAIN
    ) -> None:
        self._binary = binary
        self._ask = ask
        self._again = again
        self._of: _Identity | None = None
        self._asked = 0.0
        #: None: not known.
        self._found: frozenset[str] | None = None
        self._asking: threading.Thread | None = None

    def known(self) -> frozenset[str]:
        """As far as it is known now, at once; empty: not yet, or there is no QEMU here."""
        if self._asking is not None and self._asking.is_alive():
            return self._found or frozenset()
        now_there = _identity(self._binary)
        if now_there is None:
            self._of = self._found = None
        elif now_there != self._of or (self._found is None and time.monotonic() - self._asked > self._again):
            self._of, self._asked = now_there, time.monotonic()
            self._asking = threading.Thread(target=self._look, name="cpu models", daemon=True)
            self._asking.start()
        return self._found or frozenset()

    def _look(self) -> None:
        try:
            self._found = self._ask(self._binary)
        except HostError as error:
            self._found = None
            log.warning("which processor models %s has is not known to plans: %s", self._binary, error)


def _identity(binary: str) -> _Identity | None:
    where = shutil.which(binary)
    if where is None:
        return None
    try:
        found = Path(where).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
