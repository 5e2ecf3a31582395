"""`droveway certs`: certificates for a fleet that has no authority of its own."""

from __future__ import annotations

import datetime
import ipaddress
import json
from pathlib import Path

import click

from config.errors import RequestError
from config.names import check_name
from tasks.certificates import AUTHORITY, REDIS, Bearer, Made, make
from tasks.cli.invocation import json_option

_DAYS = click.IntRange(min=1, max=36_500)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", "hosts", metavar="NAME[=ADDRESS,...]", multiple=True, help="A host, and where it is reached.")
@click.option("--redis", "redis", metavar="NAME[=ADDRESS,...]", help="The Redis server, as redis.url names it.")
@click.option("--days", type=_DAYS, default=397, show_default=True, help="How long a certificate holds.")
@click.option("--ca-days", type=_DAYS, default=3650, show_default=True, help="How long a new authority holds.")
@click.option("--replace", is_flag=True, help="Make the certificates named anew; the authority stays.")
@json_option
def command(
    directory: Path,
    hosts: tuple[str, ...],
    redis: str | None,
    days: int,
    ca_days: int,
    replace: bool,
    as_json: bool,
) -> None:
    """Make an authority in DIRECTORY, if it has none, and certificates for these hosts and for Redis.

    What is there already is kept, so that a host can be added by the same command. The key of the authority (ca.key)
    vouches for whoever it likes: keep DIRECTORY where only you can read it, and on no host of the fleet.

    \b
    Examples:
      droveway certs pki --host alpha=10.0.0.1 --host beta=10.0.0.2 --redis redis.example=10.0.0.9
      droveway certs pki --host gamma=10.0.0.3              # another host, later
      droveway certs pki --host alpha=10.0.0.1 --replace    # renew, before it ends
    """
    bearers = [_bearer(each) for each in hosts]
    if redis is not None:
        bearers.append(_redis(redis))
    files = [bearer.file for bearer in bearers]
    if not bearers or len(set(files)) < len(files):
        raise RequestError("name each host once by --host, or the Redis server by --redis.")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    made = make(directory, bearers, now=now, days=days, ca_days=ca_days, replace=replace)
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "certificates": [_json(each) for each in made]}))
        return
    for each in made:
        named = f" for {', '.join(each.names)}" if each.names else ""
        click.echo(f"{each.how:9}{directory / each.file}.pem{named}, until {each.until:%Y-%m-%d}")
    for bearer in bearers:
        click.echo(_advice(directory, bearer))


def _bearer(text: str) -> Bearer:
    name, addresses = _split(text)
    check_name("host", name)
    if name in (AUTHORITY, REDIS):
        raise RequestError(f"a host cannot be called {name} here: {name}.pem is another file; make its by other means.")
    return Bearer(name, name, addresses)


def _redis(text: str) -> Bearer:
    name, addresses = _split(text)
    return Bearer(REDIS, check_name("host", name), addresses, calls=False)


def _split(text: str) -> tuple[str, tuple[str, ...]]:
    name, given, rest = text.partition("=")
    addresses = tuple(rest.split(",")) if given else ()
    try:
        return name, tuple(str(ipaddress.ip_address(address.strip())) for address in addresses)
    except ValueError as error:
        raise RequestError(f"{text}: {error}; write NAME=ADDRESS, several with a comma between.") from None


def _advice(directory: Path, bearer: Bearer) -> str:
    files = " ".join(str(directory / f"{file}") for file in ("ca.pem", f"{bearer.file}.pem", f"{bearer.file}.key"))
    where = "the Redis server" if bearer.file == REDIS else bearer.name
    return f"copy to /etc/droveway of {where}: {files}"


def _json(made: Made) -> dict[str, object]:
    return {"file": made.file, "how": made.how, "names": list(made.names), "until": made.until.isoformat()}
