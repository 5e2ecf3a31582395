"""`droveway config`: the settings in force, and whether they hold."""

from __future__ import annotations

import json

import click

from config.redis import coordination_client, reaching_redis, server_warnings
from config.settings import memory_total
from tasks.cli.invocation import SettingsGroup, invocation_of, json_option
from tasks.cli.quantities import size
from workers.registration.limits import lock_limit


@click.group(cls=SettingsGroup)
def command() -> None:
    """The settings in force (file, then environment, then options; the later wins), and whether they hold."""


@command.command()
@json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Print every setting as it is in force; passwords are left out.

    \b
    Example:
      DROVEWAY_HOST__OUTBOUND_SLOTS=2 droveway config show
    """
    shown = invocation_of(context).settings.shown()
    if as_json:
        click.echo(json.dumps(shown))
        return
    policies = shown.pop("rebalance")
    for concern, values in (shown | {f"rebalance.{name}": terms for name, terms in policies.items()}).items():
        click.echo(f"[{concern}]")
        for key, value in values.items():
            said = f"{key} = {json.dumps(value)}" if value is not None else f"# {key} is not set"
            click.echo(said)
        click.echo()


@command.command()
@json_option
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Read the settings, reach Redis, look at this host's limits; say what an operator should know.

    \b
    Example:
      droveway config check --config /etc/droveway.toml
    """
    settings = invocation_of(context).settings
    with coordination_client(settings.redis) as client, reaching_redis(settings.redis):
        warnings = server_warnings(client.info())
    offered, limit = settings.host.offered_memory(memory_total()), lock_limit()
    if limit is not None and limit < offered:
        warnings.append(
            f"Processes here may lock {size(limit)}, less than the {size(offered)} offered to guests: raise "
            "LimitMEMLOCK, or rdma-pin-all will be refused for larger ones, and RDMA go through a window."
        )
    if as_json:
        click.echo(json.dumps({"host": settings.host.name, "redis": settings.redis.shown_url, "warnings": warnings}))
        return
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo(f"settings of {settings.host.name} hold; Redis at {settings.redis.shown_url} answers")
