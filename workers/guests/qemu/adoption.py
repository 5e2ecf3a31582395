"""Taking over a QEMU that somebody else started, when our own command line would give the very same machine.

Its device state only loads into a machine of the same devices at the same addresses, so that is not hoped for: a shape
is read from what QEMU says of itself, a paused twin is started from it, and everything that both say is compared. What
is refused is left as it was: nothing of the QEMU is changed either way.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from config.errors import HostError, RefusedError, RequestError
from workers.guests.blocker import Blocker
from workers.guests.places import make_directory, make_ram
from workers.guests.process_identity import ProcessIdentity
from workers.guests.qemu.blockers import blockers_at_source
from workers.guests.qemu.command import Places, command_line
from workers.guests.qemu.guest import BINARY, QemuGuest, describe
from workers.guests.qemu.inspection import facts_of
from workers.guests.qemu.likeness import Likeness, differences, likeness_of
from workers.guests.qemu.monitor import Monitor
from workers.guests.qemu.probing import not_outliving_us
from workers.guests.qemu.reading import read_shape
from workers.guests.qemu.spec import QemuGuestSpec

NOT_ADOPTABLE = "not-adoptable"
_UNLIKE, _UNREADABLE = "unlike-ours", "not-in-a-shape"
_ANEW = "start the guest anew with `droveway guest start`, or with such a command line"


@dataclass(frozen=True, slots=True)
class Stranger:
    """A QEMU of somebody else's: its process, its QMP socket, and a second one when it has one."""

    pid: int
    monitor: Path
    status: Path


def adopt_qemu_guest(state_dir: Path, ram_dir: Path, name: str, stranger: Stranger) -> QemuGuest:
    """Make a guest of this host out of it. Raises RefusedError (`guest-exists`, `not-adoptable`), HostError."""
    process = ProcessIdentity.of(stranger.pid)
    if process is None:
        raise RefusedError(f"there is no process {stranger.pid} on this host", NOT_ADOPTABLE)
    with Monitor(name, stranger.monitor) as monitor:
        _belong_together(monitor, stranger)
        spec, ram = _judged(monitor, name, stranger.pid, ram_dir)
    directory = state_dir.resolve() / "guests" / name
    binary = str(Path(f"/proc/{stranger.pid}/exe").readlink())
    places = Places(binary, ram, directory, stranger.monitor, stranger.status)
    with ExitStack() as undo:
        make_directory(directory)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        process.write(directory / "pid")
        describe(spec, places)
        guest = QemuGuest(directory)
        guest.status()
        undo.pop_all()
    return guest


def _belong_together(monitor: Monitor, stranger: Stranger) -> None:
    """The socket leads to that process: its processors are threads of it."""
    threads = {each["thread-id"] for each in monitor.execute("query-cpus-fast")}
    if not all(Path(f"/proc/{stranger.pid}/task/{thread}").exists() for thread in threads):
        raise RefusedError(f"{stranger.monitor} is not a monitor of process {stranger.pid}", NOT_ADOPTABLE)


def _judged(monitor: Monitor, name: str, pid: int, ram_dir: Path) -> tuple[QemuGuestSpec, Path]:
    """Its shape, and its RAM file. Raises RefusedError with all that speaks against it."""
    facts = facts_of(monitor, pid)
    against = blockers_at_source(facts)
    shape, unreadable = read_shape(monitor, pid, name)
    against += [Blocker(_UNREADABLE, what, _ANEW) for what in unreadable]
    spec = None
    try:
        spec = QemuGuestSpec.from_json(shape)
    except RequestError as error:
        against.append(Blocker(_UNREADABLE, str(error), _ANEW))
    if spec is not None:
        against += [Blocker(_UNLIKE, what, _ANEW) for what in _unlike(likeness_of(monitor), spec, ram_dir)]
    path = next((Path(each.path) for each in facts.backends if each.name == facts.ram_id), None)
    if spec is None or path is None or against:
        named = "; ".join(f"{each.what} ({each.reason})" for each in against)
        raise RefusedError(
            f"process {pid} cannot become the guest {name}: {named}. Nothing was changed.", NOT_ADOPTABLE
        )
    return spec, path.resolve()


def _unlike(theirs: Likeness, spec: QemuGuestSpec, ram_dir: Path) -> Sequence[str]:
    try:
        with _twin(spec, ram_dir) as monitor:
            return differences(theirs, likeness_of(monitor))
    except HostError as error:
        return [f"our own QEMU cannot be started in its shape: {error}"]


@contextmanager
def _twin(spec: QemuGuestSpec, ram_dir: Path) -> Iterator[Monitor]:
    """A paused machine of this shape, for the time of the body. It never runs, so its memory stays all holes."""
    # A tap device has one user, and which back-end a card has is nothing that the guest sees.
    alone = spec.model_copy(update={"nics": tuple(nic.model_copy(update={"tap": None}) for nic in spec.nics)})
    with tempfile.TemporaryDirectory(prefix="droveway-twin-") as made, ExitStack() as cleanup:
        directory = Path(made)
        places = Places(BINARY, ram_dir.resolve() / f"{directory.name}.ram", directory)
        make_ram(places.ram, spec.memory, used=0)
        cleanup.callback(places.ram.unlink, missing_ok=True)
        monitor = cleanup.enter_context(not_outliving_us(command_line(alone, places, incoming=True)))
        # It has opened them: whoever kills us from here on leaves nothing behind.
        places.ram.unlink()
        shutil.rmtree(directory)
        yield monitor
