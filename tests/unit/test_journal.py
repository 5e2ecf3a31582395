"""The journal is the only thing between a guest and two copies: what a crash, a disk or another process does to it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.errors import HostError, RefusedError
from workers.handover.journal import Journal, all_guests, driving, last_line
from workers.handover.machine import Entry, Handed
from workers.pairing.contract import Side

REPOSITORY = Path(__file__).parents[2]

_APPENDING = """
import sys
from pathlib import Path
from workers.handover.journal import driving
from workers.handover.machine import Entry
from workers.pairing.contract import Side
with driving(Path(sys.argv[1]), "vm") as journal:
    epoch = journal.last.epoch if journal.last else 0
    if journal.last and journal.last.entry is Entry.BEGUN:
        journal.append(Entry.ABORTED)
    while True:
        epoch += 1
        journal.begin(epoch, Side.SOURCE, "m", "b")
        journal.append(Entry.ABORTED)
        print(epoch, flush=True)
"""

_HOLDING = """
import sys
from pathlib import Path
from workers.handover.journal import driving
with driving(Path(sys.argv[1]), "vm"):
    print("held", flush=True)
    sys.stdin.read()
"""


def python(code: str, state_dir: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(state_dir)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True)


def written(state_dir: Path, *entries: Entry, side: Side = Side.SOURCE) -> Path:
    """A journal of one attempt under epoch 7, BEGUN and `entries`."""
    with driving(state_dir, "vm") as journal:
        journal.begin(7, side, "migration-1", "host-b")
        for entry in entries:
            journal.append(entry)
    return state_dir / "journal" / "vm.journal"


def last(state_dir: Path) -> Entry | None:
    with driving(state_dir, "vm") as journal:
        return journal.last.entry if journal.last else None


def test_what_was_journalled_is_read_again_whole(tmp_path: Path) -> None:
    written(tmp_path, Entry.GIVEN)
    line = last_line(tmp_path, "vm")
    assert line is not None
    assert (line.handed, line.migration, line.peer) == (Handed(7, Side.SOURCE, Entry.GIVEN), "migration-1", "host-b")
    assert all_guests(tmp_path) == ["vm"]
    assert last_line(tmp_path, "another") is None


def test_a_killed_writer_leaves_every_entry_it_was_told_is_durable(tmp_path: Path) -> None:
    for acknowledged in (1, 4, 9, 2, 6):
        with python(_APPENDING, tmp_path) as writer:
            assert writer.stdout is not None
            said = [int(writer.stdout.readline()) for _ in range(acknowledged)]
            os.kill(writer.pid, signal.SIGKILL)
            said += [int(line) for line in writer.stdout if line.endswith("\n")]
        line = last_line(tmp_path, "vm")
        assert line is not None
        assert line.epoch in (said[-1], said[-1] + 1)
        assert line.epoch > said[-1] or line.entry is Entry.ABORTED


def test_a_journal_cut_at_any_byte_is_what_was_whole_before(tmp_path: Path) -> None:
    path = written(tmp_path, Entry.GIVEN, Entry.RELEASED)
    raw = path.read_bytes()
    entries = [Entry.BEGUN, Entry.GIVEN, Entry.RELEASED]
    for size in range(len(raw) + 1):
        path.write_bytes(raw[:size])
        whole = raw[:size].count(b"\n")
        assert last(tmp_path) == (entries[whole - 1] if whole else None), f"cut at byte {size}"
        assert path.read_bytes() == b"".join(raw.splitlines(keepends=True)[:whole])


def test_a_cut_journal_is_written_on_as_if_the_cut_entry_had_not_been_tried(tmp_path: Path) -> None:
    path = written(tmp_path, Entry.GIVEN)
    path.write_bytes(path.read_bytes()[:-1])
    with driving(tmp_path, "vm") as journal:
        journal.append(Entry.ABORTED)
    assert last(tmp_path) is Entry.ABORTED


def test_a_flipped_bit_in_the_last_line_is_never_taken_for_a_cut(tmp_path: Path) -> None:
    path = written(tmp_path, Entry.GIVEN)
    raw = path.read_bytes()
    start = raw.index(b"\n") + 1
    for bit in range(8 * start, 8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(HostError, match="damaged"):
            last(tmp_path)
        assert path.read_bytes() == damaged, "a damaged journal is evidence"


def test_a_flipped_bit_before_the_last_line_is_not_read_over(tmp_path: Path) -> None:
    path = written(tmp_path, Entry.GIVEN)
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(HostError, match="damaged at byte 0"):
        last_line(tmp_path, "vm")


@pytest.mark.parametrize("kept", [0, 1, 60, -2])
def test_a_tail_of_zeros_is_a_cut(kept: int, tmp_path: Path) -> None:
    """The size reached the disk, the data, or the end of it, did not."""
    path = written(tmp_path)
    whole = path.read_bytes()
    line = whole[:kept]
    path.write_bytes(whole + line + b"\0" * (len(whole) - len(line)))
    assert last(tmp_path) is Entry.BEGUN
    assert path.read_bytes() == whole


def test_reading_without_the_lock_repairs_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, Entry.GIVEN)
    cut = path.read_bytes()[:-5]
    path.write_bytes(cut)
    line = last_line(tmp_path, "vm")
    assert line is not None
    assert line.entry is Entry.BEGUN
    assert path.read_bytes() == cut, "whoever holds the lock may be in the middle of this line"


def test_a_second_driver_is_refused_until_the_first_is_gone_even_killed(tmp_path: Path) -> None:
    with python(_HOLDING, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RefusedError) as refused, driving(tmp_path, "vm"):
            pass
        assert refused.value.reason == "busy"
        with driving(tmp_path, "another"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with driving(tmp_path, "vm"):
        pass


@pytest.mark.parametrize("epoch", [6, 7])
def test_a_stale_epoch_is_refused(epoch: int, tmp_path: Path) -> None:
    written(tmp_path, Entry.ABORTED)
    with driving(tmp_path, "vm") as journal, pytest.raises(RefusedError) as refused:
        journal.begin(epoch, Side.SOURCE, "migration-2", "host-b")
    assert refused.value.reason == "stale-epoch"


def test_the_epoch_that_a_guest_was_taken_back_under_counts_as_seen(tmp_path: Path) -> None:
    written(tmp_path, Entry.GIVEN)
    with driving(tmp_path, "vm") as journal:
        journal.append(Entry.TAKEN_BACK, epoch=8)
        with pytest.raises(RefusedError):
            journal.begin(8, Side.SOURCE, "migration-2", "host-b")
        journal.begin(9, Side.SOURCE, "migration-3", "host-b")


@pytest.mark.parametrize(
    ("side", "entries"),
    [
        (Side.SOURCE, []),
        (Side.SOURCE, [Entry.GIVEN]),
        (Side.DESTINATION, []),
        (Side.DESTINATION, [Entry.READY]),
    ],
)
def test_an_unsettled_attempt_is_not_begun_over(side: Side, entries: list[Entry], tmp_path: Path) -> None:
    """BEGUN over GIVEN would let the guest run here again while the destination may take it."""
    written(tmp_path, *entries, side=side)
    with driving(tmp_path, "vm") as journal, pytest.raises(RefusedError) as refused:
        journal.begin(8, Side.SOURCE, "migration-2", "host-b")
    assert refused.value.reason == "unresolved"


def test_compaction_keeps_the_last_entry_and_goes_on(tmp_path: Path) -> None:
    with driving(tmp_path, "vm") as journal:
        for epoch in range(1, 200):
            journal.begin(epoch, Side.SOURCE, f"migration-{epoch}", "host-b")
            journal.append(Entry.ABORTED)
    path = tmp_path / "journal" / "vm.journal"
    lines = path.read_bytes().count(b"\n")
    assert lines < 398 - 200, "never compacted"
    line = last_line(tmp_path, "vm")
    assert line is not None
    assert (line.epoch, line.entry) == (199, Entry.ABORTED)
    assert all_guests(tmp_path) == ["vm"]


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child: what it limits ends with it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("room", [0, 1, 50, 100])
def test_a_full_disk_leaves_the_journal_as_it_was(room: int, tmp_path: Path) -> None:
    """A file size limit stands for the disk: it also lets the part of a write through that fits."""
    path = written(tmp_path)
    before = path.read_bytes()

    def append() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with driving(tmp_path, "vm") as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, resource.RLIM_INFINITY))
            with pytest.raises(HostError, match="cannot be written"):
                journal.append(Entry.GIVEN)
            assert journal.last is not None
            assert journal.last.entry is Entry.BEGUN
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert path.read_bytes() == before
            journal.append(Entry.ABORTED)

    in_child(append)
    assert last(tmp_path) is Entry.ABORTED


def test_a_failed_fsync_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    real, failures = os.fsync, [OSError(5, "Input/output error")]

    def fsync(fd: int) -> None:
        if failures:
            raise failures.pop()
        real(fd)

    with driving(tmp_path, "vm") as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(HostError, match="Input/output error"):
            journal.append(Entry.GIVEN)
    assert path.read_bytes() == before


def test_a_journal_of_a_later_version_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.handover.journal.VERSION", 2)
    path = written(tmp_path)
    monkeypatch.undo()
    with pytest.raises(HostError, match="version 2"):
        Journal(path)


def test_an_attempt_that_began_has_room_on_the_disk_to_end(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "vm.journal"
    with driving(tmp_path, "vm") as journal:
        for epoch in range(1, 30):  # past the end of a block, wherever it lies
            journal.begin(epoch, Side.SOURCE, "m", "b")
            found = path.stat()
            assert found.st_blocks * 512 >= found.st_size + 2048
            journal.append(Entry.ABORTED)
