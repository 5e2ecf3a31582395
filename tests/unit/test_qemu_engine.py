"""Who moves the memory and why; what a migration asks for in QEMU's words; its passes as rounds."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import cast

import pytest

from config.capabilities import read_options
from config.errors import PeerLostError, RefusedError, RequestError
from tests.unit.test_offer_and_agreement import offer
from workers.conversation import Conversation
from workers.guests.blocker import Blocker
from workers.guests.qemu.figures import Figures
from workers.guests.qemu.own_settings import ALL_OFF, NO_LIMIT, own_settings
from workers.pairing.agreement import agree
from workers.pairing.engine import choose, engines, leaving
from workers.protocol import Message, MessageType, encode
from workers.qemu_engine import destination, source
from workers.qemu_engine.passes import Passes
from workers.rounds.convergence import Limits
from workers.transports.contract import Endpoint

MIB = 1 << 20
BOTH = ("droveway", "qemu")


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outside", "itself", "able"),
    [(None, None, BOTH), ("no file", None, ("qemu",)), (None, "no QEMU", ("droveway",)), ("no file", "no QEMU", ())],
)
def test_an_engine_that_nothing_hinders_can_move_the_guest(
    outside: str | None, itself: str | None, able: tuple[str, ...]
) -> None:
    assert engines(outside, itself) == able


@pytest.mark.parametrize(
    ("asked", "able", "engine", "why"),
    [
        ("auto", BOTH, "droveway", "from outside"),
        ("auto", ("droveway",), "droveway", "from outside"),
        ("auto", ("qemu",), "qemu", "no file, so QEMU"),
        ("qemu", BOTH, "qemu", "asked for"),
        ("droveway", BOTH, "droveway", "asked for"),
    ],
)
def test_qemu_is_left_what_cannot_be_moved_from_outside(
    asked: str, able: tuple[str, ...], engine: str, why: str
) -> None:
    chosen = choose(asked, able, None if "droveway" in able else "no file")
    assert chosen.name == engine
    assert why in chosen.reason


@pytest.mark.parametrize(
    ("asked", "able", "words"),
    [
        ("droveway", ("qemu",), "droveway cannot move this guest: no file"),
        ("qemu", ("droveway",), "qemu cannot move this guest: too old"),
        ("auto", (), "no file, and too old"),
    ],
)
def test_what_cannot_be_moved_as_asked_is_refused_with_the_reason(
    asked: str, able: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RefusedError, match=words) as refused:
        choose(asked, able, "no file", "too old")
    assert refused.value.reason == "engine"


OUTSIDE = Blocker("ram-not-shared", "no file", "start it with one", from_outside=True)
ANYHOW = Blocker("vfio", "a card", "unplug it")


@pytest.mark.parametrize(
    ("asked", "found", "itself", "engine", "reasons"),
    [
        ("auto", [], None, "droveway", []),
        ("auto", [OUTSIDE], None, "qemu", []),
        ("auto", [OUTSIDE, ANYHOW], None, "qemu", ["vfio"]),
        ("auto", [], "too old", "droveway", []),
        ("auto", [OUTSIDE], "too old", "droveway", ["ram-not-shared", "engine"]),
        ("qemu", [], None, "qemu", []),
        ("qemu", [OUTSIDE], None, "qemu", []),
        ("qemu", [OUTSIDE], "too old", "qemu", ["engine"]),
        ("droveway", [OUTSIDE], None, "droveway", ["ram-not-shared"]),
        ("droveway", [], "too old", "droveway", []),
    ],
)
def test_whatever_engine_is_refused_there_is_a_blocker_that_says_why(
    asked: str, found: list[Blocker], itself: str | None, engine: str, reasons: list[str]
) -> None:
    chosen, blockers = leaving(asked, found, itself)
    assert (chosen, [each.reason for each in blockers]) == (engine, reasons)


def test_both_offers_have_one_outcome_and_it_says_what_qemu_leaves_out() -> None:
    capabilities, _ = read_options(["rdma-pin-all=on"])
    terms = {"engines": ("qemu",), "not_from_outside": "no file", "capabilities": capabilities.to_json()}
    agreed = agree(offer("alpha", **terms), offer("beta", **terms))
    assert agreed.to_json()["engine"] == "qemu"
    assert not agreed.capabilities["verify-ram"]
    assert not agreed.capabilities["rdma-pin-all"]
    assert {note.about for note in agreed.notes} == {"verify-ram", "rdma-pin-all"}


@pytest.mark.parametrize("asked", [{"xbzrle": True}, {}])
def test_qemu_takes_one_connection_with_xbzrle_or_over_rdma(asked: dict[str, bool]) -> None:
    terms = {"engines": ("qemu",), "capabilities": asked, "supported": frozenset({"xbzrle"})}
    if not asked:
        terms["transports"] = {"verbs": {}}
    agreed = agree(offer("alpha", **terms), offer("beta", **terms))
    assert agreed.channels == 1
    assert "channels" in {note.about for note in agreed.notes}


def test_an_older_release_on_the_other_side_can_only_be_moved_to_from_outside() -> None:
    with pytest.raises(RefusedError, match="destination cannot"):
        agree(offer("alpha", engines=("qemu",), not_from_outside="no file"), offer("beta"))
    assert agree(offer("alpha", engines=BOTH), offer("beta")).engine.name == "droveway"


def test_memory_that_is_faulted_in_on_demand_is_not_qemus() -> None:
    capabilities, _ = read_options(["on-demand-paging=on"])
    terms = {"engines": ("qemu",), "capabilities": capabilities.to_json()}
    terms["transports"] = {"verbs": {"odp": True, "device": "rxe0"}}
    with pytest.raises(RefusedError) as refused:
        agree(offer("alpha", **terms), offer("beta", **terms))
    assert refused.value.reason == "on-demand-paging"


def test_what_only_qemu_can_do_can_be_asked_of_it_alone() -> None:
    asked, parameters = read_options(["xbzrle=on", "auto-converge=on"], ["engine=qemu", "xbzrle-cache-size=128MiB"])
    settings = own_settings(asked.to_json(), parameters, transport="tcp", channels=4)
    assert settings.parameters["xbzrle-cache-size"] == 128 * MIB
    for engine in ("auto", "droveway"):
        with pytest.raises(RequestError, match="engine=qemu"):
            read_options(["xbzrle=on"], [f"engine={engine}"])


# --- in QEMU's words --------------------------------------------------------------------------------------------------


def test_parameters_are_taken_over_one_to_one() -> None:
    asked, parameters = read_options(None, ["max-bandwidth=100MiB/s", "downtime-limit=70ms"])
    settings = own_settings(asked.to_json(), parameters, transport="tcp", channels=4)
    assert settings.parameters == {"max-bandwidth": 100 * MIB, "downtime-limit": 70, "multifd-channels": 4}
    on = {name for name, state in settings.capabilities.items() if state}
    assert on == {"events", "return-path", "late-block-activate", "multifd"}
    assert set(settings.capabilities) >= set(ALL_OFF)
    assert settings.at_source() == {**settings.capabilities, "pause-before-switchover": True}


def test_no_limit_is_not_qemus_default() -> None:
    _, parameters = read_options()
    assert own_settings({}, parameters, transport="tcp", channels=1).parameters["max-bandwidth"] == NO_LIMIT


@pytest.mark.parametrize(
    ("asked", "transport", "channels", "on"),
    [
        ({}, "tcp", 1, set()),
        ({}, "tcp", 2, {"multifd"}),
        ({}, "verbs", 4, set()),  # QEMU's RDMA code takes one connection
        ({"rdma-pin-all": True}, "verbs", 4, {"rdma-pin-all"}),
        ({"rdma-pin-all": True}, "tcp", 1, set()),
        ({"xbzrle": True}, "tcp", 4, {"xbzrle"}),  # without effect beside multifd
        ({"xbzrle": True}, "verbs", 4, set()),
        ({"auto-converge": True}, "tcp", 2, {"auto-converge", "multifd"}),
    ],
)
def test_what_excludes_each_other_in_qemu_is_never_set_together(
    asked: dict[str, bool], transport: str, channels: int, on: set[str]
) -> None:
    _, parameters = read_options()
    settings = own_settings(asked, parameters, transport=transport, channels=channels)
    assert {name for name in ALL_OFF if settings.capabilities[name]} - {"return-path"} == on
    assert settings.capabilities["return-path"] == (transport == "tcp")
    assert ("multifd-channels" in settings.parameters) == ("multifd" in on)
    assert ("xbzrle-cache-size" in settings.parameters) == ("xbzrle" in on)


def test_figures_that_qemu_does_not_have_yet_are_nothing() -> None:
    assert Figures.of({}) == Figures("none")
    said = {
        "status": "active",
        "expected-downtime": 250,
        "ram": {"mbps": 8.0, "dirty-pages-rate": 2, "page-size": 4096},
    }
    assert Figures.of(said) == Figures("active", rate=1e6, dirty_rate=8192.0, expected_downtime=0.25)
    early = {"status": "active", "ram": {"mbps": 0, "dirty-pages-rate": 0, "page-size": 4096}}
    assert Figures.of(early) == Figures("active")


@pytest.mark.parametrize(
    ("dirty", "expected", "told"),
    [(None, 0.001, {}), (None, 0.5, {}), (8192.0, 0.001, {"dirty": 8192.0}), (None, None, {})],
)
def test_a_downtime_that_qemu_has_not_reckoned_is_not_told(
    dirty: float | None, expected: float | None, told: dict[str, float]
) -> None:
    """Until then it says the limit, here 1 ms, also for an instant after its first dirty rate."""
    seen = dataclasses.replace(BEGUN, dirty_rate=dirty, expected_downtime=expected)
    assert source._rates(watched(None, seen, 1)) == told
    reckoned = dataclasses.replace(seen, dirty_rate=8192.0, expected_downtime=0.25)
    assert source._rates(watched(None, reckoned, 1)) == {"dirty": 8192.0, "expected_downtime": 0.25}


def test_what_qemu_sent_is_told_by_kind() -> None:
    said = {
        "status": "completed",
        "setup-time": 12,
        "xbzrle-cache": {"bytes": 500},
        "ram": {"transferred": 9999, "normal-bytes": 8192, "duplicate": 3, "page-size": 4096},
    }
    found = Figures.of(said)
    assert (found.whole, found.zero, found.delta, found.sent, found.setup) == (8192, 12288, 500, 8692, 0.012)


# --- passes -----------------------------------------------------------------------------------------------------------

LIMITS = Limits(downtime=0.001, max_rounds=3, completion_timeout=0, progress_timeout=0)
BEGUN = Figures("active", total=100 * MIB, looks=1, remaining=100 * MIB)


def at(looks: int, transferred: int, remaining: int) -> Figures:
    """QEMU has sent so much whole, in MiB; as much again was words of its own, and a tenth of it was found zero."""
    sizes = {"transferred": 2 * transferred * MIB, "whole": transferred * MIB, "zero": transferred * MIB // 10}
    return dataclasses.replace(BEGUN, looks=looks, remaining=remaining * MIB, **sizes)


def test_a_look_at_all_of_memory_ends_a_round() -> None:
    passes = Passes(LIMITS)
    assert passes.see(BEGUN, 0.0) is None
    assert passes.see(at(1, 30, 60), 1.0) is None
    bulk = passes.see(at(2, 80, 40), 2.0)
    assert bulk is not None
    assert (bulk.round.index, bulk.round.kind, bulk.round.bytes, bulk.round.sent) == (0, "bulk", 100 * MIB, 80 * MIB)
    assert (bulk.round.seconds, bulk.left, bulk.stalled) == (2.0, 40 * MIB, None)
    assert (bulk.round.zero, bulk.round.delta) == (8 * MIB, None)
    assert "delta" not in bulk.to_json(given_up=False)
    dirty = passes.see(at(3, 125, 20), 3.5)
    assert dirty is not None
    assert (dirty.round.index, dirty.round.kind, dirty.round.bytes, dirty.round.sent) == (
        1,
        "dirty",
        40 * MIB,
        45 * MIB,
    )
    last = passes.last(at(3, 140, 0), 4.0)
    assert (last.index, last.kind, last.bytes, last.sent, last.seconds) == (2, "final", 20 * MIB, 15 * MIB, 0.5)
    assert (last.zero, last.delta) == (15 * MIB // 10, None)
    xbzrle = passes.last(dataclasses.replace(at(3, 140, 0), delta=MIB), 4.0)
    assert (xbzrle.sent, xbzrle.delta) == (16 * MIB, MIB)


@pytest.mark.parametrize("looks", [(2, 3, 4), (2, 4), (4,)])
def test_rounds_that_nobody_saw_count_as_well(looks: tuple[int, ...]) -> None:
    passes = Passes(LIMITS)
    ended = [passes.see(at(number, 100 * number, 80), float(number)) for number in looks]
    assert [bool(each and each.stalled) for each in ended] == [False] * (len(looks) - 1) + [True]
    assert [each and each.round.index for each in ended] == [number - 2 for number in looks]
    assert passes.last(at(looks[-1] + 2, 1000, 0), 9.0).index == looks[-1] + 1
    assert ended[-1] is not None
    assert "max-rounds" in str(ended[-1].stalled)
    assert ended[-1].to_json(given_up=True)["verdict"] == "stalled"
    assert ended[-1].to_json(given_up=False)["verdict"] == "continue"


def test_no_progress_for_too_long_is_a_stall() -> None:
    passes = Passes(dataclasses.replace(LIMITS, max_rounds=100, progress_timeout=10.0))
    assert passes.see(at(2, 100, 50), 1.0) is not None
    later = passes.see(at(3, 150, 50), 12.0)
    assert later is not None
    assert "progress-timeout" in str(later.stalled)


# --- the last pass ----------------------------------------------------------------------------------------------------


def watched(own: object, seen: Figures, elapsed: float) -> source._Watched:
    _, parameters = read_options(None, ["downtime-limit=1ms", "on-stall=force"])
    migration, now = SimpleNamespace(parameters=parameters), time.monotonic()
    return source._Watched(migration, None, own, Passes(LIMITS), seen, now - elapsed)  # type: ignore[arg-type]


def test_what_is_left_when_the_guest_is_paused_may_take_the_time_that_it_takes() -> None:
    seen = dataclasses.replace(BEGUN, transferred=1000 * MIB, remaining=4000 * MIB)
    assert source._patience(watched(None, seen, 10)) == pytest.approx(5 + 3 * 40, abs=1)
    assert source._patience(watched(None, at(9, 1000, 0), 10)) == pytest.approx(5)


def test_a_qemu_that_is_too_busy_to_answer_has_not_completed_and_has_not_failed() -> None:
    answers = [None, BEGUN, None, dataclasses.replace(BEGUN, status="completed")]
    own = SimpleNamespace(figures_unless_busy=lambda: answers.pop(0))
    seen = watched(own, BEGUN, 1)
    assert [seen.completed() for _ in range(4)] == [False, False, False, True]


# --- a source that says nothing more ----------------------------------------------------------------------------------


class Quiet:
    """A destination's QEMU that waits, or has loaded after so many looks."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def figures(self) -> Figures:
        self._looks -= 1
        return Figures("active" if self._looks else "completed")

    def wait(self, seconds: float) -> None:
        pass


def await_completed(own: Quiet, *messages: Message) -> None:
    frames = [encode(message) for message in messages]
    line = SimpleNamespace(receive=lambda timeout: frames.pop(0) if frames else None)
    link = SimpleNamespace(talk=Conversation(cast(Endpoint, line), lambda: None))
    destination._await_completed(SimpleNamespace(check=lambda: None), link, own)  # type: ignore[arg-type]


def test_a_source_that_does_not_go_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "_ANSWER", 0)
    with pytest.raises(PeerLostError, match="does not say any more"):
        await_completed(Quiet(1000))
    await_completed(Quiet(1000), Message(MessageType.GOING_ON, {"seconds": 1000}))
    with pytest.raises(PeerLostError):
        await_completed(Quiet(1000), *[Message(MessageType.GOING_ON, {"seconds": n}) for n in (1000, 0)])
