"""When phases were: measured on a mover's own clock, laid on one axis for both."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from queue import Empty, Queue
from typing import Any, cast

import pytest

from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.timeline import Phase, phases, rows
from tasks.records import MigrationRecord, SideRecord
from workers.conversation import Conversation
from workers.guests.process_identity import own_age
from workers.metrics.timeline import Timeline
from workers.pairing.contract import Side, Ticket
from workers.transports.contract import Endpoint

ROUNDS = [
    {"index": 0, "kind": "bulk", "bytes": 9, "sent": 9, "seconds": 2.0, "began": 1.5, "dirty": 5},
    {"index": 1, "kind": "dirty", "bytes": 5, "sent": 5, "seconds": 0.5, "began": 3.6, "dirty": 3},
    {"index": 2, "kind": "dirty", "bytes": 3, "sent": 3, "seconds": 0.25, "began": 4.2, "dirty": 1},
    {"index": 3, "kind": "final", "bytes": 1, "sent": 1, "seconds": 0.01, "began": 4.61},
]
SOURCE = {
    "seconds": {"start": 0.5, "pairing": 1.0, "bulk": 2.0, "rounds": 0.75, "downtime": 0.1, "registration": 0.2},
    "began": {"start": -0.5, "pairing": 0.0, "bulk": 1.5, "rounds": 4.2, "downtime": 4.6},
    "moments": {"greeted": 0.9, "given": 4.65, "released": 4.8},
    "rounds": ROUNDS,
}
DESTINATION = {
    "seconds": {"start": 0.25, "pairing": 0.5, "rounds": 3.5, "handover": 0.08, "guest_gap": 0.1},
    "began": {"start": -0.25, "pairing": 0.0, "rounds": 1.6, "handover": 5.11},
    "moments": {"greeted": 1.4, "ready": 5.13, "taken": 5.16},
}


def record(
    source: Mapping[str, Any] | None = SOURCE, destination: Mapping[str, Any] | None = DESTINATION, **changes: Any
) -> MigrationRecord:
    """Asked for at 1000; its source was claimed 1 s later, its destination 2 s."""
    sides = [
        SideRecord(host, at, None, "completed", said)
        for host, at, said in (("alpha", 1001.0, source), ("beta", 1002.0, destination))
    ]
    plain = MigrationRecord("m-1", "web", "completed", 9, {}, {}, *sides, 1000.0, 1, 1000.2, finished=1009.0)
    return replace(plain, **changes)


def found(one: MigrationRecord) -> dict[tuple[str, str, int | None], float | None]:
    return {
        (str(each.side), each.name, each.round): None if each.began is None else round(each.began, 6)
        for each in phases(one)
    }


# --- measuring --------------------------------------------------------------------------------------------------------


def test_spans_add_up_and_tell_when_they_were_last_entered() -> None:
    now = 100.0
    timeline = Timeline(lambda: now)
    for at, until in ((101.0, 102.0), (105.0, 107.0)):
        now = at
        with timeline.span("rounds") as began:
            assert began == at - 100
            now = until
    timeline.add("registration", 0.5)
    timeline.add("start", 2.0, -2.0)
    timeline.mark("greeted")
    now = 110.0
    timeline.mark("greeted")
    assert timeline.seconds == {"rounds": 3.0, "registration": 0.5, "start": 2.0}
    assert timeline.began == {"rounds": 5.0, "start": -2.0}
    assert timeline.moments == {"greeted": 7.0}


def test_a_span_that_fails_is_measured_as_well() -> None:
    ticks = iter((0.0, 1.0, 4.0))
    timeline = Timeline(lambda: next(ticks))
    with pytest.raises(OSError, match="gone"), timeline.span("bulk"):
        raise OSError("gone")
    assert (timeline.seconds, timeline.began) == ({"bulk": 3.0}, {"bulk": 1.0})


def test_a_process_knows_how_old_it_is() -> None:
    before = own_age()
    time.sleep(0.2)
    assert own_age() - before == pytest.approx(0.2, abs=0.1)
    assert 0 < before < 3600 * 24


class Line:
    """One end of a wire on which every message is on its way for so many seconds."""

    def __init__(self, inbox: Queue[tuple[float, bytes]], outbox: Queue[tuple[float, bytes]], way: float) -> None:
        self._inbox, self._outbox, self._way = inbox, outbox, way

    def send(self, frame: bytes) -> None:
        self._outbox.put((time.monotonic() + self._way, frame))

    def receive(self, timeout: float) -> bytes | None:
        try:
            arrives, frame = self._inbox.get(timeout=timeout)
        except Empty:
            return None
        time.sleep(max(0.0, arrives - time.monotonic()))
        return frame


@pytest.mark.parametrize("late", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("later", [Side.SOURCE, Side.DESTINATION])
def test_greeting_ends_on_both_sides_within_one_messages_way(later: Side, late: float) -> None:
    way, ended = 0.15, {}
    there: Queue[tuple[float, bytes]] = Queue()
    back: Queue[tuple[float, bytes]] = Queue()
    ends = {Side.SOURCE: Line(back, there, way), Side.DESTINATION: Line(there, back, way)}

    def greet(side: Side) -> None:
        time.sleep(late if side is later else 0.0)
        talk = Conversation(cast(Endpoint, ends[side]), lambda: None)
        talk.greet(Ticket("m-1", "web", 1, side, str(side)), 10)
        ended[side] = time.monotonic()

    threads = [threading.Thread(target=greet, args=(side,)) for side in Side]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert abs(ended[Side.SOURCE] - ended[Side.DESTINATION]) < way + 0.1


# --- one axis ---------------------------------------------------------------------------------------------------------


def test_both_sides_lie_on_the_axis_of_the_request() -> None:
    """The source is ready 1.5 s after it; the destination's clock, 0.5 s ahead when they greet, says 1.0 s."""
    assert found(record()) == {
        ("source", "start", None): 1.0,
        ("source", "pairing", None): 1.5,
        ("source", "bulk", 0): 3.0,
        ("source", "rounds", 1): 5.1,
        ("source", "rounds", 2): 5.7,
        ("source", "downtime", None): 6.1,
        ("source", "downtime", 3): 6.11,
        ("source", "given", None): 6.15,
        ("destination", "start", None): 0.75,
        ("destination", "pairing", None): 1.0,
        ("destination", "rounds", None): 2.6,
        ("destination", "handover", None): 6.11,
        ("destination", "ready", None): 6.13,
        ("destination", "taken", None): 6.16,
    }


