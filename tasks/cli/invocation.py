"""What one call of the command was given before it is known which command it is: settings, and the doors they open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from config.errors import HostError
from config.settings import Settings, load_settings
from tasks.bell import Bell
from tasks.ledger.ledger import Ledger
from workers.guests.local import LocalGuests

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Invocation:
    """One call of `droveway`. Settings are read when the first command asks for them, so that --help never fails."""

    config: Path | None = None
    #: By `concern.key`; what was not given is not there.
    overrides: dict[str, object] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """Raises SettingsError."""
        return load_settings(self.config, overrides=self.overrides)

    @property
    def guests(self) -> LocalGuests:
        """The guests of this host."""
        host = self.settings.host
        return LocalGuests(host.state_dir, host.ram_dir)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The fleet's record, for the time of the body."""
        with closing(Ledger(self.settings)) as ledger:
            yield ledger


def make_directories(settings: Settings) -> None:
    """This host's own directories, before anything is put into them: /dev/shm is empty after each boot.

    Raises HostError. The parent of the RAM directory must be there: below a mistyped one RAM would lie on a disk.
    """
    host = settings.host
    for directory, parents in ((host.state_dir, True), (host.ram_dir, False)):
        try:
            directory.mkdir(mode=0o700, parents=parents, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"{directory} cannot be made ({error.strerror}): give this user its parent directory, or correct "
                "host.state_dir and host.ram_dir."
            ) from None


def bell_for(settings: Settings) -> Bell:
    """What wakes the workers."""
    from tasks import app  # noqa: PLC0415  # Celery takes half a second to import: most commands do without

    return app.bell_for(settings)


#: Option, setting, what it is for.
_OVERRIDES = (
    ("--redis", "redis.url", "URL", "Where Redis is: redis://HOST:PORT/DB or unix:///PATH."),
    ("--host", "host.name", "NAME", "This host's name, when it is not the machine's."),
    ("--state-dir", "host.state_dir", "DIR", "Where this host's journals and guests are."),
)


def settings_options(*, hidden: bool) -> list[click.Option]:
    """The options that every command takes, before or after its name."""

    def keep(context: click.Context, option: click.Parameter, value: Any) -> None:
        invocation = context.find_root().ensure_object(Invocation)
        if value is None:
            return
        if option.name == "config":
            invocation.config = value
        else:
            invocation.overrides[next(key for flag, key, *_ in _OVERRIDES if flag in option.opts)] = value

    file = click.Path(dir_okay=False, path_type=Path)
    about = "Settings file; else $DROVEWAY_CONFIG, else /etc/droveway.toml when it is there."
    kept: dict[str, Any] = {"expose_value": False, "is_eager": True, "callback": keep, "hidden": hidden}
    return [
        click.Option(["--config"], type=file, metavar="FILE", help=about, **kept),
        *(click.Option([flag], metavar=metavar, help=text, **kept) for flag, _, metavar, text in _OVERRIDES),
    ]


class SettingsCommand(click.Command):
    """A command that takes the settings' options too; its help leaves them to `droveway --help`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(settings_options(hidden=True))


class SettingsGroup(click.Group):
    """A group whose commands all are such."""

    command_class = SettingsCommand
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added: the order in which one needs them."""
        del ctx
        return list(self.commands)


def invocation_of(context: click.Context) -> Invocation:
    """What this call was given."""
    return context.find_root().ensure_object(Invocation)


#: Lines of a list, unless all are asked for; all of a month's on a busy fleet, more is a job for a store of its own.
_LATEST, _ALL = 20, 100_000


def count_option(command: Command) -> Command:
    """--all, as `count`: so many of the latest are wanted."""

    def count(context: click.Context, option: click.Parameter, everything: bool) -> int:
        del context, option
        return _ALL if everything else _LATEST

    about = f"All that are remembered, not only the latest {_LATEST}."
    return click.option("--all", "count", is_flag=True, callback=count, help=about)(command)


def json_option(command: Command) -> Command:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")(command)
