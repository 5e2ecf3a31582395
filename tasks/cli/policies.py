"""`droveway policies`: the policies that spread guests out, when they are due, and what came of them."""

from __future__ import annotations

import json

import click

from config.errors import SettingsError
from tasks.cli.beat import NO_POLICIES
from tasks.cli.invocation import SettingsCommand, invocation_of, json_option
from tasks.cli.output import show
from tasks.cli.rendering import tables


@click.command("policies", cls=SettingsCommand)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show each policy of the settings file: when it is due, whether it may act now, what its last look came to.

    TICKS ABOVE counts the looks in a row above the threshold, of the `hold` (3 unless the file says otherwise) after
    which it acts: a policy that looks once a night acts on the third. `hold` in its table changes that.

    \b
    Examples:
      droveway policies
      droveway rebalance --policy nightly --plan       # what it would do now
    """
    invocation = invocation_of(context)
    policies = invocation.settings.rebalance
    if not policies:
        raise SettingsError(NO_POLICIES)
    with invocation.ledger() as ledger:
        now, records = ledger.now(), ledger.policies(list(policies))
    if not as_json:
        show(tables.policies(policies, records, now))
        return
    document = [
        {
            "policy": name,
            **terms.model_dump(mode="json"),
            "next_due": terms.calendar.next(now),
            "window_open": terms.calendar.open(now),
            "last": records[name].to_json(),
        }
        for name, terms in policies.items()
    ]
    click.echo(json.dumps({"policies": document}))
