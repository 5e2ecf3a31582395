"""The source's side: pair, track, send while the guest runs, hand over. All stages at a glance: migration.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from config.capabilities import EngineChoice, OnStall
from config.capabilities import MigrationCapability as Capability
from config.errors import MessageError, StalledError
from workers.conversation import Conversation
from workers.digests import PageDigests, rollup_unit
from workers.dirty.choose import choose
from workers.dirty.content import CHUNK, ContentTracker, Digests
from workers.dirty.contract import DirtyTracker
from workers.dirty.forgetful import Forgetful
from workers.fault_injection import damages_state, drops_final_dirty, leaves_out_drain, point
from workers.guests.blocker import obstacle_from_outside, refuse_blocked
from workers.guests.contract import Guest, require_running
from workers.guests.local import LocalGuests
from workers.handover.drive import Handover
from workers.handover.journal import driving
from workers.handover.states import Event, State
from workers.link import Link, await_links, link_as_source, ram_for, refusals_told, registration_policy
from workers.migration import Migration
from workers.pairing.contract import Side
from workers.pairing.engine import leaving
from workers.protocol import MessageType
from workers.qemu_engine import source as qemu_engine
from workers.ram import Ram
from workers.ranges import RangeTable
from workers.registration.policies import make_policy
from workers.registration.registrar import Registrar
from workers.rounds.contract import PHASES, Round
from workers.rounds.convergence import Limits, Ruling, Survey, Verdict, judge
from workers.rounds.iterative import Ending, run_rounds
from workers.rounds.pacing import Pacer
from workers.rounds.transfer import Transfer
from workers.rounds.zero_pages import ZeroPages

_T = TypeVar("_T")

#: Seconds to wait for one answer of a peer whose connection stands: locking 64 MiB on a host under memory pressure.
_ANSWER = 120.0
#: The same while the guest is paused, or ten times the downtime limit when that is more.
_PAUSED_ANSWER = 5.0
#: Seconds for what of the device state goes while the guest runs: ROMs and video memory, 0.3 to 17 MiB.
_PREPARING = 60.0
#: Bytes/s at which a destination hashes all of its memory at least, which the content tracker asks for.
_SLOWEST_READING = 256 << 20


def run(migration: Migration) -> None:
    """Move the guest away. Raises what went wrong; the journal knows where the guest is then."""
    job, host = migration.job, migration.settings.host
    with driving(host.state_dir, job.guest) as journal, refusals_told(migration) as connected:
        guest = LocalGuests(host.state_dir, host.ram_dir).open(job.guest)
        engine, not_from_outside = _engine(migration, guest)
        require_running(guest)
        journal.begin(job.epoch, Side.SOURCE, job.migration, job.peer_host)
        handover = Handover(journal, migration.pairing, State.OWNING, guest, migration.timeline.mark)
        with handover.guarded():
            with ram_for(engine, guest) as ram, link_as_source(migration, guest, ram, not_from_outside) as link:
                connected()
                with handover.over(link.talk):
                    await_links(migration, link)
                    if engine is EngineChoice.QEMU:
                        qemu_engine.move(migration, link, guest, handover)
                    else:
                        _move(migration, link, ram, guest, handover)
                closing = migration.timeline.elapsed
            migration.timeline.add("deregistration", migration.timeline.elapsed - closing, closing)
            handover.happen(Event.TAKEN)


def _engine(migration: Migration, guest: Guest) -> tuple[EngineChoice, str | None]:
    """Who moves this guest, and why we cannot, if so. Raises RefusedError (`blocked`) before anything is touched."""
    found = guest.blockers(hold=True)
    engine, blockers = leaving(migration.parameters.engine, found, guest.not_by_itself)
    refuse_blocked(migration.job.guest, migration.job.host, blockers)
    return engine, obstacle_from_outside(found)


@dataclass(frozen=True, slots=True)
class _Connected:
    """What the stages of a connected source work with."""

    migration: Migration
    link: Link
    guest: Guest
    ram: Ram
    tracker: DirtyTracker
    digests: PageDigests | None


def _move(migration: Migration, link: Link, ram: Ram, guest: Guest, handover: Handover) -> None:
    """Everything between being connected and the destination running the guest."""
    with _tracking(migration, link, guest, ram) as tracker:
        source = _Connected(migration, link, guest, ram, tracker, _digests(link, ram))
        registrar = _registrar(migration, link, ram)
        transfer = _transfer(source, registrar)
        ending = _send_live(source, transfer, registrar)
        _hand_over(source, transfer, handover, ending)


@contextmanager
def _tracking(migration: Migration, link: Link, guest: Guest, ram: Ram) -> Iterator[DirtyTracker]:
    """A tracker that works on this machine, started; closed whatever happens."""
    preferred = migration.parameters.dirty_tracker
    choice = choose(None if preferred == "auto" else preferred.value, kernel_writes=guest.kernel_writes)
    migration.progress.merge("choices", {"tracker": choice.kind, "tracker-reason": choice.reason})
    tracker: DirtyTracker
    if choice.kind == ContentTracker.kind:
        tracker = ContentTracker(guest, ram, lambda: _ask_what_is_held(link.talk, ram.size))
    else:
        tracker = choice.factory(guest, ram)
    if drops_final_dirty():
        tracker = Forgetful(tracker)
    try:
        _protect(guest, tracker.start)
        if guest.drained_by:
            migration.progress.merge("choices", {"drain": guest.drained_by})
        yield tracker
    finally:
        tracker.close()


def _protect(guest: Guest, protecting: Callable[[], _T]) -> _T:
    """DMA that was under way when its page was protected must land before that page is read."""
    return protecting() if leaves_out_drain() else guest.protect(protecting)


def _ask_what_is_held(talk: Conversation, size: int) -> Callable[[], Digests]:
    """Ask the destination for the hashes of its memory of `size` bytes; what is returned waits for them."""
    talk.say(MessageType.HELD_REQUEST)

    def answer() -> Digests:
        blob = talk.expect([MessageType.HELD], _ANSWER).blob
        if len(blob) != -(-size // CHUNK) * 8:
            raise MessageError(f"the destination sent {len(blob)} bytes of hashes for {size} bytes of memory")
        return np.frombuffer(blob, "<u8")

    return answer


def _digests(link: Link, ram: Ram) -> PageDigests | None:
    return PageDigests(ram.view, ram.size) if link.agreement.capabilities[Capability.VERIFY_RAM] else None


def _registrar(migration: Migration, link: Link, ram: Ram) -> Registrar:
    def account(now: int, most: int) -> None:
        migration.progress.merge("bytes", {"registered": now, "registered_most": most})

    return Registrar(link.talk, link.endpoint, ram.size, _ANSWER, time.monotonic, account)


def _transfer(source: _Connected, registrar: Registrar) -> Transfer:
    migration, agreed = source.migration, source.link.agreement
    choice = registration_policy(migration, source.link)
    migration.progress.merge("choices", choice.to_json())
    zero_pages = ZeroPages(source.ram.view, source.ram.size) if agreed.capabilities[Capability.ZERO_PAGES] else None

    def progress(done: int, total: int) -> None:
        migration.check()
        migration.progress.merge("bytes", {"round_done": done, "round_total": total})
        point("source.sending")

    return Transfer(
        source.link.endpoint,
        source.link.talk,
        make_policy(choice, registrar, agreed.chunk_size),
        zero_pages,
        source.digests,
        pacer=Pacer(migration.parameters.max_bandwidth, time.monotonic()),
        chunk_size=agreed.chunk_size,
        timeout=_ANSWER,
        progress=progress,
        check=migration.check,
    )


def _send_live(source: _Connected, transfer: Transfer, registrar: Registrar) -> Ending:
    """Bulk and dirty rounds beside the running guest. Raises StalledError when the task would rather give up."""
    migration, ram = source.migration, source.ram
    populated = ram.populated()  # taken after tracking began: what appears later is seen as written
    migration.progress.merge("bytes", {"total": ram.size, "populated": populated.size})
    with migration.phase("survey", "active"):
        batches = transfer.prepare(populated)
    began = collected = time.monotonic()
    found_in = round_began = 0.0

    def send(index: int, kind: str, ranges: RangeTable) -> Round:
        nonlocal round_began
        with migration.phase(PHASES[kind], "active") as round_began:
            if index == 0:
                return transfer.send_batches(0, kind, ranges.size, batches)
            return transfer.send(index, kind, ranges)

    def collect() -> RangeTable:
        nonlocal collected, found_in
        dirty = _protect(source.guest, source.tracker.collect)
        found_in, collected = time.monotonic() - collected, time.monotonic()
        return dirty

    def observe(round_: Round, dirty: RangeTable, verdict: Verdict) -> None:
        found = _found(migration, dirty, verdict, found_in, time.monotonic() - began)
        _report(migration, round_, round_began, found)

    ending = run_rounds(populated, send, collect, _judge(migration, ram), observe, lambda: time.monotonic() - began)
    migration.timeline.add("registration", registrar.waited)
    if ending.verdict.ruling is Ruling.STALLED and migration.parameters.on_stall is not OnStall.FORCE:
        raise StalledError(
            f"{source.guest.name} does not converge: {ending.verdict.reason}; {_advice(migration)}"
            "allow more downtime-limit, or set on-stall=force to pause it for as long as it takes"
        )
    return ending


def _advice(migration: Migration) -> str:
    return "raise max-bandwidth, " if migration.parameters.max_bandwidth else ""


def _judge(migration: Migration, ram: Ram) -> Callable[[tuple[Round, ...], tuple[Survey, ...]], Verdict]:
    parameters = migration.parameters
    limits = Limits(
        downtime=parameters.downtime_limit_ms / 1e3,
        max_rounds=parameters.max_rounds,
        completion_timeout=parameters.completion_timeout_per_gib_s * max(1.0, ram.size / (1 << 30)),
        progress_timeout=parameters.progress_timeout_s,
    )
    return partial(judge, limits=limits)


def _found(
    migration: Migration, dirty: RangeTable, verdict: Verdict, found_in: float, at: float
) -> dict[str, float | str]:
    """What was found after a round. Seconds: `found_in`, in which `dirty` was written; `at`, since the first round."""
    rate = dirty.size / found_in if found_in else 0.0
    migration.progress.merge("rates", {"dirty": rate, "expected_downtime": verdict.expected_downtime})
    migration.progress.merge("bytes", {"remaining": dirty.size})
    return {
        "dirty": dirty.size,
        "dirty_rate": rate,
        "at": at,
        "expected_downtime": verdict.expected_downtime,
        "verdict": verdict.ruling.value,
        "reason": verdict.reason,
    }


def _report(migration: Migration, round_: Round, began: float, found: Mapping[str, float | str]) -> None:
    """One line of the report per round, which began so many seconds into this side's timeline."""
    entry = {**round_.to_json(), "began": began, **found}
    status = migration.progress.status
    migration.progress.merge("rates", {"transfer": round_.sent / round_.seconds if round_.seconds else 0.0})
    migration.progress.merge("bytes", {"transferred": status.bytes.get("transferred", 0) + round_.sent})
    migration.progress.update({"rounds": (*status.rounds, entry)}, now=True)


