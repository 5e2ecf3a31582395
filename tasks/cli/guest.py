"""`droveway guest`: the guests of this host, virtual machines and memory guests."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from config.errors import HostError, MigrationFailedError, RefusedError, RequestError, UnreachableError
from config.names import check_name
from config.settings import Settings
from config.units import BYTES, BYTES_PER_SECOND, Unit
from tasks.cli.console import console
from tasks.cli.endings import EndedError
from tasks.cli.invocation import Invocation, SettingsGroup, invocation_of, json_option, make_directories
from tasks.cli.output import show
from tasks.cli.rendering.tables import guests, oracle
from tasks.ledger.ledger import Ledger
from tasks.records import GuestRecord, LocalGuest
from workers.guests.memory import MemoryGuest
from workers.guests.memory_spec import PATTERNS, MemoryGuestSpec
from workers.guests.qemu.adoption import Stranger
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.spec import QemuGuestSpec
from workers.handover.journal import driving
from workers.handover.machine import Entry
from workers.settle import highest_epochs, owned_here

#: What a journal says last while nobody has decided yet whose the guest is.
_UNDECIDED = frozenset({Entry.BEGUN, Entry.READY, Entry.GIVEN})


class _Quantity(click.ParamType[int]):
    """A number of one unit, as people write it."""

    def __init__(self, unit: Unit) -> None:
        self.name = unit.name
        self._unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The whole number."""
        try:
            return self._unit.whole(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE, RATE = _Quantity(BYTES), _Quantity(BYTES_PER_SECOND)


_SOCKET = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


@click.group(cls=SettingsGroup)
def command() -> None:
    """The guests of this host: virtual machines (QEMU), and memory guests.

    A memory guest is a process with a working set that checks its own memory all the time. It stands in for a virtual
    machine: to try a fleet out, to measure it, and to find out whether a move harms memory.
    """


@command.command()
@click.argument("name", metavar="NAME|FILE.toml")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Like 1G or 512M; a multiple of 4 KiB.")
@click.option("--dirty-rate", type=RATE, default="0", metavar="RATE", help="What it writes in a second, like 200M.")
@click.option("--pattern", type=click.Choice(PATTERNS), default="random", show_default=True, help="Where it writes.")
@click.option("--used", type=float, default=0.8, show_default=True, help="The part of the memory it ever touches.")
@click.option("--anti-affinity", metavar="GROUP", multiple=True, help="Kept apart from the others of this group.")
@click.option("--needs", metavar="KEY=VALUE", multiple=True, help="A label that its host must have.")
@json_option
@click.pass_context
def start(
    context: click.Context,
    name: str,
    *,
    memory: int | None,
    dirty_rate: int,
    pattern: str,
    used: float,
    anti_affinity: tuple[str, ...],
    needs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start a guest on this host: a virtual machine from a file, or a memory guest from the options.

    It is a process of its own and outlives this command and every worker. What a file may say is shown in
    ops/examples/vm.toml.

    \b
    Examples:
      droveway guest start vm.toml
      droveway guest start web --memory 1G --dirty-rate 200M
      droveway guest start db --memory 4G --dirty-rate 1Gbit/s --pattern hot --used 0.5
    """
    invocation = invocation_of(context)
    guest: MemoryGuest | QemuGuest
    if name.endswith(".toml"):
        _refuse_options(context)
        machine = QemuGuestSpec.from_file(Path(name))
        make_directories(invocation.settings)
        warning = _refuse_double(invocation, machine.name)
        guest = invocation.guests.start_qemu(machine)
    else:
        if memory is None:
            raise RequestError("a memory guest needs --memory; a virtual machine a file that ends in .toml.")
        spec = MemoryGuestSpec(
            check_name("guest", name), memory, dirty_rate, pattern, used, anti_affinity=anti_affinity, needs=needs
        )
        make_directories(invocation.settings)
        warning = _refuse_double(invocation, name)
        guest = invocation.guests.start(spec)
    warning = warning or _announced(invocation, guest)
    _said(invocation, guest, warning, as_json=as_json)


def _refuse_options(context: click.Context) -> None:
    """What a virtual machine is stands in its file alone."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("memory", "dirty_rate", "pattern", "used", "anti_affinity", "needs")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise RequestError(f"{', '.join(given)} are for memory guests; write what the machine is to have in its file.")


def _said(invocation: Invocation, guest: MemoryGuest | QemuGuest, warning: str | None, *, as_json: bool) -> None:
    if as_json:
        host = invocation.settings.host.name
        said = {"guest": guest.name, "host": host, "pid": guest.pid, "spec": guest.spec.to_json()}
        click.echo(json.dumps(said | {"warning": warning}))
        return
    click.echo(f"guest {guest.name} runs on {invocation.settings.host.name} as process {guest.pid}")
    if warning:
        click.echo(f"droveway: {warning}", err=True)


@command.command()
@click.argument("name")
@click.option("--pid", type=click.IntRange(2), required=True, metavar="PID", help="QEMU's process.")
@click.option("--monitor", type=_SOCKET, required=True, metavar="SOCKET", help="A QMP socket of it that is free.")
@click.option("--status", type=_SOCKET, metavar="SOCKET", help="A second one, to ask it while it moves.")
@json_option
@click.pass_context
def adopt(context: click.Context, name: str, pid: int, monitor: Path, status: Path | None, as_json: bool) -> None:
    """Take over a virtual machine that somebody else started, as the guest NAME of this host.

    Its QEMU goes on as it is. It is taken when `droveway guest start` would give the very same machine: memory in one
    shared memory-backend-file, and virtio disks, cards and a balloon where our own command line puts them. A paused
    twin is started to compare every device with; what differs, or could not be moved, is listed, and nothing changed.

    From then on it is listed, stopped and moved like any other. Once it has moved away, or was stopped, its RAM file is
    removed, wherever that is: it would only hold memory. Whoever started it must let go of it: of its monitor, of its
    RAM file, and of starting it again.

    \b
    Example:
      droveway guest adopt web --pid 4711 --monitor /run/web/qmp
    """
    invocation = invocation_of(context)
    make_directories(invocation.settings)
    stranger = Stranger(pid, monitor, status or monitor)
    warning = _refuse_double(invocation, check_name("guest", name))
    guest = invocation.guests.adopt(name, stranger)
    warning = warning or _announced(invocation, guest)
    _said(invocation, guest, warning, as_json=as_json)


def _refuse_double(invocation: Invocation, name: str) -> str | None:
    """Refuse a second guest of this name in the fleet; a warning when the fleet cannot be asked."""
    try:
        with invocation.ledger() as ledger:
            known = ledger.fleet().guests.get(name)
    except UnreachableError as error:
        return f"the fleet does not know of {name} before a worker of this host announces it: {error}"
    if known is not None and known.host != invocation.settings.host.name:
        raise RefusedError(f"a guest {name} is on {known.host} already; choose another name.", "guest-exists")
    return None


def _announced(invocation: Invocation, guest: MemoryGuest | QemuGuest) -> str | None:
    """Tell the fleet; a warning when it cannot be told."""
    try:
        with invocation.ledger() as ledger:
            announce(ledger, invocation.settings, guest)
    except UnreachableError as error:
        return f"the fleet does not know of {guest.name} before a worker of this host announces it: {error}"
    return None


def announce(ledger: Ledger, settings: Settings, guest: MemoryGuest | QemuGuest) -> None:
    """Tell the fleet of a guest that was just started. Raises UnreachableError."""
    epoch = highest_epochs(settings.host.state_dir).get(guest.name, 0)
    spec = guest.spec
    model = spec.cpu_model if isinstance(spec, QemuGuestSpec) else ""
    started = LocalGuest(guest.name, spec.memory, epoch, None, spec.anti_affinity, spec.needs, model)
    ledger.announce(settings.host.name, started)


def _gone(invocation: Invocation, name: str) -> None:
    """Tell the fleet, which else learns it from this host's heartbeats, some seconds later."""
    with contextlib.suppress(UnreachableError, HostError), invocation.ledger() as ledger:
        ledger.gone(invocation.settings.host.name, name)


@command.command("list")
@json_option
@click.pass_context
def list_guests(context: click.Context, as_json: bool) -> None:
    """List the guests of this host, the dead ones too, and which migration has them.

    \b
    Example:
      droveway guest list
    """
    invocation = invocation_of(context)
    local = invocation.guests.list()
    known = _known(invocation)
    if as_json:
        rows = [
            asdict(guest) | {"migration": known[guest.name].active if guest.name in known else None} for guest in local
        ]
        click.echo(json.dumps({"host": invocation.settings.host.name, "guests": rows}))
    elif local:
        show(guests(local, known))
    else:
        click.echo(f"{invocation.settings.host.name} has no guest; `droveway guest start` makes one")


def _known(invocation: Invocation) -> dict[str, GuestRecord]:
    """What the record says of guests; nothing when it cannot be asked, for this host's disk says the rest."""
    try:
        with invocation.ledger() as ledger:
            return dict(ledger.fleet().guests)
    except UnreachableError:
        return {}


@command.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even while it is undecided which host the guest belongs to.")
@json_option
@click.pass_context
def stop(context: click.Context, name: str, force: bool, as_json: bool) -> None:
    """End a guest for good: its process, its memory, what it left. Also cleans up after a dead one.

    \b
    Example:
      droveway guest stop web
    """
    invocation = invocation_of(context)
    invocation.guests.open(check_name("guest", name))
    with driving(invocation.settings.host.state_dir, name) as journal:
        if journal.last is not None and journal.last.entry in _UNDECIDED and not force:
            raise RefusedError(
                f"{name} was being handed over with {journal.last.peer} when its mover ended; run "
                "`droveway reconcile`, or add --force if its memory may be lost.",
                "unresolved",
            )
        ours = owned_here(invocation.settings.host.state_dir, name)
        invocation.guests.stop(name)
    if ours:
        _gone(invocation, name)
    if as_json:
        click.echo(json.dumps({"guest": name, "stopped": True}))
    else:
        click.echo(f"guest {name} is gone")


command.add_command(console)


@command.command()
@click.argument("name")
@click.option("--full", is_flag=True, help="Hold its writes and check every page now; takes about 1 s for each GiB.")
@json_option
@click.pass_context
def check(context: click.Context, name: str, full: bool, as_json: bool) -> None:
    """Ask a memory guest what its own checks found, and the longest time in which it could not work.

    Ends with exit code 6 when any page is corrupt.

    \b
    Example:
      droveway guest check web --full
    """
    guest = invocation_of(context).guests.open(check_name("guest", name))
    if not isinstance(guest, MemoryGuest):
        raise RequestError(f"{name} is a guest of kind {guest.kind}, which does not check itself.")
    said = {"guest": name} | guest.query_oracle(full=full)
    if not as_json:
        show(oracle(name, said))
    if said["corrupt"]:
        message = f"{said['corrupt']} pages of {name} are corrupt: do not trust its memory."
        raise EndedError(message, "corrupt", MigrationFailedError.exit_code, said)
    if as_json:
        click.echo(json.dumps(said))
