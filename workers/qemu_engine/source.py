"""The source's side of engine=qemu: QEMU sends, and is watched; the guest is given away as with our own rounds.

    source's mover                    destination's mover
    CALLING ────────────────────────► its QEMU listens
    ◄─────────────────────── LISTENING
    `migrate`                         (waits for its QEMU)
    watched until pre-switchover
    PAUSED; `migrate-continue`
    its QEMU has completed            its QEMU has completed: READY
    GIVEN ──────────────────────────► TAKEN, `cont`

Whatever fails before GIVEN resumes the guest here, and resuming a QEMU guest ends the migration that it is in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from config.capabilities import OnStall
from config.errors import MigrationFailedError, PeerLostError, StalledError
from workers.fault_injection import point
from workers.guests.contract import Guest, require_running
from workers.guests.qemu.figures import Figures
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.own_migration import OwnMigration
from workers.guests.qemu.own_settings import own_settings
from workers.guests.qemu.tls_credentials import calling_name
from workers.handover.drive import Handover
from workers.handover.states import Event
from workers.link import Link
from workers.migration import Migration
from workers.protocol import MessageType
from workers.qemu_engine.certificates import certificates
from workers.qemu_engine.passes import Finished, Passes
from workers.rounds.convergence import Limits

#: Seconds for the destination's QEMU to listen.
_ANSWER = 120.0
#: Seconds between two looks when QEMU says nothing: what an operator's eye can use.
_LOOK = 0.1
#: Seconds between two words to the destination that this goes on.
_TOLD_EVERY = 10.0
#: Seconds in which QEMU sends nothing at all while it should.
_SILENCE = 120.0
#: The same while the guest is paused, or ten times the downtime limit when that is more, …
_PAUSED_SILENCE = 5.0
#: … and this many times as long as the rest should take.
_SLOWER = 3
#: Seconds for the destination to say why its QEMU ended, once ours has noticed.
_REASON_SECONDS = 2.0


def move(migration: Migration, link: Link, guest: Guest, handover: Handover) -> None:
    """Everything between being connected and the destination running the guest."""
    assert isinstance(guest, QemuGuest)  # no other kind moves itself
    own = guest.own_migration()
    agreed = link.agreement
    settings = own_settings(
        agreed.capabilities, migration.parameters, transport=agreed.transport, channels=agreed.channels
    )
    tls = certificates(migration, agreed)
    link.talk.say(MessageType.CALLING, {"name": calling_name(tls)})
    where = link.talk.expect([MessageType.LISTENING], _ANSWER).body
    require_running(guest)
    own.prepare(settings.at_source(), settings.parameters)
    if tls.enabled:
        own.call(tls, where["name"])
    own.set_off(uri(agreed.transport, where["address"], where["port"]))
    watched = _Watched(migration, link, own, _passes(migration, link))
    _send_live(watched)
    _hand_over(watched, handover)


def uri(transport: str, address: str, port: int) -> str:
    """Where QEMU is told to send."""
    scheme = "rdma" if transport == "verbs" else "tcp"
    return f"{scheme}:[{address}]:{port}" if ":" in address else f"{scheme}:{address}:{port}"


def _passes(migration: Migration, link: Link) -> Passes:
    parameters = migration.parameters
    return Passes(
        Limits(
            downtime=parameters.downtime_limit_ms / 1e3,
            max_rounds=parameters.max_rounds,
            completion_timeout=parameters.completion_timeout_per_gib_s * max(1.0, link.source.memory / (1 << 30)),
            progress_timeout=parameters.progress_timeout_s,
        )
    )


@dataclass(slots=True)
class _Watched:
    """QEMU's migration under way, and what was seen of it."""

    migration: Migration
    link: Link
    own: OwnMigration
    passes: Passes
    figures: Figures = field(default_factory=lambda: Figures("none"))
    began: float = field(default_factory=time.monotonic)
    #: When it last sent something.
    moved: float = field(default_factory=time.monotonic)
    forced: bool = False
    #: When the destination was last told that this goes on.
    told: float = -math.inf

    def go_on(self) -> None:
        """Tell the destination, whose QEMU does not say what it receives, that somebody still watches."""
        if time.monotonic() - self.told > _TOLD_EVERY:
            self.told = time.monotonic()
            self.link.talk.say(MessageType.GOING_ON, {"seconds": round(_SILENCE)})

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def look(self) -> None:
        """Take in how it stands. Raises when it failed, or sends nothing any more."""
        self._see(self.own.figures())

    def completed(self) -> bool:
        """Whether it is through, of a QEMU that may still be too busy to say so. Raises as `look`."""
        if (figures := self.own.figures_unless_busy()) is None:
            return False
        self._see(figures)
        return figures.status == "completed"

    def _see(self, figures: Figures) -> None:
        if figures.transferred != self.figures.transferred or figures.status != self.figures.status:
            self.moved = time.monotonic()
        self.figures = figures
        if figures.status in ("failed", "cancelled", "cancelling", "none"):
            _raise_failed(self)
        if time.monotonic() - self.moved > _SILENCE:
            raise PeerLostError(f"QEMU has sent nothing for {_SILENCE:g} s: check the link between the hosts")


