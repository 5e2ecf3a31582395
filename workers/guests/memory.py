"""The memory guest: a process with a working set that checks its own content, as the stages see it.

It is the demo, the load of the benchmarks, and the witness of the fault tests. On its host it is a directory,
`STATE/guests/NAME/` with guest.json (shape, RAM file), pid, control (socket) and log, and a RAM file in `ram_dir`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from config.errors import HostError, RequestError
from workers.guests.blocker import Blocker
from workers.guests.contract import IncomingState, OutgoingState, RunState, Send
from workers.guests.control import Reply, ask, check_path
from workers.guests.memory_spec import MemoryGuestSpec
from workers.guests.places import last_line, make_directory, make_ram, ram_path
from workers.guests.process_identity import ProcessIdentity
from workers.ram import BlockFile, RamBlock
from workers.ranges import PAGE_SIZE

BLOCK_ID = "ram"
DEFAULT_RAM_DIR = Path("/dev/shm")  # noqa: S108  # tmpfs that every Linux host has: guest memory, not a temporary file
ANSWER_SECONDS = 30.0
START_SECONDS = 30.0
QUIT_SECONDS = 5.0
#: Reading and comparing everything: about 1 s/GiB on an idle host, 5 to be safe on a busy one.
CHECK_SECONDS_PER_GIB = 5.0

#: Seconds for the first tick after a move, which comes every millisecond.
_FIRST_TICK = 0.2

_T = TypeVar("_T")
_ROOT = Path(__file__).resolve().parents[2]


class MemoryGuest:
    """A handle on one memory guest of this host; implements `workers.guests.contract.Guest`.

    Holds no descriptor and no thread: any number of handles may exist, in any process.
    """

    kind: ClassVar[str] = "memory"
    kernel_writes: ClassVar[bool] = False
    not_by_itself: ClassVar[str] = "it is not a QEMU guest"
    not_from_outside: ClassVar[None] = None

    def __init__(self, directory: Path) -> None:
        """Take hold of the guest in this directory. Raises HostError when its description cannot be read."""
        self._directory = directory
        try:
            made = json.loads((directory / "guest.json").read_bytes())
            self.spec = MemoryGuestSpec.from_json(made["spec"])
            self._ram = Path(made["ram"])
        except (OSError, ValueError, KeyError, TypeError, RequestError) as error:
            raise HostError(
                f"{directory} does not describe a memory guest ({error}): remove it if no guest is to be there"
            ) from None
        self.name = self.spec.name
        self._process = ProcessIdentity.read(directory / "pid")
        self.stopped_here = False

    @property
    def pid(self) -> int:
        """The process whose page tables hold the guest's RAM. Raises HostError when it is gone."""
        return self._living().pid

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.alive()

    def blocks(self) -> list[RamBlock]:
        """One block, `ram`."""
        self._living()
        return [RamBlock(BLOCK_ID, self.spec.memory)]

    def block_files(self) -> list[BlockFile]:
        """The same, with its file."""
        return [BlockFile(block, self._ram) for block in self.blocks()]

    def status(self) -> RunState:
        """Whether it runs."""
        return RunState(self._ask("query-status").value["status"])

    def blockers(self, *, hold: bool = False) -> list[Blocker]:  # noqa: ARG002  # nothing is held here
        """None, ever: nothing but this process writes its memory."""
        return []

    def stop(self) -> None:
        """Pause: when this returns, no guest instruction writes memory until `cont`. Harmless when already paused."""
        self.stopped_here = True  # also if the answer is lost
        self._ask("stop")

    def cont(self) -> None:
        """Resume. Harmless when already running."""
        self._ask("cont")
        self.stopped_here = False

    def protect(self, protecting: Callable[[], _T]) -> _T:
        """Nothing to wait for: this guest has no devices that write to its memory."""
        return protecting()

    @property
    def drained_by(self) -> str:
        """Nothing, as there is nothing to drain."""
        return ""

    def announce(self) -> None:
        """Nothing to tell: this guest has no network."""

    def save_state(self) -> bytes:
        """Device state of the paused guest: a few hundred bytes of JSON, whatever its size."""
        return str(self._ask("save").value["state"]).encode()

    def load_state(self, state: bytes) -> None:
        """Give an incoming guest its device state; it stays paused. Raises HostError when the state does not fit."""
        try:
            text = state.decode()
        except UnicodeDecodeError:
            raise HostError(f"the device state for guest {self.name} is not text: was it cut on its way?") from None
        self._ask("load", {"state": text})

    @contextlib.contextmanager
    def outgoing_state(self, send: Send) -> Iterator[OutgoingState]:
        """All of it goes in one piece, once the guest is paused."""
        yield _Outgoing(self, send)

    @contextlib.contextmanager
    def incoming_state(self, send: Send) -> Iterator[IncomingState]:
        """Loaded when all of it is there; nothing is answered."""
        del send
        yield _Incoming(self)

    def userfaultfd(self) -> int:
        """A userfaultfd of the guest's process, as a descriptor of ours; the guest keeps none."""
        descriptor = self._ask("userfaultfd").descriptor
        if descriptor is None:
            raise HostError(f"guest {self.name} sent no userfaultfd: is this process out of file descriptors?")
        return descriptor

    def description(self) -> dict[str, Any]:
        """What a destination needs to start the incoming twin."""
        self._living()
        return {"kind": self.kind, "name": self.name, "blocks": [_block(self.spec)], "shape": self.spec.to_json()}

    def query_oracle(self, *, full: bool = False) -> dict[str, Any]:
        """What the guest's own checks say; with `full` it holds its writes and checks every page first.

        Shapes: `corrupt` (by kind in `corrupt_kinds`, the first few in `examples`) and `pages_checked` count from the
        guest's birth, across moves; `full_check` holds the same four of this one check and `untouched_zero_pages`, or
        is None. Seconds: `longest_gap_seconds` since birth or `reset_gap`, `gap_p50_seconds` and `gap_p99_seconds`
        over the last minute on this host, `move_gap_seconds` (None before any move). `written_bytes`,
        `dirty_rate_actual` (bytes a second), `filled_bytes` of `used_bytes`, `sequence` (page writes since birth).
        """
        seconds = ANSWER_SECONDS + CHECK_SECONDS_PER_GIB * self.spec.memory / (1 << 30) * full
        report: dict[str, Any] = self._ask("query-oracle", {"full": full}, seconds).value
        return report

    def felt_gap(self) -> float | None:
        """By its ticks; asked right after the move it may not have ticked yet, which is waited for."""
        until = time.monotonic() + _FIRST_TICK
        while (gap := self.query_oracle()["move_gap_seconds"]) is None and time.monotonic() < until:
            time.sleep(0.005)
        return None if gap is None else float(gap)

    def reset_gap(self) -> None:
        """Count the longest gap from now on."""
        self._ask("reset-gap")

    def wait_filled(self, seconds: float) -> None:
        """Wait until every used page has been written once. Raises HostError when that takes longer."""
        until = time.monotonic() + seconds
        while (report := self.query_oracle())["filled_bytes"] < report["used_bytes"]:
            if time.monotonic() > until:
                raise HostError(f"guest {self.name} did not fill its memory within {seconds:g} s: is it paused?")
            time.sleep(0.02)

    def close(self) -> None:
        """Nothing to let go of: every question is a connection of its own."""

    def quit(self) -> None:
        """End the guest for good and remove its RAM file, socket and directory. Harmless when already gone."""
        if ProcessIdentity.read(self._directory / "pid") != self._process:
            return  # already gone; the directory, if any, belongs to a later guest of this name
        if self._process is not None and self._process.alive():
            with contextlib.suppress(HostError):
                self._ask("quit", seconds=QUIT_SECONDS)
            if not self._process.wait(QUIT_SECONDS) and not self._process.kill():
                raise HostError(f"process {self._process.pid} of guest {self.name} survives SIGKILL: look at its state")
        self._ram.unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _living(self) -> ProcessIdentity:
        if self._process is None or not self._process.alive():
            raise HostError(f"guest {self.name} has no process any more: remove what it left, and start it anew")
        return self._process

    def _ask(self, command: str, arguments: dict[str, Any] | None = None, seconds: float = ANSWER_SECONDS) -> Reply:
        self._living()
        return ask(self._directory / "control", command, arguments or {}, seconds)


