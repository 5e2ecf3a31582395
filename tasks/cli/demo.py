"""`droveway demo`: a fleet of two hosts on this machine, a guest under load, moved to and fro; nothing stays."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.text import Text

from config.errors import HostError, MigrationFailedError
from config.redis import coordination_client, reaching_redis
from config.settings import RedisSettings, Settings
from tasks.bell import Bell
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
from tasks.one_machine.fleet import LocalFleet, fresh_directory, sweep
from tasks.one_machine.redis_server import OwnRedis
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import MemoryGuestSpec
from workers.ram import available_memory

GUEST = "demo"
#: From where, to where, rdma-pin-all.
_MOVES = (("alpha", "beta", "off"), ("beta", "alpha", "on"))
#: Seconds in which a guest writes its memory once: it fills 1 GiB in about one on an idle host.
_FILL_SECONDS_PER_GIB = 60.0
_LOG_LINES = 15


@click.command(cls=SettingsCommand)
@click.option("--memory", type=SIZE, default="1G", show_default=True, metavar="SIZE", help="The guest's memory.")
@click.option(
    "--dirty-rate", type=RATE, default="200M", show_default=True, metavar="RATE", help="What it writes a second."
)
@json_option
@click.pass_context
def command(context: click.Context, memory: int, dirty_rate: int, as_json: bool) -> None:
    """Move a guest that is writing to its memory from one host to another and back, on this machine.

    Starts a Redis of its own (unless one is set), the workers of two hosts alpha and beta, and a guest; moves it once
    with rdma-pin-all off and once with it on; lets the guest check every page after each move. Takes about a
    minute, needs twice the guest's memory, and leaves nothing behind.

    \b
    Examples:
      droveway demo
      droveway demo --memory 256M --dirty-rate 50M --json
    """
    spec = MemoryGuestSpec(GUEST, memory, dirty_rate)
    _refuse_what_does_not_fit(spec)
    settings = invocation_of(context).settings
    said = progress_console(as_json)
    with ending_on_sigterm():
        moves = _Demo(settings, spec, said).run()
    if not as_json:
        show(comparison(moves))
    _conclude(moves, as_json=as_json)


def _refuse_what_does_not_fit(spec: MemoryGuestSpec) -> None:
    needed, free = 2 * spec.used_bytes, available_memory()
    if free < needed:
        raise HostError(
            f"two copies of the guest need {size(needed)}, this machine has {size(free)} available: choose a smaller "
            "--memory"
        )


def _conclude(moves: list[DemoMove], *, as_json: bool) -> None:
    document = {"migrations": [move.to_json() for move in moves]}
    corrupt = sum(move.corrupt for move in moves)
    if corrupt:
        message = f"CORRUPT: the guest found {corrupt} pages that are not as it wrote them."
        raise EndedError(message, "corrupt", MigrationFailedError.exit_code, document)
    if as_json:
        click.echo(json.dumps(document))
    else:
        pages = sum(move.pages_checked for move in moves)
        click.echo(f"The guest moved {len(moves)} times and found all {pages:,} pages as it wrote them.")


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
    """One run. Everything that it starts is on the stack that clears up."""

    def __init__(self, settings: Settings, spec: MemoryGuestSpec, said: Console | None) -> None:
        self._settings = settings
        self._spec = spec
        self._said = said

    def run(self) -> list[DemoMove]:
        """Both moves. Raises what went wrong; everything is cleared up by then."""
        stack = ExitStack()
        try:
            for directory in sweep():
                self._tell(f"cleared up after a demo that was killed: {directory}")
            fleet = self._fleet(stack)
            return self._moves(fleet)
        finally:
            with _undisturbed():
                stack.close()

    def _fleet(self, stack: ExitStack) -> LocalFleet:
        directory = fresh_directory()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        redis = self._redis(stack, directory)
        fleet = LocalFleet(redis, directory=directory, ram_bytes=2 * self._spec.used_bytes)
        stack.callback(fleet.close)
        with self._logs_told(fleet):
            fleet.start()
        self._tell("workers of alpha and beta are up: a process for each host and role")
        return fleet

    def _redis(self, stack: ExitStack, directory: Path) -> RedisSettings:
        """The server that was set, with keys of our own; else a server of our own."""
        given = self._settings.redis
        if "url" in given.model_fields_set:
            redis = given.model_copy(update={"prefix": f"droveway-demo-{secrets.token_hex(4)}:"})
            drop_keys(redis)  # none is there: this only finds out whether the server answers
            stack.callback(drop_keys, redis)
            self._tell(f"Redis at {redis.shown_url}, keys under {redis.prefix}")
            return redis
        server = OwnRedis(directory)
        stack.callback(server.close)
        self._tell(f"{server.program} of our own, on a socket in {directory}")
        return RedisSettings.model_validate({"url": server.url})

    def _moves(self, fleet: LocalFleet) -> list[DemoMove]:
        with closing(Ledger(fleet.settings)) as ledger, self._logs_told(fleet):
            self._start_guest(fleet, ledger)
            bell = bell_for(fleet.settings)
            return [self._move(fleet, ledger, bell, *way) for way in _MOVES]

    def _start_guest(self, fleet: LocalFleet, ledger: Ledger) -> None:
        host = fleet.hosts[_MOVES[0][0]]
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
        if self._said is not None:
            self._said.print(Text(what, style="dim"), soft_wrap=True)

    @contextmanager
    def _logs_told(self, fleet: LocalFleet) -> Iterator[None]:
        """When the body fails, the last lines of every log, before they are removed."""
        try:
            yield
        except Exception:
            for log in fleet.logs():
                lines = log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
                click.echo(f"--- {log.relative_to(fleet.directory)}", err=True)
                click.echo("\n".join(lines), err=True)
            raise


def _guest(fleet: LocalFleet, host: str) -> MemoryGuest:
    guest = fleet.hosts[host].guests.open(GUEST)
    assert isinstance(guest, MemoryGuest)
    return guest


def drop_keys(redis: RedisSettings) -> None:
    """Remove every key under our prefix. Raises UnreachableError."""
    with coordination_client(redis) as client, reaching_redis(redis):
        for key in client.scan_iter(match=f"{redis.prefix}*", count=1000):
            client.delete(key)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Clearing up is not interrupted by another Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
