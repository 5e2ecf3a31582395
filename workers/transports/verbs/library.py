"""pyverbs, imported when it is first needed, whichever rdma-core it came with: the only file that imports it.

Bridged from rdma-core 39 to 64: the enums moved (`pyverbs.enums` until 58, `pyverbs.libibverbs_enums` from 50 on), and
a completion channel shows its descriptor only since 57.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from config.errors import DeviceError

_INSTALL = "install it (Debian, Ubuntu: apt install python3-pyverbs rdma-core; Fedora: dnf install python3-pyverbs)"
_importing = threading.Lock()
#: Two channels made at once could not tell whose new descriptor is whose.
_opening = threading.Lock()


class Verbs:
    """pyverbs' names as this package uses them, from the modules where the installed version has them."""

    def __init__(self) -> None:
        """Raises DeviceError when pyverbs is not installed, or not for this Python."""
        try:
            with _importing, _root_logging_kept():
                device, pd, cq, qp, mr, addr, error = (
                    importlib.import_module(f"pyverbs.{name}")
                    for name in ("device", "pd", "cq", "qp", "mr", "addr", "pyverbs_error")
                )
                enums = _enums()
        except ImportError as reason:
            raise DeviceError(
                f"pyverbs cannot be loaded ({reason}): {_INSTALL}, with this Python's minor version"
            ) from None
        self.Context, self.PD, self.MR = device.Context, pd.PD, mr.MR
        self.CompChannel, self.CQ = cq.CompChannel, cq.CQ
        self.QP, self.QPAttr, self.QPCap, self.QPInitAttr = qp.QP, qp.QPAttr, qp.QPCap, qp.QPInitAttr
        self.AHAttr, self.GID, self.GlobalRoute = addr.AHAttr, addr.GID, addr.GlobalRoute
        self.Error: type[Exception] = error.PyverbsError
        self.RDMAError: type[Exception] = error.PyverbsRDMAError
        self.enums: Any = enums


def _enums() -> ModuleType:
    try:
        return importlib.import_module("pyverbs.libibverbs_enums")
    except ImportError:
        return importlib.import_module("pyverbs.enums")


@contextmanager
def _root_logging_kept() -> Iterator[None]:
    """Importing pyverbs calls logging.basicConfig(INFO), which would put a handler of its own on the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        root.setLevel(level)


def with_descriptor(make: Callable[[], Any]) -> tuple[Any, int]:
    """A completion channel and its descriptor. Before rdma-core 57 it is found as the one that appeared meanwhile."""
    with _opening:
        before = _event_descriptors()
        channel = make()
        shown = getattr(channel, "fd", None)
        if shown is not None:
            return channel, int(shown)
        (found,) = _event_descriptors() - before
        return channel, found


def _event_descriptors() -> set[int]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "[infinibandevent]" in str(link.readlink()):
                found.add(int(link.name))
        except OSError:  # the listing's own descriptor is gone by now
            continue
    return found