def test_each_sides_phases_come_in_order_of_time() -> None:
    said = phases(record())
    assert [each.side for each in said] == [Side.SOURCE] * 8 + [Side.DESTINATION] * 6
    for side in Side:
        began = [each.began for each in said if each.side is side]
        assert began == sorted(began, key=lambda each: each or 0)


def test_people_see_dirty_rounds_as_one_row_and_the_last_round_apart() -> None:
    seen = [(each[0].words, len(each)) for each in rows(phases(record()))]
    assert ("dirty rounds", 2) in seen
    assert ("the last round", 1) in seen
    assert ("receives all rounds", 1) in seen
    assert len(seen) == 13


@pytest.mark.parametrize(("greeted", "taken"), [(1.0, 6.18), (1.5, 6.15)])
def test_a_greeting_that_a_busy_host_noticed_late_does_not_turn_the_handover_round(
    greeted: float, taken: float
) -> None:
    """GIVEN at 6.15 after READY, TAKEN after GIVEN, and heard by the source when the downtime ends, at 6.2."""
    late = {**DESTINATION, "moments": {**DESTINATION["moments"], "greeted": greeted}}  # type: ignore[dict-item]
    said = found(record(destination=late))
    ready, given = said["destination", "ready", None], said["source", "given", None]
    assert ready is not None
    assert given == 6.15
    assert said["destination", "taken", None] == pytest.approx(taken)
    assert ready <= given


def test_a_source_that_does_not_say_when_its_downtime_was_is_laid_by_the_rest() -> None:
    """Of another release, which tells of GIVEN before it has measured the downtime."""
    for what in ("began", "seconds"):
        died = {**SOURCE, what: {name: at for name, at in SOURCE[what].items() if name != "downtime"}}  # type: ignore[attr-defined]
        said = found(record(died))
        assert said["source", "given", None] == 6.15
        assert said["destination", "taken", None] == 6.16


def test_sides_that_never_met_are_laid_by_their_claims() -> None:
    alone = {"seconds": {"start": 0.5, "pairing": 2.0}, "began": {"start": -0.5, "pairing": 0.0}, "moments": {}}
    assert found(record(alone, alone)) == {
        ("source", "start", None): 1.0,
        ("source", "pairing", None): 1.5,
        ("destination", "start", None): 2.0,
        ("destination", "pairing", None): 2.5,
    }


def test_a_record_that_redis_had_lost_begins_with_the_sources_mover() -> None:
    said = found(record(restored=True))
    assert (said["source", "pairing", None], said["destination", "pairing", None]) == (0.0, -0.5)


def test_a_mover_of_the_release_before_says_only_how_long() -> None:
    before = {"seconds": {"pairing": 1.0, "bulk": 2.0, "total": 4.0}, "rounds": [{**ROUNDS[0], "began": None}]}
    del before["rounds"][0]["began"]  # type: ignore[index]
    said = phases(record(before))
    assert said[:2] == [Phase(Side.SOURCE, "pairing", None, 1.0), Phase(Side.SOURCE, "bulk", None, 2.0)]
    assert all(each.began is not None for each in said[2:])
    assert found(record(destination=None)).keys() == {key for key in found(record()) if key[0] == "source"}
    assert phases(record(None, None)) == []


def test_a_round_that_was_cut_off_is_a_piece_as_well() -> None:
    took = {**SOURCE["seconds"], "rounds": 0.5 + 0.4}  # type: ignore[dict-item]
    cut = {**SOURCE, "seconds": took, "rounds": ROUNDS[:2], "moments": {}}
    pieces = [each for each in phases(record(cut)) if (each.side, each.name) == (Side.SOURCE, "rounds")]
    assert [(each.round, each.began, round(each.seconds, 6)) for each in pieces] == [(1, 5.1, 0.5), (2, 5.7, 0.4)]
    first = {**cut, "rounds": ROUNDS[:1]}
    (piece,) = [each for each in phases(record(first)) if (each.side, each.name) == (Side.SOURCE, "rounds")]
    assert (piece.round, piece.began, piece.seconds) == (None, 5.7, 0.9)


def test_json_has_it_in_seconds_since_the_request() -> None:
    said = Facts.of(record()).to_json()["timeline"]
    assert {"side": "source", "phase": "rounds", "round": 2, "began": pytest.approx(5.7), "seconds": 0.25} in said
    assert len(said) == 14
