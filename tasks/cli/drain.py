"""`droveway drain`: `droveway evacuate` under the name that others give it."""

from tasks.cli.evacuate import command

__all__ = ["command"]
