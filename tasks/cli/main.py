"""The `droveway` command: what there is, and the one place where a call begins and ends. One file per command."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

import click

from tasks.cli.endings import EXIT_CODES, run
from tasks.cli.invocation import Invocation, settings_options

#: Command, the module that has it under the same name, and its line in the list. Modules are imported when their
#: command is asked for: `droveway --help` and a shell's completion answer at once.
_COMMANDS = {
    "demo": "Move a live 1 GiB guest to and fro on this machine, without any set-up.",
    "worker": "Run the workers of this host.",
    "exporter": "Serve the fleet's metrics for Prometheus.",
    "metrics": "Every metric: what it means, and what it leaves out.",
    "guest": "The guests of this host: start, adopt, list, attach to, check and stop them.",
    "check": "Whether a guest could move to a host, without moving it.",
    "migrate": "Move a guest to another host, and follow the move.",
    "evacuate": "Empty hosts: every guest goes elsewhere, or says why not.",
    "drain": "The same as evacuate.",
    "restore": "Open evacuated hosts again, and bring their guests back.",
    "rebalance": "Spread guests out over the hosts, once.",
    "beat": "Tell the workers when a policy is due that spreads guests out.",
    "policies": "Policies that spread guests out: when, and what came of it.",
    "status": "How far a migration is, or all that are under way.",
    "cancel": "End a migration or a job; what was not moved stays where it is.",
    "list": "Migrations, the latest first.",
    "history": "Evacuations, rebalancings and restores, the latest first.",
    "show": "Everything about one migration or job.",
    "report": "One migration or job as a page that can be kept, sent, and read without a network.",
    "hosts": "The hosts of the fleet, and what they have left.",
    "inventory": "The fleet as plans see it, as a text that can be kept and read again.",
    "cordon": "Let no guest come to a host any more.",
    "uncordon": "Let guests come to a host again.",
    "blocker": "Keep a guest or a host out of every migration, with a reason, until it expires.",
    "capabilities": "What a migration can be told: capabilities and parameters.",
    "reconcile": "Settle what was cut off.",
    "config": "The settings in force, and whether they hold.",
    "doctor": "Whether this host is fit to move guests, and what to do where it is not.",
    "certs": "An authority and certificates for a fleet that has none.",
}


class _Commands(click.Group):
    """Finds a command's module by the command's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tasks.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without importing what it lists."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        del ctx
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES])


def _version() -> str:
    return importlib.metadata.version("droveway")


def cli() -> click.Group:
    """The command, made anew for each call."""
    group = _Commands(
        "droveway",
        params=[*settings_options(hidden=False)],
        help="""Move the memory of running virtual machines between hosts.

        \b
        First steps:
          droveway demo                                  see it work; needs nothing
          droveway worker --host alpha                   on each host
          droveway guest start web --memory 1G           a guest to move
          droveway migrate web --to beta --capability rdma-pin-all=on

        The options below may stand before or after a command. Every command that prints takes --json; errors are one
        sentence on standard error, or {"error": {"reason", "message", "exit_code"}} with --json.""",
    )
    return click.version_option(_version(), prog_name="droveway")(group)


def main(args: Sequence[str] | None = None) -> None:
    """The entry point: run one call and exit with its code."""
    words = list(sys.argv[1:] if args is None else args)
    invocation = Invocation()
    sys.exit(run(lambda: _call(words, invocation), as_json="--json" in words, debug=lambda: _debugging(invocation)))


def _call(words: list[str], invocation: Invocation) -> Any:
    return cli().main(words, prog_name="droveway", standalone_mode=False, obj=invocation)


def _debugging(invocation: Invocation) -> bool:
    """Whether tracebacks are wanted; not when not even the settings could be read."""
    read = invocation.__dict__.get("settings")
    return read is not None and read.worker.log_level == "debug"


if __name__ == "__main__":
    main()
