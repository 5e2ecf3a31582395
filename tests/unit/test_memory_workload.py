"""The memory guest as a witness: its arithmetic is exact, and no damage to a page goes unseen or misnamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import RequestError
from workers.guests.heartbeat import Heartbeat, Instant
from workers.guests.memory_content import Content, Damage
from workers.guests.memory_spec import PATTERNS, Layout, MemoryGuestSpec
from workers.guests.memory_workload import Shuffle, Sweep, Workload
from workers.ram import BlockFile, Ram, RamBlock
from workers.ranges import PAGE_SIZE

SPEC = MemoryGuestSpec("witness", 256 * PAGE_SIZE, zeros=0.0)


def never() -> bool:
    return False


@pytest.fixture
def ram() -> Iterator[Ram]:
    path = Path(f"/dev/shm/droveway-test-{os.getpid()}-workload.ram")
    with path.open("xb") as file:
        file.truncate(SPEC.memory)
    mapped = Ram([BlockFile(RamBlock("ram", SPEC.memory), path)])
    yield mapped
    mapped.close()
    path.unlink()


def working(spec: MemoryGuestSpec, ram: Ram, writes: int) -> Workload:
    workload = Workload(spec, ram)
    while not workload.full:
        workload.fill(never)
    while writes > 0:
        writes -= workload.write(writes, never)
    return workload


def page_of(ram: Ram, page: int) -> memoryview:
    return ram.view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]


# --- the order of writing ---------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1 << 60))
def test_a_shuffle_visits_every_page_once_and_can_be_inverted(rows: int, columns: int, seed: int) -> None:
    shuffle = Shuffle(rows, columns, seed)
    positions = np.arange(rows * columns, dtype=np.uint64)
    values = shuffle.forward(positions)
    assert sorted(values.tolist()) == positions.tolist()
    assert shuffle.inverse(values).tolist() == positions.tolist()


def test_a_shuffle_differs_from_pass_to_pass() -> None:
    everything = np.arange(400, dtype=np.uint64)
    assert Shuffle(20, 20, 1).forward(everything).tolist() != Shuffle(20, 20, 2).forward(everything).tolist()


@given(st.integers(1, 200), st.sampled_from([None, 7]), st.lists(st.integers(1, 64), max_size=30))
def test_the_sequence_numbers_told_by_the_counter_are_those_that_were_written(
    count: int, seed: int | None, limits: list[int]
) -> None:
    sweep = Sweep(10, count, 1.0, seed)
    written = np.ones(count, np.uint64)
    for limit in limits:
        pages, holds = sweep.upcoming(limit)
        assert (written[pages - np.uint64(10)] == holds).all()
        written[pages - np.uint64(10)] += np.uint64(1)
        sweep.done += len(pages)
    assert sweep.sequence(np.arange(10, 10 + count, dtype=np.uint64)).tolist() == written.tolist()


@given(st.integers(1, 3000), st.floats(0.001, 1.0))
def test_used_pages_are_distinct_and_lie_inside_the_memory(pages: int, used: float) -> None:
    layout = Layout.of(replace(SPEC, memory=pages * PAGE_SIZE, used=used))
    found = layout.page(np.arange(layout.used, dtype=np.uint64)).tolist()
    assert len(set(found)) == layout.used > 0
    assert max(found) < pages


# --- what the oracle sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("writes", [0, 1, 37, 1000])
def test_an_undamaged_guest_finds_nothing(ram: Ram, pattern: str, writes: int) -> None:
    workload = working(replace(SPEC, pattern=pattern, zeros=0.3), ram, writes)
    found, zeros = workload.check_all()
    assert (found.corrupt, zeros, found.pages_checked) == (0, 0, workload.layout.used)
    assert workload.findings.corrupt == 0
    assert workload.sequence == workload.layout.used + writes
    assert ram.populated().size == workload.layout.used * PAGE_SIZE


def flip_a_byte(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[2000] ^= 1


def lose(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[:] = bytes(PAGE_SIZE)


def restore_an_older_copy(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[:] = old[3 * PAGE_SIZE : 4 * PAGE_SIZE]


def restore_half_of_an_older_copy(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[2048:] = old[3 * PAGE_SIZE + 2048 : 4 * PAGE_SIZE]


def put_another_page(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[:] = page_of(ram, 5)


def put_a_page_of_another_guest(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[:] = Content(replace(SPEC, name="other")).one(3, 2).tobytes()


def put_a_later_generation(ram: Ram, old: bytes) -> None:
    page_of(ram, 3)[:] = Content(SPEC).one(3, 1000).tobytes()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (flip_a_byte, Damage.GARBLED),
        (lose, Damage.LOST),
        (restore_an_older_copy, Damage.STALE),
        (restore_half_of_an_older_copy, Damage.TORN),
        (put_another_page, Damage.MISPLACED),
        (put_a_page_of_another_guest, Damage.GARBLED),
        (put_a_later_generation, Damage.NEWER),
    ],
)
@pytest.mark.parametrize("way", ["full check", "rolling scan", "before overwriting"])
def test_each_kind_of_damage_is_seen_and_named_whichever_check_meets_it(
    ram: Ram, damage: object, kind: Damage, way: str
) -> None:
    workload = working(SPEC, ram, 0)
    old = bytes(ram.view)
    for _ in range(4):
        workload.write(64, never)  # one pass over all 196 swept pages and no more
    damage(ram, old)  # type: ignore[operator]
    for _ in range(4):
        if way == "full check":
            workload.check_all()
        elif way == "rolling scan":
            workload.check_next()
        else:
            workload.write(64, never)
    assert workload.findings.kinds == {kind: 1}
    assert workload.findings.examples[0].page == 3


def test_a_swap_of_two_pages_is_two_misplaced_pages(ram: Ram) -> None:
    workload = working(SPEC, ram, 50)
    one, two = bytes(page_of(ram, 1)), bytes(page_of(ram, 20))
    page_of(ram, 1)[:], page_of(ram, 20)[:] = two, one
    assert workload.check_all()[0].kinds == {Damage.MISPLACED: 2}


def test_old_content_where_the_guest_last_wrote_zeros_is_stale(ram: Ram) -> None:
    workload = working(replace(SPEC, zeros=0.5), ram, 0)
    old = bytes(ram.view)
    for _ in range(4):
        workload.write(64, never)
    became_zero = [page for page in range(12) if old[page * PAGE_SIZE] and not any(page_of(ram, page))]
    page_of(ram, became_zero[0])[:] = old[became_zero[0] * PAGE_SIZE : (became_zero[0] + 1) * PAGE_SIZE]
    assert workload.check_all()[0].kinds == {Damage.STALE: 1}


def test_content_where_the_guest_never_wrote_is_stray_and_zeros_there_are_only_counted(ram: Ram) -> None:
    workload = working(SPEC, ram, 0)
    untouched = workload.layout.run  # the first page of the first hole
    page_of(ram, untouched)[5] = 1
    page_of(ram, untouched + 1)[5] = 0  # allocates the page
    found, zeros = workload.check_all()
    assert (found.kinds, zeros) == ({Damage.STRAY: 1}, 1)


def test_damage_counts_once_until_the_page_is_written_anew(ram: Ram) -> None:
    workload = working(SPEC, ram, 0)
    for _ in range(2):
        page_of(ram, 3)[99] ^= 1
        workload.check_all()
        workload.check_all()
        for _ in range(4):
            workload.write(64, never)
    assert workload.findings.corrupt == 2


def test_an_interrupted_batch_counts_what_it_wrote_and_no_more(ram: Ram) -> None:
    workload = working(replace(SPEC, pattern="sequential"), ram, 0)
    looks = iter([False, False, True])
    assert workload.write(64, lambda: next(looks)) == 26  # two runs, each cut at a hole: 13 of 16 pages are used
    assert workload.check_all()[0].corrupt == 0


# --- device state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_twin_goes_on_from_the_state_and_misses_a_single_write_left_behind(ram: Ram, pattern: str) -> None:
    source = working(replace(SPEC, pattern=pattern), ram, 321)
    before = bytes(ram.view)
    source.write(1, never)
    twin = Workload(source.spec, ram)
    twin.load(source.to_state())
    assert twin.check_all()[0].corrupt == 0
    ram.view[:] = before  # as if the last write had not been moved
    assert twin.check_all()[0].kinds == {Damage.STALE: 1}


def test_findings_travel_with_the_guest(ram: Ram) -> None:
    source = working(SPEC, ram, 0)
    page_of(ram, 3)[99] ^= 1
    source.check_all()
    twin = Workload(SPEC, ram)
    twin.load(source.to_state())
    assert twin.findings == source.findings


@pytest.mark.parametrize(
    "change",
    [{"filled": 10_000}, {"filled": -1}, {"filled": True}, {"swept": []}, {"swept": [1, 2]}, {"findings": None}],
)
def test_counters_that_do_not_fit_are_refused(ram: Ram, change: dict[str, object]) -> None:
    state = working(SPEC, ram, 5).to_state()
    with pytest.raises((ValueError, TypeError, KeyError)):
        Workload(SPEC, ram).load(state | change)


# --- the shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../up"},
        {"name": ""},
        {"name": "a" * 64},
        {"memory": 0},
        {"memory": 5000},
        {"memory": "4096"},
        {"memory": True},
        {"dirty_rate": -1},
        {"dirty_rate": 1.5},
        {"pattern": "sideways"},
        {"pattern": ["hot"]},
        {"used": 0},
        {"used": 1.1},
        {"used": float("nan")},
        {"zeros": 1.0},
        {"seed": -1},
    ],
)
def test_a_shape_that_makes_no_sense_is_refused_with_its_name(change: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(change))):
        MemoryGuestSpec.from_json(SPEC.to_json() | change)


@pytest.mark.parametrize("shape", [None, [], {}, SPEC.to_json() | {"more": 1}])
def test_a_shape_with_other_keys_is_refused(shape: object) -> None:
    with pytest.raises(RequestError, match="exactly the keys"):
        MemoryGuestSpec.from_json(shape)


def test_a_shape_survives_its_journey() -> None:
    ruled = replace(SPEC, anti_affinity=("db", "web"), needs=("zone=eu-1",))
    for spec in (SPEC, ruled):
        assert MemoryGuestSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_guest_that_was_started_before_there_were_rules_has_none() -> None:
    before = {name: value for name, value in SPEC.to_json().items() if name not in ("anti_affinity", "needs")}
    assert MemoryGuestSpec.from_json(before) == SPEC
    with pytest.raises(RequestError, match="exactly the keys"):
        MemoryGuestSpec.from_json({name: value for name, value in before.items() if name != "seed"})


@pytest.mark.parametrize("change", [{"needs": ["zone"]}, {"anti_affinity": ["D B"]}, {"needs": "zone=1"}])
def test_rules_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"cannot be|is no list"):
        MemoryGuestSpec.from_json(SPEC.to_json() | change)


# --- the heartbeat ----------------------------------------------------------------------------------------------------

SECOND = 1_000_000_000


def test_the_gap_across_a_move_on_one_machine_is_by_the_clock_of_its_boot() -> None:
    source = Heartbeat(0)
    source.tick(5 * SECOND)
    state = source.to_state(Instant("boot", 6 * SECOND, 1000 * SECOND))
    twin = Heartbeat(6 * SECOND)
    twin.load(state, Instant("boot", 7 * SECOND, 9999 * SECOND))
    twin.tick(8 * SECOND)
    twin.tick(8 * SECOND + 1)
    assert twin.report()["move_gap_seconds"] == 3.0
    assert twin.report()["longest_gap_seconds"] == 5.0


def test_the_gap_across_a_move_between_machines_is_by_the_time_of_day() -> None:
    source = Heartbeat(0)
    source.tick(5 * SECOND)
    state = source.to_state(Instant("boot", 6 * SECOND, 1000 * SECOND))
    twin = Heartbeat(70 * SECOND)
    twin.load(state, Instant("other", 77 * SECOND, 1001 * SECOND))
    twin.tick(78 * SECOND)
    assert twin.report()["move_gap_seconds"] == 3.0


def test_a_clock_that_runs_behind_makes_no_negative_gap() -> None:
    state = Heartbeat(0).to_state(Instant("boot", 0, 1000 * SECOND))
    twin = Heartbeat(0)
    twin.load(state, Instant("other", SECOND, 900 * SECOND))
    twin.tick(SECOND)
    assert twin.report()["move_gap_seconds"] == 0.0


def test_resetting_forgets_the_longest_gap_but_not_the_last_move() -> None:
    twin = Heartbeat(0)
    twin.load(Heartbeat(0).to_state(Instant("boot", 0, 0)), Instant("boot", SECOND, 0))
    twin.tick(2 * SECOND)
    twin.reset()
    twin.tick(2 * SECOND + 1000)
    assert twin.report()["longest_gap_seconds"] == 1e-6
    assert twin.report()["move_gap_seconds"] == 2.0


def test_time_held_by_a_full_check_is_no_gap() -> None:
    heartbeat = Heartbeat(0)
    heartbeat.restart(9 * SECOND)
    heartbeat.tick(9 * SECOND + 1000)
    assert heartbeat.report()["longest_gap_seconds"] == 1e-6
