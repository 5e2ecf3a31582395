"""What the source does between the last round and the pause: the guest runs on, and the other side is heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from config.errors import CancelledError, PeerRefusedError
from tests.unit.test_hostile_peer import Line, failure
from workers import source
from workers.conversation import Conversation
from workers.guests.contract import RunState
from workers.protocol import encode


class Unprepared:
    """A guest that goes on sending what goes before its pause, and what the stages did meanwhile."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def status(self) -> RunState:
        return RunState.RUNNING

    @contextmanager
    def outgoing_state(self, send: object) -> Iterator[Any]:
        yield SimpleNamespace(prepare=lambda: self.done.append("prepare"), prepared=lambda: False)

    @contextmanager
    def phase(self, name: str, state: str) -> Iterator[None]:
        self.done.append(name)
        yield

    def cancelled(self) -> None:
        if self.done:
            raise CancelledError("cancelled")


def hand_over(guest: Unprepared, check: Any, *frames: bytes) -> None:
    migration: Any = SimpleNamespace(check=check, phase=guest.phase)
    link: Any = SimpleNamespace(talk=Conversation(Line(*frames), check))  # type: ignore[arg-type]
    connected = source._Connected(migration, link, guest, None, None, None)  # type: ignore[arg-type]
    whatever: Any = SimpleNamespace(anticipate=lambda ranges: None, remaining=None)
    handover: Any = SimpleNamespace(happen=lambda event: guest.done.append(str(event)))
    source._hand_over(connected, whatever, handover, whatever)


def test_the_other_sides_failure_is_heard_before_the_pause() -> None:
    guest = Unprepared()
    with pytest.raises(PeerRefusedError, match="the twin ended"):
        hand_over(guest, lambda: None, encode(failure("the twin ended")))
    assert guest.done == ["prepare"]


def test_a_cancelled_migration_ends_before_the_pause() -> None:
    guest = Unprepared()
    with pytest.raises(CancelledError):
        hand_over(guest, guest.cancelled)
    assert guest.done == ["prepare"]
