"""The metrics of one worker, and their page. One process, one registry: movers report through their status files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.exposition import generate_latest

from config.errors import HostError
from workers.attempt import Status
from workers.metrics import names
from workers.metrics.names import Kind, Metric
from workers.pairing.contract import Side


class Exporter:
    """What a worker counts. Every label set exists from the start, so that a rate sees its first increment."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = {metric: _make(metric, self.registry) for metric in names.ALL}

    def began(self, side: Side) -> None:
        """A mover is supervised from now on."""
        self._made[names.IN_FLIGHT].labels(side).inc()

    def left(self, side: Side) -> None:
        """It no longer is."""
        self._made[names.IN_FLIGHT].labels(side).dec()

    def waited(self, seconds: float) -> None:
        """An admitted migration reached its source."""
        self._made[names.QUEUE_WAIT].observe(max(0.0, seconds))

    def ended(self, side: Side, status: Status) -> None:
        """An attempt's outcome is in the record. The source tells of the migration, each side of its own spans."""
        for phase, seconds in status.seconds.items():
            if phase in names.PHASES:
                self._made[names.PHASE].labels(side, phase).observe(seconds)
        if side is not Side.SOURCE:
            return
        reason = status.reason or "none"
        state = str(status.outcome)
        self._made[names.MIGRATIONS].labels(state, reason if reason in names.REASONS else "other").inc()
        self._made[names.TRANSFERRED].inc(status.bytes.get("transferred", 0))
        if state == "completed":
            self._made[names.ROUNDS].observe(len(status.rounds))
            if "downtime" in status.seconds:
                self._made[names.DOWNTIME].observe(status.seconds["downtime"])

    def duplicate(self, side: Side) -> None:
        """A doorbell rang for what was taken up already."""
        self._made[names.DUPLICATES].labels(side).inc()

    def refused_message(self) -> None:
        """A message was dropped."""
        self._made[names.REFUSED_MESSAGES].inc()

    def lease_lost(self, side: Side) -> None:
        """The record gave an attempt's claim to another."""
        self._made[names.LEASES_LOST].labels(side).inc()

    def page(self) -> str:
        """What /metrics shows."""
        return generate_latest(self.registry).decode()

    def serve(self, address: str, port: int) -> Callable[[], None]:
        """Serve /metrics; the function returned ends that. Raises HostError when the port cannot be had."""
        try:
            server, thread = start_http_server(port, address, registry=self.registry)
        except OSError as error:
            raise HostError(
                f"/metrics cannot listen on {address}:{port} ({error.strerror}): give it another port, or 0 for "
                "none, with host.metrics_source_port and host.metrics_destination_port."
            ) from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    labels = [name for name, _ in metric.labels]
    made: Any
    match metric.kind:
        case Kind.COUNTER:
            made = Counter(metric.name, metric.help, labels, registry=registry)
        case Kind.GAUGE:
            made = Gauge(metric.name, metric.help, labels, registry=registry)
        case Kind.HISTOGRAM:
            made = Histogram(metric.name, metric.help, labels, buckets=metric.buckets, registry=registry)
    if labels:
        for values in itertools.product(*(values for _, values in metric.labels)):
            made.labels(*values)
    return made
