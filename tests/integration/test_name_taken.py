"""A guest of the same name at the destination is somebody's own: no refusal, crash or settling may end it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from config.capabilities import read_options
from config.errors import MessageError, RefusedError
from config.settings import load_settings
from workers import destination
from workers.attempt import Attempt, Job
from workers.guests.contract import RunState
from workers.guests.local import LocalGuests
from workers.guests.memory_spec import MemoryGuestSpec
from workers.handover.journal import driving, last_line
from workers.metrics.timeline import Timeline
from workers.migration import Migration, Progress
from workers.pairing.contract import Pairing, Side
from workers.pairing.offer import Block, Offer, encode
from workers.settle import settle

SIZE = 4 << 20


class Heard:
    """A source that has offered `name`, and what it is told."""

    def __init__(self, name: str, size: int) -> None:
        self.offer = Offer(
            host="a",
            blocks=(Block(id="ram", size=size, page_size=4096),),
            page_size=4096,
            capabilities={},
            parameters={},
            supported=frozenset(),
            transports={},
            guest={"name": name},
        )
        self.refusal = ""

    def await_offer(self, timeout: float) -> bytes:
        return encode(self.offer)

    def refuse(self, reason: str, message: str) -> None:
        self.refusal = reason

    def facts(self) -> frozenset[tuple[int, str]]:
        return frozenset()


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[LocalGuests]:
    made = LocalGuests(tmp_path)
    yield made
    for each in made.list():
        made.stop(each.name)


def job() -> Job:
    capabilities, parameters = read_options([], [])
    return Job("m-1", "vm", 1, Side.DESTINATION, "nonce", "b", "a", SIZE, capabilities.to_json(), parameters.to_json())


def run(tmp_path: Path, source: Heard) -> None:
    attempt = Attempt.of(tmp_path, job().ticket)
    attempt.prepare(job())
    settings = load_settings(environment={}, overrides={"host.name": "b", "host.state_dir": str(tmp_path)})
    capabilities, parameters = read_options([], [])
    timeline, progress = Timeline(lambda: 0.0), Progress(attempt)
    migration = Migration(
        job(),
        settings,
        capabilities,
        parameters,
        cast(Pairing, source),
        timeline,
        progress,
        lambda: False,
        lambda: True,
    )
    destination.run(migration)


def test_a_taken_name_is_refused_before_the_journal_calls_that_guest_an_incoming_copy(
    tmp_path: Path, guests: LocalGuests
) -> None:
    guest = guests.start(MemoryGuestSpec(name="vm", memory=SIZE, dirty_rate=0, pattern="random"))
    source = Heard("vm", SIZE)
    with pytest.raises(RefusedError, match="already"):
        run(tmp_path, source)
    assert source.refusal == "guest-exists"
    assert last_line(tmp_path, "vm") is None
    assert guest.status() is RunState.RUNNING


@pytest.mark.parametrize(("name", "size", "error"), [("another", SIZE, MessageError), ("vm", 2 * SIZE, RefusedError)])
def test_a_source_that_offers_another_guest_than_was_admitted_is_refused(
    tmp_path: Path, guests: LocalGuests, name: str, size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(tmp_path, Heard(name, size))
    assert last_line(tmp_path, "vm") is None
    assert guests.list() == []


def begun(tmp_path: Path) -> Attempt:
    attempt = Attempt.of(tmp_path, job().ticket)
    attempt.prepare(job())
    with driving(tmp_path, "vm") as journal:
        journal.begin(1, Side.DESTINATION, "m-1", "a")
    return attempt


def test_settling_an_attempt_without_a_copy_leaves_a_running_guest_of_that_name_alone(
    tmp_path: Path, guests: LocalGuests
) -> None:
    guest = guests.start(MemoryGuestSpec(name="vm", memory=SIZE, dirty_rate=0, pattern="random"))
    status = settle(begun(tmp_path), guests, tmp_path, cast(Pairing, Heard("vm", SIZE)))
    assert status.outcome == "failed"
    assert guest.status() is RunState.RUNNING


def test_an_incoming_copy_that_was_cut_off_in_its_making_is_settled(tmp_path: Path, guests: LocalGuests) -> None:
    attempt = begun(tmp_path)
    (tmp_path / "guests" / "vm").mkdir(parents=True)
    assert settle(attempt, guests, tmp_path, cast(Pairing, Heard("vm", SIZE))).outcome == "failed"
    assert guests.list() == []
