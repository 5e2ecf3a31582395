"""QEMU's own migration of one guest, told what to do and looked at over its monitor.

    none → setup → active → pre-switchover (paused, waits for `switch_over`) → device → completed
                                                                       or → failed, cancelling → cancelled

It goes on without whoever began it; `leave_no_migration` ends it then. In its last pass, in `device`, QEMU's main loop
stands still until all is sent: what it is asked meanwhile it answers afterwards, in milliseconds or minutes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from config.errors import HostError
from config.settings import TlsSettings
from workers.guests.qemu.figures import Figures
from workers.guests.qemu.monitor import ANSWER_SECONDS, CommandRefusedError, Monitor
from workers.guests.qemu.own_settings import LONGEST_DOWNTIME
from workers.guests.qemu.tls_credentials import as_caller, as_listener

UNDER_WAY = frozenset({"setup", "wait-unplug", "active", "pre-switchover", "device", "cancelling"})
#: Seconds in which QEMU ends a migration: it waits for its threads, each of which may be in the middle of a write.
_END_SECONDS = 30.0
_LOOK = 0.002
#: Seconds after which a QEMU that does not answer is taken to be in its last pass.
_BUSY_SECONDS = 1.0


class OwnMigration:
    """One QEMU's end of it; a `Monitor`'s user, for one thread."""

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        directory: Path,
        last_words: Callable[[], str],
        departs: Callable[[], None],
    ) -> None:
        """`departs` is told before it begins."""
        self._name = name
        self._monitor = monitor
        self._directory = directory
        self._last_words = last_words
        self._departs = departs
        #: Asked for its figures, and not answered yet.
        self._asked: Future[Any] | None = None

    def prepare(self, capabilities: Mapping[str, bool], parameters: Mapping[str, int | str]) -> None:
        """Set what the next migration is done with, in the clear until `call` or `let_in` say otherwise.

        Raises CommandRefusedError where this QEMU lacks something, HostError where somebody else migrates the guest.
        """
        if (status := self._monitor.execute("query-migrate").get("status")) in UNDER_WAY:
            raise HostError(
                f"somebody migrates guest {self._name} by its monitor already ({status}): let that end, or end it "
                "(`migrate_cancel`), and migrate it again"
            )
        asked = [{"capability": name, "state": state} for name, state in capabilities.items()]
        self._monitor.execute("migrate-set-capabilities", capabilities=asked)
        self._set({"tls-creds": "", **parameters})

    def call(self, tls: TlsSettings, listener: str) -> None:
        """Encrypt, and send only to a host whose certificate has this name. Raises CommandRefusedError, HostError."""
        self._set(as_caller(self._monitor, self._directory, tls, listener))

    def let_in(self, tls: TlsSettings, caller: str) -> None:
        """Encrypt, and take only from a host whose certificate has this subject. Raises as `call`."""
        self._set(as_listener(self._monitor, self._directory, tls, caller))

    def listen(self, uris: Iterable[str]) -> str:
        """Wait for a source at the first of these that is free; which one. Raises HostError: none is."""
        refusal = CommandRefusedError(f"QEMU of guest {self._name} was given nowhere to listen")
        for uri in uris:
            try:
                self._monitor.execute("migrate-incoming", uri=uri)
            except CommandRefusedError as error:
                refusal = error
            else:
                return uri
        raise refusal

    def port(self) -> int:
        """The port on which a listening QEMU waits. Raises HostError when it says none."""
        for address in self._monitor.execute("query-migrate").get("socket-address", []):
            if address.get("type") == "inet":
                return int(address["port"])
        raise HostError(f"QEMU of guest {self._name} does not say where it listens")

    def set_off(self, uri: str) -> None:
        """Begin; the guest runs on."""
        self._departs()
        self._monitor.execute("migrate", uri=uri)

    def figures(self) -> Figures:
        """How it stands. Raises HostError, with QEMU's last words when it has ended."""
        return self._figures(self._monitor.ask("query-migrate"), ANSWER_SECONDS)

    def figures_unless_busy(self) -> Figures | None:
        """The same, but never waits: None until QEMU answers, which is asked again only then."""
        if self._asked is None:
            self._asked = self._monitor.ask("query-migrate")
        if not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return self._figures(asked, 0)

    def _figures(self, asked: Future[Any], seconds: float) -> Figures:
        try:
            return Figures.of(self._monitor.result(asked, seconds, "query-migrate"))
        except HostError as error:  # an incoming one that cannot load ends, and says why in its log
            raise HostError(f"{error} {self._last_words()}".strip()) from None

    def wait(self, seconds: float) -> None:
        """Until QEMU says something by itself: a new state, a look at all of memory; so long at most."""
        self._monitor.next_event(seconds)

    def press_on(self) -> None:
        """Let it pause the guest for as long as it takes."""
        self._monitor.execute("migrate-set-parameters", downtime_limit=LONGEST_DOWNTIME)

    def switch_over(self) -> None:
        """Go on from pre-switchover."""
        self._monitor.execute("migrate-continue", state="pre-switchover")

    def _set(self, parameters: Mapping[str, int | str]) -> None:
        values: dict[str, Any] = dict(parameters)
        self._monitor.execute("migrate-set-parameters", **values)


def leave_no_migration(monitor: Monitor) -> None:
    """End QEMU's own migration if one is under way, be it of a mover that died: only then can the guest be resumed.

    A guest that it had paused runs again by that. Harmless without one. Raises HostError when it does not end.
    """
    _free(monitor)
    until = time.monotonic() + _END_SECONDS
    cancelled = False
    while time.monotonic() < until:
        if monitor.execute("query-migrate").get("status") in UNDER_WAY:
            if not cancelled:
                monitor.execute("migrate_cancel")
            cancelled = True
        elif monitor.execute("query-status")["status"] != "finish-migrate":  # its last step, in which `cont` is refused
            return
        time.sleep(_LOOK)
    raise HostError(f"QEMU's migration does not end within {_END_SECONDS:g} s: `droveway reconcile` goes on")


def _free(monitor: Monitor) -> None:
    """Let a QEMU that does not answer, being in its last pass, fail at once: its connections are shut down."""
    asked = monitor.ask("query-migrate")
    wait([asked], _BUSY_SECONDS)
    if not asked.done():
        with contextlib.suppress(CommandRefusedError):  # nothing is to be shut down: then it is busy with other things
            monitor.execute_at_once("yank", instances=[{"type": "migration"}])
    monitor.result(asked, _END_SECONDS, "query-migrate")
