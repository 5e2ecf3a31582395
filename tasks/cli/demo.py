"""`droveway demo`: a fleet of two hosts on this machine, a guest under load, moved to and fro; nothing stays."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console

from config.errors import HostError, MigrationFailedError
from config.settings import Settings
from tasks.bell import Bell
from tasks.cli.demo_fleet import GUEST, MOVES, demo_fleet, tell
from tasks.cli.demo_vm import Counter, VmDemo, spec_of
from tasks.cli.endings import EndedError
from tasks.cli.following import ending, follow
from tasks.cli.guest import RATE, SIZE, announce
from tasks.cli.invocation import SettingsCommand, bell_for, invocation_of, json_option
from tasks.cli.migrate import begin, request_for
from tasks.cli.output import progress_console, show
from tasks.cli.quantities import byte_rate, size
from tasks.cli.rendering.comparison import DemoMove, comparison
from tasks.cli.rendering.facts import Facts
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec
from workers.ram import available_memory

#: Seconds in which a guest writes its memory once: it fills 1 GiB in about one on an idle host.
_FILL_SECONDS_PER_GIB = 60.0


@click.command(cls=SettingsCommand)
@click.option("--memory", type=SIZE, default="1G", show_default=True, metavar="SIZE", help="The guest's memory.")
@click.option(
    "--dirty-rate", type=RATE, default="200M", show_default=True, metavar="RATE", help="What it writes a second."
)
@click.option("--vm", is_flag=True, help="A virtual machine: an unmodified QEMU with a small Linux.")
@json_option
@click.pass_context
def command(context: click.Context, memory: int, dirty_rate: int, vm: bool, as_json: bool) -> None:
    """Move a guest that is writing to its memory from one host to another and back, on this machine.

    Starts a Redis of its own (unless one is set), the workers of two hosts alpha and beta, and a guest; moves it once
    with rdma-pin-all off and once with it on; lets the guest check every page after each move. Takes about a
    minute, needs twice the guest's memory, and leaves nothing behind.

    With --vm the guest is a virtual machine, emulated by QEMU, whose console is shown beside the moves. It counts
    there, and checks its memory. That needs root, QEMU, and what `make lab` prepares in a checkout for it to boot.

    \b
    Examples:
      droveway demo
      droveway demo --memory 256M --dirty-rate 50M --json
      droveway demo --vm
    """
    settings, said = invocation_of(context).settings, progress_console(as_json)
    demo: _Demo | VmDemo
    if vm:
        demo = VmDemo(settings, spec_of(memory, dirty_rate), said)
        _refuse_what_does_not_fit(memory)
    else:
        spec = MemoryGuestSpec(GUEST, memory, dirty_rate)
        _refuse_what_does_not_fit(spec.used_bytes)
        demo = _Demo(settings, spec, said)
    with ending_on_sigterm():
        moves = demo.run()
    if not as_json:
        show(comparison(moves))
    _conclude(moves, demo.counter if isinstance(demo, VmDemo) else None, as_json=as_json)


def _refuse_what_does_not_fit(used: int) -> None:
    needed, free = 2 * used, available_memory()
    if free < needed:
        raise HostError(
            f"two copies of the guest need {size(needed)}, this machine has {size(free)} available: choose a smaller "
            "--memory"
        )


def _conclude(moves: list[DemoMove], counter: Counter | None, *, as_json: bool) -> None:
    document: dict[str, Any] = {"migrations": [move.to_json() for move in moves]}
    if counter:
        document["counter"] = counter.to_json()
    corrupt = sum(move.corrupt for move in moves)
    if corrupt:
        message = f"CORRUPT: the guest found {corrupt} pages that are not as it wrote them."
        raise EndedError(message, "corrupt", MigrationFailedError.exit_code, document)
    if counter and counter.missing:
        message = f"CORRUPT: {counter.missing} of the numbers that the guest counted were never heard."
        raise EndedError(message, "corrupt", MigrationFailedError.exit_code, document)
    if as_json:
        click.echo(json.dumps(document))
    else:
        pages = sum(move.pages_checked for move in moves)
        click.echo(f"The guest moved {len(moves)} times and found all {pages:,} pages as it wrote them.")
        if counter:
            click.echo(f"On its console it counted from {counter.first} to {counter.last}, and left no number out.")


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the body as Ctrl-C does, so that it clears up."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Demo:
    """One run: what is done with the fleet while it is there."""

    def __init__(self, settings: Settings, spec: MemoryGuestSpec, said: Console | None) -> None:
        self._settings = settings
        self._spec = spec
        self._said = said

    def run(self) -> list[DemoMove]:
        """Both moves. Raises what went wrong; everything is cleared up by then."""
        with (
            demo_fleet(self._settings.redis, 2 * self._spec.used_bytes, self._tell) as fleet,
            closing(Ledger(fleet.settings)) as ledger,
        ):
            self._start_guest(fleet, ledger)
            bell = bell_for(fleet.settings)
            return [self._move(fleet, ledger, bell, *way) for way in MOVES]

    def _start_guest(self, fleet: LocalFleet, ledger: Ledger) -> None:
        host = fleet.hosts[MOVES[0][0]]
        guest = host.guests.start(self._spec)
        announce(ledger, host.settings, guest)
        self._tell(
            f"a guest of {size(self._spec.memory)} on {host.name} that writes {byte_rate(self._spec.dirty_rate)}"
        )
        guest.wait_filled(10 + _FILL_SECONDS_PER_GIB * self._spec.memory / (1 << 30))

    def _move(
        self, fleet: LocalFleet, ledger: Ledger, bell: Bell, source: str, destination: str, pinned: str
    ) -> DemoMove:
        _guest(fleet, source).reset_gap()
        request = request_for(GUEST, destination, (f"rdma-pin-all={pinned}",))
        begin(ledger, bell, request)
        record = follow(ledger, request.migration, self._said)
        if error := ending(record):
            raise error
        guest = _guest(fleet, destination)
        gap = guest.query_oracle()["longest_gap_seconds"]  # before the full check, which holds the guest's writes
        check = guest.query_oracle(full=True)["full_check"]
        return DemoMove(Facts.of(record), check["pages_checked"], check["corrupt"], gap)

    def _tell(self, what: str) -> None:
        tell(self._said, what)


def _guest(fleet: LocalFleet, host: str) -> MemoryGuest:
    guest = fleet.hosts[host].guests.open(GUEST)
    assert isinstance(guest, MemoryGuest)
    return guest