def _hand_over(source: _Connected, transfer: Transfer, handover: Handover, ending: Ending) -> None:
    """Pause, send the rest, give the guest away, and wait until the destination runs it: downtime, from the pause on.

    What is measured ends when the word that the guest runs arrives here, so it includes that word's way.
    """
    migration, talk = source.migration, source.link.talk
    migration.check()
    require_running(source.guest)
    transfer.anticipate(ending.remaining)
    with (
        source.guest.outgoing_state(partial(_send_state, talk)) as state,
        talk.aside(MessageType.STATE, lambda message: state.answer(bytes(message.blob))),
    ):
        state.prepare()
        talk.attend(state.prepared, _PREPARING, "the guest's process did not send what goes before the pause")
        with migration.phase("downtime", "device"):
            talk.patience = _patience(source)
            handover.happen(Event.PAUSE)
            rest = ending.remaining | source.tracker.collect()
            final_began = migration.timeline.elapsed
            final = transfer.send(len(ending.rounds), "final", rest)
            talk.say(MessageType.DIGESTS, blob=_check(source))
            state.save()
            point("source.saved")
            handover.await_ready(state.completed)
            handover.await_taken()
    _report(migration, final, final_began, {})


def _send_state(talk: Conversation, piece: bytes) -> None:
    if piece and damages_state():
        piece = piece[:-1] + bytes([piece[-1] ^ 0xFF])
    talk.say(MessageType.STATE, blob=piece)


def _patience(source: _Connected) -> float:
    """Seconds to wait for the destination while the guest is paused: a silent one must not keep it so for minutes."""
    allowed = 10 * source.migration.parameters.downtime_limit_ms / 1e3
    reading = source.ram.size / _SLOWEST_READING if source.tracker.reads_everything else 0.0
    return max(_PAUSED_ANSWER, allowed) + reading


def _check(source: _Connected) -> bytes:
    """The digests of all that was sent, for the destination to compare with; nothing without `verify-ram`."""
    agreed = source.link.agreement
    if source.digests is None:
        return b""
    if source.tracker.reads_everything:
        source.digests.refresh()
    return source.digests.rollup(rollup_unit(source.ram.size, agreed.chunk_size)).astype("<u8").tobytes()
