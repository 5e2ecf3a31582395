"""Each host's own word on who owns a guest: append-only, checksummed, durable before anything follows from it.

    <state_dir>/journal/<guest>.journal   one line an entry: JSON, a tab, xxh3 of the JSON in hex
    <state_dir>/journal/<guest>.lock      flocked by whoever drives: one mover, or reconcile, per guest and host

A line that a crash cut short is the last one and has no newline (or is all zeros: the size reached the disk, the data
did not): nothing followed from it, so it never happened, and is removed. Any other damage is not guessed over: a GIVEN
with a flipped bit must not read as if the guest had never been given.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from config.errors import HostError, RefusedError
from workers.handover.machine import Entry, Handed, settled
from workers.pairing.contract import Side

VERSION = 1
#: Lines after which everything before the last one is dropped: only the last one is ever acted upon, the others are
#: for whoever reads the file after an incident.
_KEEP = 256
_DIGEST_LENGTH = 16
#: Bytes set aside at BEGUN for the attempt's other entries, a few hundred each: a disk that fills up while the guest is
#: paused must not keep it paused.
_ROOM = 4096
_FALLOC_FL_KEEP_SIZE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@dataclass(frozen=True, slots=True)
class Line:
    """One entry as it stands in the file. `at` is wall time in seconds, for people; nothing is decided by it."""

    epoch: int
    side: Side
    entry: Entry
    migration: str
    peer: str
    at: float

    @property
    def handed(self) -> Handed:
        """The part that decisions are made from."""
        return Handed(self.epoch, self.side, self.entry)


class Journal:
    """The journal of one guest on this host, opened to be written: see `driving`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = _read(path, repair=True)

    @property
    def last(self) -> Line | None:
        """The newest entry."""
        return self._lines[-1] if self._lines else None

    def begin(self, epoch: int, side: Side, migration: str, peer: str) -> None:
        """Journal BEGUN.

        Raises RefusedError: `stale-epoch` when this host has seen this epoch or a higher one; `unresolved` when the
        attempt before is not settled here. BEGUN lets a source run its guest: over GIVEN it would make a second owner.
        """
        if self.last is not None and epoch <= self.last.epoch:
            raise RefusedError(
                f"epoch {epoch} of {self._path.stem} is stale: this host has seen {self.last.epoch}; submit again",
                "stale-epoch",
            )
        self._require_settled()
        self._compact()
        self._append(Line(epoch, side, Entry.BEGUN, migration, peer, time.time()))

    def bear(self) -> None:
        """Journal BORN: a new guest of this name starts here. Nothing is written where no guest of the name ever moved.

        Raises RefusedError (`unresolved`) when the guest before it is not settled here.
        """
        if self.last is not None:
            self._require_settled()
            self._append(Line(self.last.epoch, Side.SOURCE, Entry.BORN, "", "", time.time()))

    def _require_settled(self) -> None:
        if self.last is not None and not settled(self.last.handed):
            raise RefusedError(
                f"{self._path.stem} still has {self.last.entry} of migration {self.last.migration} here: "
                "`droveway reconcile` first",
                "unresolved",
            )

    def append(self, entry: Entry, *, epoch: int | None = None) -> None:
        """Journal the attempt's next entry; durable on return. `epoch` only rises, for TAKEN_BACK.

        Raises HostError when the disk does not take it; then it is as if it had not been tried.
        """
        last = self.last
        assert last is not None, "an attempt begins with BEGUN"
        self._append(Line(epoch or last.epoch, last.side, entry, last.migration, last.peer, time.time()))

    def _append(self, line: Line) -> None:
        fresh = not self._path.exists()
        with _on_disk(self._path):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(fd).st_size
                try:
                    if line.entry is Entry.BEGUN:
                        _set_aside(fd, size)
                    _write(fd, _encode(line))
                    if fresh:
                        _sync_directory(self._path.parent)
                except OSError:
                    os.ftruncate(fd, size)
                    os.fsync(fd)
                    raise
            finally:
                os.close(fd)
        self._lines.append(line)

    def _compact(self) -> None:
        if len(self._lines) < _KEEP:
            return
        fresh = self._path.with_suffix(".compacting")
        with _on_disk(self._path):
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, _encode(self._lines[-1]))
            finally:
                os.close(fd)
            fresh.replace(self._path)
            _sync_directory(self._path.parent)
        del self._lines[:-1]


@contextmanager
def driving(state_dir: Path, guest: str) -> Iterator[Journal]:
    """The guest's journal, to be written by this process alone.

    Raises RefusedError (reason `busy`) when another process drives this guest's handover on this host.
    """
    directory = state_dir / "journal"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(directory / f"{guest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{guest} is being handed over by another process on this host: wait for it", "busy"
            ) from None
        yield Journal(directory / f"{guest}.journal")
    finally:
        os.close(lock)


def last_line(state_dir: Path, guest: str) -> Line | None:
    """The newest entry about a guest, read without a lock."""
    lines = _read(state_dir / "journal" / f"{guest}.journal", repair=False)
    return lines[-1] if lines else None


def all_guests(state_dir: Path) -> list[str]:
    """Every guest that this host has a journal of."""
    return sorted(path.stem for path in (state_dir / "journal").glob("*.journal"))


def _encode(line: Line) -> bytes:
    document = {
        "version": VERSION,
        "epoch": line.epoch,
        "side": line.side,
        "entry": line.entry,
        "migration": line.migration,
        "peer": line.peer,
        "at": round(line.at, 3),
    }
    text = json.dumps(document)
    return f"{text}\t{xxhash.xxh3_64_hexdigest(text.encode())}\n".encode()


def _decode(raw: bytes) -> Line | None:
    """The entry, or None when the line is not whole."""
    text, _, digest = raw.rstrip(b"\n").rpartition(b"\t")
    if not raw.endswith(b"\n") or xxhash.xxh3_64_hexdigest(text).encode() != digest:
        return None
    document = json.loads(text)
    if document["version"] != VERSION:
        raise HostError(f"a journal is of version {document['version']}: use the release that wrote it")
    return Line(
        document["epoch"],
        Side(document["side"]),
        Entry(document["entry"]),
        document["migration"],
        document["peer"],
        document["at"],
    )


def _read(path: Path, *, repair: bool) -> list[Line]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    lines: list[Line] = []
    good = 0
    for piece in raw.splitlines(keepends=True):
        line = _decode(piece)
        if line is None:
            break
        lines.append(line)
        good += len(piece)
    torn = raw[good:]
    _, _, digest = torn.rstrip(b"\0").rpartition(b"\t")
    # More than a digest after a tab: not a line cut short, but one whose newline has become something else.
    past_digest = b"\t" in torn and len(digest) > _DIGEST_LENGTH
    if torn.strip(b"\0") and (b"\n" in torn or past_digest):
        raise HostError(f"{path} is damaged at byte {good}: restore it, or ask both hosts who runs it")
    if torn and repair:
        with path.open("r+b") as file:
            file.truncate(good)
            os.fsync(file.fileno())
    return lines


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{path} cannot be written ({error.strerror}): free its disk, then reconcile") from None


def _set_aside(fd: int, end: int) -> None:
    """Blocks of the disk for what will be appended at `end`; the file stays as long as it is."""
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, end, _ROOM):
        code = ctypes.get_errno()
        if code != errno.EOPNOTSUPP:  # NFS before 4.2, say: there a full disk is met when it is met
            raise OSError(code, os.strerror(code))


def _write(fd: int, line: bytes) -> None:
    """Write a line, durably. Raises OSError also when only a part fits, which is no error to write(2)."""
    written = os.write(fd, line)
    if written < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
