"""An attempt on disk: the directory that ties a mover to whoever supervises it, before and after a restart.

    <state_dir>/movers/<migration>.<epoch>.<side>/
        job.json      what was asked (no secrets); there before the claim, so that a restarted worker knows its nonce
        go            there once it was let onto the links; until then a source waits, connected, before it sends
        lock          there once the mover was started; flocked by it for as long as it lives: the kernel's own word
        status.json   what the mover says of itself, replaced atomically; `outcome` set means: it is done
        log           its standard error

The supervisor in the Celery worker reads these, signals the mover (SIGTERM: cancel), and removes the directory when
the outcome has reached the record. A directory whose lock is free and whose status has no outcome was cut off:
`reconcile` settles it from the journal.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from config.errors import HostError
from workers.pairing.contract import Side, Ticket

VERSION = 1
_LOOK = 0.02  # s between two looks at a mover that cannot be waited on
_LAST_WORDS = 4096  # bytes of a mover's log that outlive it
#: The mover's command; its directory follows as the only argument.
MOVER = (sys.executable, "-m", "workers.mover")


@dataclass(frozen=True, slots=True)
class Job:
    """What a mover is asked to do. `capabilities` and `parameters` are in their canonical JSON forms."""

    migration: str
    guest: str
    epoch: int
    side: Side
    nonce: str
    host: str
    peer_host: str
    #: The guest's memory in bytes, as admission reserved it at the destination.
    memory: int
    capabilities: Mapping[str, Any]
    parameters: Mapping[str, Any]
    #: Let onto the links already when this was written; later, the file `go` says it.
    granted: bool = False

    @property
    def ticket(self) -> Ticket:
        """The attempt as pairing knows it."""
        return Ticket(self.migration, self.guest, self.epoch, self.side, self.nonce)

    @property
    def source(self) -> str:
        """The host that the guest leaves."""
        return self.host if self.side is Side.SOURCE else self.peer_host

    @property
    def destination(self) -> str:
        """The host that the guest goes to."""
        return self.peer_host if self.side is Side.SOURCE else self.host


@dataclass(frozen=True, slots=True)
class Status:
    """What a mover says of itself.

    Units: bytes, seconds, bytes/s. `state` is QEMU's migration state; `outcome` is None while it works, then
    `completed`, `failed`, `cancelled` or `unresolved` (given away, not confirmed: reconcile must finish it).
    """

    state: str = "setup"
    phase: str = "pairing"
    outcome: str | None = None
    reason: str | None = None
    message: str | None = None
    #: Seconds per finished span: start, pairing, registration, bulk, rounds, downtime, deregistration, total; at the
    #: destination also twin (started), handover, and `guest_gap`, for which the guest itself did not run, where it can
    #: say so.
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: When finished spans began: seconds on this mover's own monotonic clock since it was ready to work; `start`, its
    #: process's own, lies before. Of `rounds`, when the last was; not of registration and total.
    began: Mapping[str, float] = field(default_factory=dict)
    #: On the same clock: `greeted`, one moment for both sides to within one message's way, by which their clocks can be
    #: laid beside each other; and when its journal reached each state of the handover (`ready`, `given`, `taken`, …).
    moments: Mapping[str, float] = field(default_factory=dict)
    #: One entry per finished round: index, kind, bytes, sent, seconds, began (as above); of all but the last: dirty
    #: (bytes found after it), dirty_rate (bytes/s), at (seconds since the bulk round began), expected_downtime, verdict
    #: and its reason.
    rounds: tuple[Mapping[str, Any], ...] = ()
    #: total, transferred, remaining, skipped as zero, registered, and the most that ever was (registered_most).
    bytes: Mapping[str, int] = field(default_factory=dict)
    #: transfer, dirty: latest measured rates.
    rates: Mapping[str, float] = field(default_factory=dict)
    #: What was agreed and chosen, with reasons: transport, channels, chunk size, tracker, policy, fall-backs.
    choices: Mapping[str, Any] = field(default_factory=dict)
    #: At the source, once its link is closed: the transport's `kind`, and its `Figures`.
    transport: Mapping[str, Any] = field(default_factory=dict)


class Attempt:
    """One attempt's directory on this host."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of(cls, state_dir: Path, ticket: Ticket) -> Attempt:
        """Where this attempt lives, whether it exists yet or not."""
        return cls(state_dir / "movers" / f"{ticket.migration}.{ticket.epoch}.{ticket.side}")

    @classmethod
    def all(cls, state_dir: Path) -> Iterator[Attempt]:
        """Every attempt on this host that was not removed yet, oldest first."""
        for path in sorted((state_dir / "movers").glob("[!.]*"), key=_age):
            if (path / "job.json").exists():
                yield cls(path)

    @classmethod
    def sweep(cls, state_dir: Path) -> None:
        """Remove what a crash within `prepare` left; a minute old, so that nobody is still writing it."""
        for path in (state_dir / "movers").glob(".fresh-*"):
            if time.time() - _age(path) > 60:
                shutil.rmtree(path, ignore_errors=True)

    def prepare(self, job: Job) -> bool:
        """Write the job down; False when this attempt is on this host already (a second delivery)."""
        self.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Renamed into place whole: a crash in between leaves no directory that looks like an attempt and is none.
        fresh = Path(tempfile.mkdtemp(prefix=".fresh-", dir=self.directory.parent))
        _replace(fresh / "job.json", {"version": VERSION, **asdict(job)}, durable=True)
        if job.granted:
            Attempt(fresh).grant()
        try:
            fresh.rename(self.directory)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def adopt(self, job: Job) -> bool:
        """Write down an attempt that the record says is this host's and whose directory is gone, as one cut off."""
        if not self.prepare(job):
            return False
        (self.directory / "lock").touch(0o600)
        return True

    def grant(self) -> None:
        """It may send."""
        with suppress(FileNotFoundError):  # removed since: it has ended
            (self.directory / "go").touch(0o600)

    def granted(self) -> bool:
        """Whether it may send."""
        return (self.directory / "go").exists()

    def started(self) -> bool:
        """Whether a mover was ever started for it."""
        return (self.directory / "lock").exists()

    def start(self, environment: Mapping[str, str], command: Sequence[str] = MOVER) -> subprocess.Popen[bytes]:
        """Start the mover in a session of its own. `environment` (`Settings.environment()`) is added to this process's.

        Raises HostError when it was started before.
        """
        try:
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise HostError(f"the mover of {self.directory.name} was started before; it is not started twice") from None
        try:
            # Locked here and inherited: an flock belongs to the open file, so there is no instant at which a
            # freshly started mover could be taken for a dead one.
            fcntl.flock(lock, fcntl.LOCK_EX)
            with (self.directory / "log").open("wb") as log:
                return subprocess.Popen(
                    [*command, str(self.directory)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    env={**os.environ, **environment},
                    start_new_session=True,
                    cwd=Path(__file__).parent.parent,
                )
        finally:
            os.close(lock)

    def begin(self) -> Job:
        """The mover's first act: say which process it is, and read what was asked."""
        _replace(self.directory / "pid", {"pid": os.getpid()})
        return self.job()

    def job(self) -> Job:
        """What was asked."""
        document = _read(self.directory / "job.json")
        if document is None or document.pop("version", None) != VERSION:
            raise HostError(
                f"{self.directory}/job.json is of another version: finish it with the release that wrote it"
            )
        return Job(**{**document, "side": Side(document["side"])})

    def status(self) -> Status:
        """What the mover last said; the default when it said nothing yet, or what it said is damaged."""
        try:
            document = _read(self.directory / "status.json")
        except HostError:  # it is not synced: a host that lost power may have kept its name and lost its text
            document = None
        if document is None:
            return Status()
        document["rounds"] = tuple(document.get("rounds", ()))
        # A mover of a newer release, whose worker was replaced by an older one, may say more than is known here.
        known = {each.name for each in fields(Status)}
        return Status(**{name: value for name, value in document.items() if name in known})

    def report(self, status: Status) -> None:
        """Replace what is said (the mover, and reconcile after it)."""
        _replace(self.directory / "status.json", asdict(status))

    def alive(self) -> bool:
        """Whether the mover lives: the kernel frees its lock with its last descriptor."""
        try:
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def cancel(self) -> None:
        """Ask the mover to cancel. Too late once the guest was given away; then it goes on to the end."""
        with self._mover() as handle:
            # Checked with the pidfd in hand: the pid cannot have passed to a stranger.
            if handle is not None and self.alive():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGTERM)

    def wait(self, timeout: float) -> bool:
        """Whether the mover ended within `timeout` seconds; its end is known at once."""
        deadline = time.monotonic() + timeout
        with self._mover() as handle:
            while self.alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if handle is None or _ended(handle, left):  # no pid yet, or the kernel is still closing its files
                    time.sleep(min(left, _LOOK))
        return True

    @contextmanager
    def _mover(self) -> Iterator[int | None]:
        """A pidfd, readable from the process's end on; None when there is no such process, or nobody knows it."""
        try:
            document = _read(self.directory / "pid")
            handle = None if document is None else os.pidfd_open(document["pid"])
        except (OSError, HostError):  # gone; or, after a loss of power, another's number, or no text at all
            handle = None
        try:
            yield handle
        finally:
            if handle is not None:
                os.close(handle)

    def last_words(self) -> str:
        """The end of the mover's log, "" when there is none."""
        try:
            with (self.directory / "log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def remove(self) -> None:
        """Forget the attempt."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _ended(handle: int, seconds: float) -> bool:
    """Whether the process of this pidfd ends within `seconds`."""
    ending = select.poll()
    ending.register(handle, select.POLLIN)
    return bool(ending.poll(seconds * 1000))


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed since it was listed
        return 0.0


def _replace(path: Path, document: Mapping[str, Any], *, durable: bool = False) -> None:
    """`durable`: the text outlives a loss of power whenever the name does."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w") as file:
            json.dump(document, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise HostError(f"{path} is damaged: not JSON") from None
    if not isinstance(document, dict):
        raise HostError(f"{path} is damaged: not an object")
    return document