def _raise_failed(watched: _Watched) -> None:
    """With the destination's reason, when it has one: our QEMU only sees the connection end."""
    until = time.monotonic() + _REASON_SECONDS
    while (left := until - time.monotonic()) > 0:
        try:
            watched.link.talk.hear(left)
        except PeerLostError:
            break
    status = watched.figures.status
    raise MigrationFailedError(f"QEMU's own migration {status}: {watched.figures.error or 'it gives no reason'}")


def _send_live(watched: _Watched) -> None:
    """Until QEMU has paused the guest. Raises StalledError when the task would rather give up."""
    with watched.migration.phase("bulk", "active"):
        _follow(watched, until_passes=1)
        if watched.figures.setup is not None:
            watched.migration.timeline.add("setup", watched.figures.setup)
    if watched.figures.status != "pre-switchover":
        with watched.migration.phase("rounds", "active"):
            _follow(watched, until_passes=None)


def _follow(watched: _Watched, until_passes: int | None) -> None:
    migration = watched.migration
    while watched.figures.status != "pre-switchover" and watched.passes.count != until_passes:
        migration.check()
        watched.go_on()
        watched.link.talk.hear_nothing(0)
        watched.own.wait(_LOOK)
        watched.look()
        if finished := watched.passes.see(watched.figures, watched.elapsed):
            _conclude_pass(watched, finished)
        _report(watched)


def _conclude_pass(watched: _Watched, finished: Finished) -> None:
    migration = watched.migration
    given_up = finished.stalled is not None and not watched.forced
    rates = _rates(watched)
    told = {"dirty_rate": rates.get("dirty"), "expected_downtime": rates.get("expected_downtime")}
    began = migration.timeline.elapsed - finished.round.seconds
    entry = finished.to_json(given_up=given_up) | {"began": began, "at": watched.elapsed} | _said(told)
    migration.progress.merge("rates", rates)
    migration.progress.update({"rounds": (*migration.progress.status.rounds, entry)}, now=True)
    if not given_up:
        return
    if migration.parameters.on_stall is not OnStall.FORCE:
        raise StalledError(
            f"{migration.job.guest} does not converge: {finished.stalled}; allow more downtime-limit, or set "
            "on-stall=force to pause it for as long as it takes"
        )
    watched.forced = True
    watched.own.press_on()


def _rates(watched: _Watched) -> dict[str, float]:
    """As far as QEMU has said. The downtime that it expects is the limit until it has reckoned one."""
    figures, limit = watched.figures, watched.migration.parameters.downtime_limit_ms / 1e3
    reckoned = figures.dirty_rate is not None and figures.expected_downtime != limit
    return _said({"dirty": figures.dirty_rate, "expected_downtime": figures.expected_downtime if reckoned else None})


def _said(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _report(watched: _Watched) -> None:
    """The same fields as with our own rounds."""
    figures = watched.figures
    sizes = {"total": figures.total, "transferred": figures.sent, "remaining": figures.remaining}
    if figures.total:
        watched.migration.progress.merge("bytes", {"populated": figures.total, **sizes, **_part(watched)})
        watched.migration.progress.merge("rates", _said({"transfer": figures.rate}))
    if 0 < figures.remaining < figures.total:
        point("source.sending")


def _part(watched: _Watched) -> dict[str, int]:
    """How much of the pass under way is done; QEMU counts what is left, zero pages included."""
    size = watched.passes.last(watched.figures, watched.elapsed).bytes
    return {"round_total": size, "round_done": max(0, size - watched.figures.remaining)}


def _hand_over(watched: _Watched, handover: Handover) -> None:
    """The guest is paused: let QEMU send the rest, give the guest away, wait until the destination runs it."""
    migration, talk = watched.migration, watched.link.talk
    migration.progress.merge("rates", _rates(watched))
    with migration.phase("downtime", "pre-switchover"):
        handover.happen(Event.PAUSE)
        migration.check()
        watched.own.switch_over()
        migration.progress.update({"state": "device"}, now=True)
        point("source.device")
        talk.patience = _patience(watched)
        talk.say(MessageType.GOING_ON, {"seconds": math.ceil(talk.patience)})
        handover.await_ready(watched.completed, talk.patience)
        handover.await_taken()
    final = watched.passes.last(watched.figures, watched.elapsed)
    entry = final.to_json() | {"began": migration.timeline.elapsed - final.seconds}
    migration.progress.update({"rounds": (*migration.progress.status.rounds, entry)})
    _report(watched)


def _patience(watched: _Watched) -> float:
    """Seconds until the destination has it all: a silent one must not keep the guest paused for ever.

    QEMU answers nothing during its last pass, so that only the time tells which that should take at the pace so far.
    """
    allowed = 10 * watched.migration.parameters.downtime_limit_ms / 1e3
    figures = watched.figures
    rest = figures.remaining * watched.elapsed / max(1, figures.transferred)
    return max(_PAUSED_SILENCE, allowed) + _SLOWER * rest
