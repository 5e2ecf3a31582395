"""The fleet that a demonstration runs on: two hosts and a Redis on this machine, of which nothing stays."""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from config.redis import coordination_client, reaching_redis
from config.settings import RedisSettings
from tasks.one_machine.fleet import LocalFleet, fresh_directory, sweep
from tasks.one_machine.redis_server import OwnRedis

GUEST = "demo"
#: From where, to where, rdma-pin-all.
MOVES = (("alpha", "beta", "off"), ("beta", "alpha", "on"))
_LOG_LINES = 15


def tell(said: Console | None, what: str) -> None:
    """A line about what is there, where progress goes."""
    if said is not None:
        said.print(Text(what, style="dim"), soft_wrap=True)


@contextmanager
def demo_fleet(given: RedisSettings, ram_bytes: int, tell: Callable[[str], None]) -> Iterator[LocalFleet]:
    """Workers of alpha and beta, up for the time of the body; everything is cleared up after it, whatever happened.

    `given`: a server that was set is used, with keys of our own; else there is one of our own. `ram_bytes`: both copies
    of the guest. `tell` is told what there is. When the body fails, the ends of all logs are shown first.
    """
    stack = ExitStack()
    try:
        for directory in sweep():
            tell(f"cleared up after a demo that was killed: {directory}")
        fleet = _started(stack, given, ram_bytes, tell)
        with _logs_told(fleet):
            yield fleet
    finally:
        with _undisturbed():
            stack.close()


def _started(stack: ExitStack, given: RedisSettings, ram_bytes: int, tell: Callable[[str], None]) -> LocalFleet:
    """Everything that it starts is on the stack that clears up."""
    directory = fresh_directory()
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    redis = _redis(stack, given, directory, tell)
    fleet = LocalFleet(redis, directory=directory, ram_bytes=ram_bytes)
    stack.callback(fleet.close)
    with _logs_told(fleet):
        fleet.start()
    tell("workers of alpha and beta are up: a process for each host and role")
    return fleet


def _redis(stack: ExitStack, given: RedisSettings, directory: Path, tell: Callable[[str], None]) -> RedisSettings:
    """The server that was set, with keys of our own; else a server of our own."""
    if "url" in given.model_fields_set:
        redis = given.model_copy(update={"prefix": f"droveway-demo-{secrets.token_hex(4)}:"})
        drop_keys(redis)  # none is there: this only finds out whether the server answers
        stack.callback(drop_keys, redis)
        tell(f"Redis at {redis.shown_url}, keys under {redis.prefix}")
        return redis
    server = OwnRedis(directory)
    stack.callback(server.close)
    tell(f"{server.program} of our own, on a socket in {directory}")
    return RedisSettings.model_validate({"url": server.url})


@contextmanager
def _logs_told(fleet: LocalFleet) -> Iterator[None]:
    """When the body fails, the last lines of every log, before they are removed."""
    try:
        yield
    except Exception:
        for log in fleet.logs():
            lines = log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
            click.echo(f"--- {log.relative_to(fleet.directory)}", err=True)
            click.echo("\n".join(lines), err=True)
        raise


def drop_keys(redis: RedisSettings) -> None:
    """Remove every key under our prefix. Raises UnreachableError."""
    with coordination_client(redis) as client, reaching_redis(redis):
        for key in client.scan_iter(match=f"{redis.prefix}*", count=1000):
            client.delete(key)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Clearing up is not interrupted by another Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
