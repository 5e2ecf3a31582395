"""`droveway beat`: what tells the workers that a policy is due."""

from __future__ import annotations

import click

from config.errors import SettingsError
from config.redis import coordination_client, reaching_redis
from tasks.cli.invocation import SettingsCommand, invocation_of


@click.command("beat", cls=SettingsCommand)
@click.pass_context
def command(context: click.Context) -> int:
    """Tell the workers whenever a policy of the settings file is due; whether guests are moved, they judge.

    Runs in the foreground until SIGTERM or Ctrl-C, and keeps nothing on disk. Run it on several hosts with the same
    policies: each due moment is judged once all the same. What was due while none ran is not made up for.

    \b
    Examples:
      droveway beat --config /etc/droveway.toml

    \b
    A policy, in that file:
      [rebalance.nightly]
      cron = "*/10 * * * *"                  # when it looks
      windows = ["22:00-05:00"]              # when it may move guests; left out: always
      timezone = "Europe/Berlin"
      hold = 3                               # how many looks in a row must find it so before it acts

    `hold` counts looks, not minutes, and is 3 unless you say otherwise: a policy that looks once a night moves guests
    on the third night in a row above its threshold. hold = 1 acts at the first look; or let cron look more often, also
    outside of the windows: such a look counts as well.
    """
    settings = invocation_of(context).settings
    if not settings.rebalance:
        raise SettingsError(NO_POLICIES)
    with coordination_client(settings.redis) as client, reaching_redis(settings.redis):
        client.ping()  # said now what would otherwise be a beat that waits in silence
    from tasks.app import run_beat  # noqa: PLC0415  # Celery takes half a second to import: only a beat pays it

    return run_beat(settings)


NO_POLICIES = (
    "There are no policies here: write a table [rebalance.NAME] with a cron expression into the settings file, as"
    " `droveway beat --help` shows, and name the file by --config."
)
