"""`droveway guest console`: a terminal on a virtual machine's serial console."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from config.errors import DrovewayError, HostError, RefusedError, RequestError, UnreachableError
from config.names import check_name
from tasks.cli.invocation import Invocation, SettingsCommand, invocation_of
from workers.guests.qemu.guest import QemuGuest
from workers.guests.qemu.monitor import Monitor

#: Ctrl-], as telnet and virsh have it.
_DETACH = b"\x1d"
#: Bytes of the log that are looked through for its last lines.
_TAIL = 64 << 10
#: Seconds for the record to follow a guest that has just left.
_RECORDED_SECONDS = 5.0


@click.command(cls=SettingsCommand)
@click.argument("name")
@click.option("--lines", type=click.IntRange(0), default=20, show_default=True, help="Of what it said before, first.")
@click.pass_context
def console(context: click.Context, name: str, lines: int) -> None:
    """Attach to the serial console of the virtual machine NAME on this host.

    What it said last is shown first. In a terminal every key goes to the guest, Ctrl-C too; Ctrl-] detaches. Without a
    terminal on standard input its output is only copied, until it ends or Ctrl-C.

    QEMU serves one at a time. A guest that moves away takes its console along: the command ends then, and says where
    to.

    \b
    Examples:
      droveway guest console vm1
      droveway guest console vm1 --lines 0 < /dev/null | tee vm1.log
    """
    invocation = invocation_of(context)
    guest = _here(invocation, check_name("guest", name))
    with _connected(guest) as line:
        _write(_last_lines(guest.places.console_log, lines))
        ended = _attended(line) if sys.stdin.isatty() else _copied(line)
    if ended:
        click.echo(f"\n{_whereabouts(invocation, guest)}", err=True)


def _here(invocation: Invocation, name: str) -> QemuGuest:
    try:
        guest = invocation.guests.open(name)
    except RefusedError as error:
        if host := _recorded(invocation, name):
            raise RefusedError(f"{name} is on {host}: run this there.", error.reason) from None
        raise
    if not isinstance(guest, QemuGuest):
        raise RequestError(f"{name} is a guest of kind {guest.kind}, which has no console.")
    guest.status()  # a dead one is told from one whose console is away
    if not guest.places.console.exists():
        raise RefusedError(
            f"{name} was started by somebody else: its console is where its own command line put it.", "no-console"
        )
    return guest


@contextmanager
def _connected(guest: QemuGuest) -> Iterator[socket.socket]:
    """A connection that QEMU has taken. Raises RefusedError (`busy`), HostError."""
    with Monitor(guest.name, guest.places.status) as monitor:
        said = {each["label"]: each["filename"] for each in monitor.execute("query-chardev")}
    if not said.get("console", "").startswith("disconnected:"):
        raise RefusedError(f"somebody is attached to the console of {guest.name} already.", "busy")
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(guest.places.console))
        except OSError as error:
            raise HostError(f"the console of {guest.name} cannot be reached ({error.strerror}).") from None
        yield line


def _last_lines(log: Path, count: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            said = file.read()
    except OSError:
        return b""
    return b"".join(said.splitlines(keepends=True)[-count:]) if count else b""


def _copied(line: socket.socket) -> bool:
    """Copy output; True when the guest ended it."""
    while said := _received(line):
        _write(said)
    return True


def _attended(line: socket.socket) -> bool:
    """Copy both ways; True when the guest ended it, False when the user did."""
    click.echo("(attached; Ctrl-] detaches)", err=True)
    keyboard = sys.stdin.fileno()
    with _raw(keyboard):
        while True:
            ready, _, _ = select.select([line, keyboard], [], [])
            if line in ready:
                if not (said := _received(line)):
                    return True
                _write(said)
            if keyboard in ready:
                typed, detach, _ = os.read(keyboard, 4096).partition(_DETACH)
                if not typed and not detach:  # the terminal is gone
                    return False
                if not _sent(line, typed):
                    return True
                if detach:
                    return False


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key as it is typed, for the time of the body; the terminal is put back also when a signal ends us."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = termios.tcgetattr(terminal)
    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except ConnectionError:
        return b""


def _sent(line: socket.socket, typed: bytes) -> bool:
    try:
        line.sendall(typed)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _write(said: bytes) -> None:
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()


# --- where it went ----------------------------------------------------------------------------------------------------


def _whereabouts(invocation: Invocation, guest: QemuGuest) -> str:
    here = invocation.settings.host.name
    deadline = time.monotonic() + _RECORDED_SECONDS
    while time.monotonic() < deadline:
        if not _answers(guest):
            host = _recorded(invocation, guest.name)
            if host not in (None, here):
                return f"{guest.name} left {here}; it is on {host}, and so is its console."
        time.sleep(0.2)
    return f"the console of {guest.name} ended; `droveway guest list` shows whether it is still here."


def _answers(guest: QemuGuest) -> bool:
    try:
        guest.status()
    except DrovewayError:
        return False
    return True


def _recorded(invocation: Invocation, name: str) -> str | None:
    """Where the record has a guest; None when it does not know, or cannot be asked."""
    try:
        with invocation.ledger() as ledger:
            known = ledger.fleet().guests.get(name)
    except UnreachableError:
        return None
    return None if known is None else known.host