class _Outgoing:
    def __init__(self, guest: MemoryGuest, send: Send) -> None:
        self._guest = guest
        self._send = send

    def prepare(self) -> None:
        """There is nothing that could go."""

    def prepared(self) -> bool:
        return True

    def save(self) -> None:
        self._send(self._guest.save_state())
        self._send(b"")

    def answer(self, piece: bytes) -> None:
        """None ever comes."""

    def completed(self) -> bool:
        return True


class _Incoming:
    def __init__(self, guest: MemoryGuest) -> None:
        self._guest = guest
        self._pieces: list[bytes] = []
        self._loaded = False

    def feed(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
        elif not self._loaded:
            self._guest.load_state(b"".join(self._pieces))
            self._loaded = True

    def loaded(self) -> bool:
        return self._loaded


def _block(spec: MemoryGuestSpec) -> dict[str, Any]:
    return {"id": BLOCK_ID, "size": spec.memory, "page_size": PAGE_SIZE}


# --- starting ---------------------------------------------------------------------------------------------------------


def start_memory_guest(state_dir: Path, ram_dir: Path, spec: MemoryGuestSpec) -> MemoryGuest:
    """Start a running guest; its first fill is under way when this returns.

    Raises RefusedError (`guest-exists`) and HostError; a start that fails leaves nothing behind.
    """
    return _start(state_dir, ram_dir, spec, incoming=False)


def incoming_memory_guest(state_dir: Path, ram_dir: Path, description: dict[str, Any]) -> MemoryGuest:
    """Start the incoming twin of the guest described: paused, its memory all holes, waiting for `load_state`.

    Raises RequestError when the description is not one of a memory guest, otherwise as `start_memory_guest`.
    """
    spec = MemoryGuestSpec.from_json(description.get("shape"))
    said = (description.get("kind"), description.get("name"), description.get("blocks"))
    if said != (MemoryGuest.kind, spec.name, [_block(spec)]):
        raise RequestError("the source does not describe a memory guest: is it of this release?")
    return _start(state_dir, ram_dir, spec, incoming=True)


def _start(state_dir: Path, ram_dir: Path, spec: MemoryGuestSpec, *, incoming: bool) -> MemoryGuest:
    directory = state_dir.resolve() / "guests" / spec.name
    check_path(directory / "control")
    with contextlib.ExitStack() as undo:
        make_directory(directory)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        ram = ram_path(ram_dir, directory)
        (directory / "guest.json").write_text(
            json.dumps({"kind": MemoryGuest.kind, "spec": spec.to_json(), "ram": str(ram)})
        )
        make_ram(ram, spec.memory, used=spec.used_bytes)
        undo.callback(ram.unlink, missing_ok=True)
        undo.callback(_end_half_started, directory)
        _spawn(directory, incoming)
        guest = MemoryGuest(directory)
        undo.pop_all()
    return guest


def _spawn(directory: Path, incoming: bool) -> None:
    """Start the process in a session of its own and wait until it can be talked to."""
    answer, ready = os.pipe()
    command = [sys.executable, "-m", "workers.guests.memory_process", str(directory), "--ready-fd", str(ready)]
    # numpy's algebra library would start a thread per core, and no guest multiplies matrices.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    with os.fdopen(answer, "rb") as answers, (directory / "log").open("ab") as log:
        try:
            process = subprocess.Popen(
                [*command, *(["--incoming"] if incoming else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                pass_fds=[ready],
                start_new_session=True,
            )
        finally:
            os.close(ready)
        _await_ready(process, directory, answers.fileno())


def _await_ready(process: subprocess.Popen[bytes], directory: Path, answer: int) -> None:
    """Read what the guest says about its start, up to the end: the process that we see only forks it and ends."""
    said, until = b"", time.monotonic() + START_SECONDS
    while select.select([answer], [], [], max(0.0, until - time.monotonic()))[0]:
        if not (got := os.read(answer, 4096)):
            break
        said += got
    else:
        process.kill()
        said = f"it said nothing for {START_SECONDS:g} s".encode()
    process.wait()
    if said != b"ready":
        reason = said.decode(errors="replace") or last_line(directory / "log")
        raise HostError(f"guest {directory.name} did not start: {reason}")


def _end_half_started(directory: Path) -> None:
    if process := ProcessIdentity.read(directory / "pid"):
        process.kill()
