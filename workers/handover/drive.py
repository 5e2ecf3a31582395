"""The handover's I/O: one step of the table at a time, its actions in order, and the waiting for what comes next.

`Handover` drives one attempt on one side; `source.py` and `destination.py` call its verbs. `settle` drives what a dead
mover left, through the same table. Telling is best effort: whoever did not hear asks, or is told again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from config.errors import (
    DrovewayError,
    HostError,
    MessageError,
    PeerError,
    PeerLostError,
    UnreachableError,
    UnresolvedError,
)
from workers.conversation import Conversation
from workers.fault_injection import point
from workers.guests.contract import Guest
from workers.handover.journal import Journal
from workers.handover.machine import Entry, Fact, heard, resumed, step
from workers.handover.states import SETTLED, Action, Event, State
from workers.pairing.contract import Pairing, Side
from workers.protocol import MessageType

log = logging.getLogger("droveway.handover")

#: Seconds between two looks at the record while waiting for the other side's word.
_LOOK = 0.5
#: Seconds to wait for the destination to compare, load and journal; its disk may be slow, its memory large.
_READY_TIMEOUT = 60.0
#: Seconds that a mover waits for the word that decides; then it leaves the guest paused to `reconcile`, which goes on.
_DECISION_TIMEOUT = 60.0

_JOURNALLED: Mapping[Action, Entry] = {
    Action.JOURNAL_READY: Entry.READY,
    Action.JOURNAL_GIVEN: Entry.GIVEN,
    Action.JOURNAL_TAKEN: Entry.TAKEN,
    Action.JOURNAL_ABORTED: Entry.ABORTED,
    Action.JOURNAL_RELEASED: Entry.RELEASED,
    Action.JOURNAL_DISCARDED: Entry.DISCARDED,
}
_TOLD: Mapping[Action, tuple[MessageType | None, Fact | None]] = {
    Action.TELL_READY: (MessageType.READY, None),
    Action.TELL_GIVEN: (MessageType.GIVEN, Fact.GIVEN),
    Action.TELL_TAKEN: (MessageType.TAKEN, Fact.TAKEN),
    Action.TELL_ABORTED: (MessageType.ABORT, Fact.ABORTED),
    Action.TELL_TAKEN_BACK: (None, Fact.TAKEN_BACK),
    Action.TELL_DISCARDED: (None, Fact.DISCARDED),
}
_IN_BAND: Mapping[MessageType, Event] = {
    MessageType.READY: Event.READY,
    MessageType.GIVEN: Event.GIVEN,
    MessageType.TAKEN: Event.TAKEN,
    MessageType.ABORT: Event.ABORT,
}


class _AbortedError(PeerError):
    """The source kept the guest."""

    reason = "aborted-by-source"


class Handover:
    """One side's handover of one attempt. Not for two threads.

    `guest` may be set later (a destination begins without one) and may be None when there is no copy to act on.
    """

    def __init__(
        self,
        journal: Journal,
        pairing: Pairing,
        state: State,
        guest: Guest | None,
        journalled: Callable[[str], None] | None = None,
    ) -> None:
        """`journalled` is told each state that the journal has reached, before anybody else hears of it."""
        assert journal.last is not None
        self._journal = journal
        self._pairing = pairing
        self._talk: Conversation | None = None
        self.side: Side = journal.last.side
        self.epoch: int = journal.last.epoch
        self.state = state
        self.guest = guest
        self._stuck = False
        self._journalled = journalled

    def happen(self, event: Event) -> None:
        """Take the table's step. Raises what an action raises; the state is then as before, or as journalled."""
        if self.side is Side.DESTINATION and event in (Event.GIVEN, Event.RECOVER) and self._process_is_gone():
            event = Event.LOST
        before = self.state
        row = step(self.side, before, event)
        for action in row.actions:
            point(f"{self.side}.{action}")
            self._act(action)
            if action in _JOURNALLED or action is Action.JOURNAL_TAKEN_BACK:
                self.state = row.to  # whatever comes of the rest: a FAIL after JOURNAL_GIVEN must not abort
                if self._journalled:
                    self._journalled(row.to)
        if row.to is not before:
            log.info("%s: %s, now %s", self.side, event, row.to)
        self.state = row.to
        point(f"{self.side}.{row.to}")

    @contextmanager
    def over(self, talk: Conversation) -> Iterator[None]:
        """Use the connection for the time of the body, and say over it what the body fails with."""
        self._talk = talk
        try:
            yield
        except BaseException as error:  # noqa: BLE001  # `_fail` raises it again, or what it amounts to
            if self.side is Side.DESTINATION and isinstance(error, DrovewayError) and not isinstance(error, PeerError):
                talk.report_failure(error.reason, str(error))
            self._fail(talk.why_lost(error) if isinstance(error, PeerLostError) else error)
        finally:
            self._talk = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever the body fails with is a FAIL of the handover: also Ctrl-C and defects, for the guest must go on."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001  # `_fail` raises it again, or what it amounts to
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        try:
            with contextlib.suppress(PeerError):
                self.happen(Event.ABORT if isinstance(error, _AbortedError) else Event.FAIL)
        except Exception as trouble:  # noqa: BLE001  # a full disk, a guest that does not answer: settling tries again
            log.error("%s: what follows from the failure could not be done: %s", self.side, trouble)
            self._stuck = True
        # Once TAKEN is journalled the guest is this side's, whatever failed then: only settling may call that an end.
        open_still = self._stuck or self.state in (State.GIVEN, State.READY, State.TAKEN)
        if open_still and not isinstance(error, UnresolvedError):
            raise UnresolvedError(
                f"the handover was cut off after {self.state.upper()} ({error}): `droveway reconcile` finishes it, "
                "once both hosts or Redis can be reached and this host's disk takes writes"
            ) from error
        raise error

    # --- waiting ------------------------------------------------------------------------------------------------------

    def await_ready(self, completed: Callable[[], bool] = lambda: True, seconds: float = _READY_TIMEOUT) -> None:
        """The source waits, so long at most, for the destination's READY, and gives. Cancel counts until it is heard.

        `completed`: whether the guest here has come to its end too. One still at it might resume by itself.
        """
        assert self._talk is not None
        self._talk.expect([MessageType.READY], seconds)
        self._talk.attend(completed, _READY_TIMEOUT, "the guest was not told by its incoming twin that it is complete")
        self.happen(Event.READY)

    def await_taken(self) -> None:
        """The source waits for TAKEN, in-band or as a fact. Raises UnresolvedError. Does not act upon it: `release`."""
        self._await(Event.TAKEN)

    def await_decision(self) -> None:
        """The destination waits for GIVEN or ABORT and acts upon it. Raises PeerError (aborted), UnresolvedError."""
        event = self._await(Event.GIVEN, Event.ABORT)
        if event is Event.ABORT:
            raise _AbortedError("the source gave the migration up and kept the guest")
        self.happen(event)
        if self.state is not State.TAKEN:
            raise HostError("the incoming guest's process ended before it was given the guest: see its log, then retry")

    def _await(self, *wanted: Event) -> Event:
        """One of `wanted`, whichever way it comes: a lost connection leaves the record, a lost Redis the connection."""
        deadline = time.monotonic() + _DECISION_TIMEOUT
        look_at = 0.0
        while time.monotonic() < deadline:
            event = self._hear_in_band()
            if event is None and time.monotonic() >= look_at:
                event = self.look()
                look_at = time.monotonic() + _LOOK
            if event in wanted:
                return event
            if event is not None:
                self.happen(event)  # a repeat, mostly: the table knows what it is worth
            if self.state in SETTLED:
                raise PeerError(
                    f"the other side's word ended the handover here as {self.state}: see its log, then retry"
                )
        raise UnresolvedError(f"no {' or '.join(wanted)} within {_DECISION_TIMEOUT:g} s: the guest waits, paused")

    def _hear_in_band(self) -> Event | None:
        if self._talk is None:
            time.sleep(_LOOK)
            return None
        try:
            message = self._talk.hear(_LOOK / 5)
        except (PeerError, MessageError) as error:
            log.warning("the connection ended (%s); from here on the record must tell", error)
            self._talk = None
            return None
        return None if message is None else _IN_BAND.get(message.type)

    def look(self) -> Event | None:
        """What the facts in the record amount to; None when they say nothing new, or Redis will not say them."""
        try:
            return self.look_closely()
        except UnreachableError:
            return None
        except DrovewayError as error:
            log.warning("the record cannot be read: %s", error)
            return None

    def look_closely(self) -> Event | None:
        """The same, but raises UnreachableError when Redis is away."""
        return heard(self.side, self.epoch, self._pairing.facts())

    # --- acting -------------------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        if action in _JOURNALLED:
            self._journal.append(_JOURNALLED[action])
        elif action in _TOLD:
            self._tell(*_TOLD[action])
        else:
            _ACTIONS[action](self)

    def _tell(self, message: MessageType | None, fact: Fact | None) -> None:
        if message is not None and self._talk is not None:
            with contextlib.suppress(PeerError):
                self._talk.say(message, {"epoch": self.epoch})
        if fact is not None:
            try:
                self._pairing.tell(fact.value, self.epoch)
            except DrovewayError as error:  # away, or full, or a read-only replica: the hosts tell it again
                log.warning("%s could not be told to the record: %s", fact, error)

    def stop(self) -> None:
        """Pause the guest."""
        self._the_guest().stop()

    def cont(self) -> None:
        """Resume the guest. A source whose guest has ended has nothing to resume, and must still end the attempt."""
        guest = self._the_guest()
        try:
            guest.cont()
        except HostError as error:
            if self.side is Side.DESTINATION or not self._process_is_gone():
                raise
            log.error("the guest is not resumed: %s", error)
        else:
            with contextlib.suppress(HostError):  # it runs, which is what counts; the network learns by its next packet
                guest.announce()

    def resume(self) -> None:
        """Resume the guest if this attempt paused it, or was about to."""
        if self._the_guest().stopped_here:
            self.cont()

    def drop(self) -> None:
        """End this side's copy; there may be none."""
        if self.guest is not None:
            self.guest.quit()

    def take_back(self) -> None:
        """Own the guest again under a higher epoch, which voids what was given under this one."""
        self._journal.append(Entry.TAKEN_BACK, epoch=self.epoch + 1)
        self.epoch += 1

    def require_copy(self) -> None:
        """Raise HostError when there is nothing here to resume."""
        if self._process_is_gone():
            raise HostError("the guest's process is gone from this host: its memory is lost; see the other host's copy")

    def _process_is_gone(self) -> bool:
        """Gone for certain; a guest that only does not answer is not."""
        if self.guest is None:
            return True
        try:
            return not self.guest.pid
        except HostError:
            return True

    def _the_guest(self) -> Guest:
        if self.guest is None:
            raise HostError("the guest's process is gone from this host: its memory is lost; see the other host's copy")
        return self.guest


_ACTIONS: Mapping[Action, Callable[[Handover], None]] = {
    Action.STOP: Handover.stop,
    Action.CONT: Handover.cont,
    Action.RESUME: Handover.resume,
    Action.DROP: Handover.drop,
    Action.JOURNAL_TAKEN_BACK: Handover.take_back,
}


def recover(handover: Handover, *, fenced: bool = False) -> State:
    """Go on from the journal as far as the facts allow; the state where it ends. Repeating it is harmless.

    `fenced`: an operator vouches that the destination's host is dead; counts only while the record, which must be
    reachable then (UnreachableError), does not know of TAKEN, and while there is a copy here (else HostError).
    """
    handover.happen(Event.RECOVER)
    event = handover.look_closely() if fenced else handover.look()
    if event is None and fenced and handover.state is State.GIVEN:
        handover.require_copy()
        event = Event.FENCED
    if event is not None:
        handover.happen(event)
    return handover.state


def recovering(journal: Journal, pairing: Pairing, guest: Guest | None) -> Handover:
    """A handover that stands where the journal ends."""
    assert journal.last is not None
    return Handover(journal, pairing, resumed(journal.last.handed), guest)
