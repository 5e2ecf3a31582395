"""A cancel must be heard while the source waits for its pace, or for a destination that says nothing."""

from __future__ import annotations

import time
from typing import cast

import numpy as np
import pytest

from config.errors import CancelledError, PeerLostError
from workers.conversation import Conversation
from workers.ranges import RangeTable
from workers.registration.contract import RegistrationPolicy
from workers.rounds.pacing import Pacer
from workers.rounds.transfer import Transfer
from workers.transports.contract import Endpoint, Writes

_TIMEOUT = 3600.0


class Silent:
    """An endpoint whose peer confirms nothing; `lost` once its connection has ended."""

    def __init__(self) -> None:
        self.lost = False
        self.posted = 0

    def post(self, writes: Writes) -> None:
        self.posted += writes.size

    def flush(self, timeout: float) -> None:
        assert timeout < _TIMEOUT
        raise PeerLostError("nothing was confirmed")

    def in_flight(self) -> int:
        if self.lost:
            raise PeerLostError("the connection ended")
        return self.posted


class Straight:
    """A policy that registers nothing, and so takes nothing back."""

    takes_back = False

    def writes(self, batches: list[RangeTable]) -> list[Writes]:
        return [
            Writes(each.bounds[:, 0], each.bounds[:, 1] - each.bounds[:, 0], each.bounds[:, 0], np.ones(1, np.uint64))
            for each in batches
        ]


def transfer(endpoint: Silent, rate: float, calls: list[float]) -> Transfer:
    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            raise CancelledError("cancelled")

    return Transfer(
        cast(Endpoint, endpoint),
        Conversation(cast(Endpoint, endpoint), lambda: None),
        cast(RegistrationPolicy, Straight()),
        None,
        None,
        pacer=Pacer(rate, time.monotonic()),
        chunk_size=1 << 20,
        timeout=_TIMEOUT,
        progress=lambda done, total: None,
        check=check,
    )


def test_a_cancel_is_heard_while_the_destination_confirms_nothing() -> None:
    endpoint = Silent()
    with pytest.raises(CancelledError):
        transfer(endpoint, 0, []).send_batches(1, "final", 4096, [RangeTable([(0, 4096)])])
    assert endpoint.posted


def test_a_cancel_is_heard_while_the_pace_holds_a_batch_back() -> None:
    endpoint = Silent()
    with pytest.raises(CancelledError):
        transfer(endpoint, 1, []).send_batches(1, "dirty", 4096, [RangeTable([(0, 4096)])])
    assert not endpoint.posted


def test_a_connection_that_ends_is_not_waited_for() -> None:
    endpoint = Silent()
    endpoint.lost = True
    with pytest.raises(PeerLostError, match="connection ended"):
        transfer(endpoint, 0, []).send_batches(1, "final", 4096, [RangeTable([(0, 4096)])])
