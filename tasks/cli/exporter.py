"""`droveway exporter`: the fleet's metrics, read from Redis, for Prometheus."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import click
from prometheus_client import CollectorRegistry

from tasks.cli.invocation import SettingsCommand, invocation_of
from tasks.exporter.collector import FleetCollector
from tasks.exporter.reading import Reader
from tasks.ledger.ledger import Ledger
from tasks.scheduled import policy_of
from workers import logs
from workers.metrics.page import Recent, serve, well

#: Seconds for one answer of Redis. Prometheus gives a scrape up after 10 s: by then it must be told that Redis hangs.
_ANSWER = 5.0


@click.command(cls=SettingsCommand)
@click.option("--port", type=click.IntRange(1, 65535), help="Instead of exporter.port.")
@click.pass_context
def command(context: click.Context, port: int | None) -> int:
    """Serve the fleet's metrics: migrations, hosts, evacuations, balance, and whether Redis is durable.

    One is enough for a fleet: it keeps nothing, only reads, and reads Redis at most once in exporter.interval however
    often it is scraped. Several do no harm, but all tell the same: let Prometheus scrape one. A worker's own metrics
    are on that worker's ports. What rebalancing aims at and would gain is told of each policy in its settings file:
    write those of `droveway beat` there too.

    Ends on SIGTERM or Ctrl-C. Without Redis it goes on, and shows droveway_redis_up 0.

    \b
    Examples:
      droveway exporter
      curl -s http://127.0.0.1:9643/metrics | grep droveway_host_up
      curl -s http://127.0.0.1:9643/readyz         # 200: Redis answers; /healthz: this process does
    """
    invocation = invocation_of(context)
    settings = invocation.settings
    logs.configure(settings.worker)
    redis = settings.redis.model_copy(update={"socket_timeout": min(settings.redis.socket_timeout, _ANSWER)})
    with closing(Ledger(settings.model_copy(update={"redis": redis}))) as ledger, _told_to_end() as told:
        registry = CollectorRegistry()
        policies = {name: policy_of(terms) for name, terms in settings.rebalance.items()}
        registry.register(FleetCollector(Reader(ledger).read, settings.exporter.interval, policies))
        address, at = str(settings.exporter.address), port or settings.exporter.port
        stop = serve(address, at, registry, well, Recent(ledger.now), "exporter.port")
        click.echo(f"http://{f'[{address}]' if ':' in address else address}:{at}/metrics", err=True)
        told.recv(1)
        stop()
    return 0


@contextmanager
def _told_to_end() -> Iterator[socket.socket]:
    """What can be read once SIGTERM or SIGINT has come.

    Of two at once, both may interrupt a thread that answers a scrape, while the main thread sleeps on; a byte in a
    socket wakes it all the same. (A handler that sets an Event can even lock itself out of it.)
    """
    told, tell = socket.socketpair()
    with told, tell:
        tell.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield told
        finally:
            signal.set_wakeup_fd(-1)
