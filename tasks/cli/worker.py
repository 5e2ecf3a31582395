"""`droveway worker`: the workers of this host, both roles as processes under one command or one in the foreground."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from config.errors import HostError
from config.redis import coordination_client, reaching_redis, server_warnings
from config.settings import Settings
from tasks.cli.invocation import SettingsCommand, invocation_of, make_directories
from tasks.one_machine.tied import tied_to_us
from workers.pairing.contract import Side

_ROOT = Path(__file__).resolve().parents[2]


@click.command("worker", cls=SettingsCommand)
@click.option("--role", type=click.Choice([str(side) for side in Side]), help="Only this role, in the foreground.")
@click.pass_context
def command(context: click.Context, role: str | None) -> int:
    """Run the workers of this host: one for guests that leave, one for guests that come.

    Ends on SIGTERM or Ctrl-C; migrations under way go on without it, and the next worker takes them up again. When one
    role ends on its own the other is stopped too, so that whoever supervises this command starts both anew.

    \b
    Examples:
      droveway worker --host alpha
      droveway worker --role source        # what a systemd unit of its own would run
    """
    settings = invocation_of(context).settings
    _check_redis(settings)
    make_directories(settings)
    if role is None:
        return _BothRoles(settings).run()
    from tasks.app import run_worker  # noqa: PLC0415  # Celery takes half a second to import: only a worker pays it

    return run_worker(settings, Side(role))


def _check_redis(settings: Settings) -> None:
    """Say now what would otherwise be a worker that waits in silence."""
    with coordination_client(settings.redis) as client, reaching_redis(settings.redis):
        for warning in server_warnings(client.info()):
            click.echo(f"droveway: {warning}", err=True)


class _BothRoles:
    """Two worker processes that live and end together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: dict[Side, subprocess.Popen[bytes]] = {}
        self._told: set[Side] = set()
        self._stopping = False

    def run(self) -> int:
        """Until a signal, or until one role ends on its own (HostError)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        for side in Side:
            self._children[side] = self._spawn(side)
        if self._stopping:  # a signal came between two children
            self._stop_untold()
        first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        on_its_own = not self._stopping
        self._stop_untold()
        codes = {side: child.wait() for side, child in self._children.items()}
        if not on_its_own:
            return max(0 if code == 0 else 1 for code in codes.values())
        ended = next(side for side, child in self._children.items() if first and child.pid == first.si_pid)
        raise HostError(
            f"the {ended} worker of {self._settings.host.name} ended on its own ({_how(codes[ended])}), and the other "
            "was stopped: its last lines above say why; start both again"
        )

    def _spawn(self, side: Side) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tasks.cli.main", "worker", "--role", str(side)]
        return subprocess.Popen(
            tied_to_us(command, "TERM"),
            stdin=subprocess.DEVNULL,
            cwd=_ROOT,
            env=os.environ | self._settings.environment(),
            # Out of the terminal's reach: a Ctrl-C comes once, through us, and not twice, which Celery takes for haste.
            process_group=0,
        )

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        for side in self._children:
            self._send(side, signal.Signals(number))

    def _stop_untold(self) -> None:
        """Each once: a worker takes a second signal for haste, and leaves its tasks where they are."""
        for side in self._children.keys() - self._told:
            self._send(side, signal.SIGTERM)

    def _send(self, side: Side, number: signal.Signals) -> None:
        self._told.add(side)
        self._children[side].send_signal(number)


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
