"""The metrics of one worker, and their page. One process, one registry: movers report through their status files."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from config.capabilities import MigrationCapability as Capability
from workers.attempt import Status
from workers.metrics import names
from workers.metrics.names import Kind, Metric
from workers.metrics.page import Check, serve, well
from workers.metrics.tally import Tally
from workers.pairing.agreement import pins
from workers.pairing.contract import Side
from workers.registration.limits import lock_limit
from workers.wire import WIRE

#: Rounds below this many bytes say more about latency than about the link.
_TELLING_BYTES = 4 << 20
#: Told from what is at hand when somebody looks, never counted up and down: a gauge of these is never stale.
_LOOKED_UP = (names.IN_FLIGHT, names.REGISTERED, names.PINNED, names.PINNED_MOST, names.WORK_REQUEST)

# When each series was made would be a fifth of the page; that a counter began anew is seen without it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Exporter:
    """What a worker counts. Every label set exists from the start, so that a rate sees its first increment."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = {metric: _make(metric, self.registry) for metric in names.WORKER if metric not in _LOOKED_UP}
        self._made[names.BUILD].labels(version("droveway"), str(WIRE)).set(1)
        limit = lock_limit()
        self._made[names.PINNED_LIMIT].set(math.inf if limit is None else limit)
        self._present = _Present()
        self.registry.register(self._present)

    def began(self, side: Side, attempt: str) -> None:
        """A mover is supervised from now on."""
        self._present.saw(side, attempt, Status())

    def saw(self, side: Side, attempt: str, status: Status) -> None:
        """What the mover said last."""
        self._present.saw(side, attempt, status)

    def left(self, side: Side, attempt: str) -> None:
        """It no longer is."""
        self._present.left(side, attempt)

    def waited(self, seconds: float) -> None:
        """An admitted migration reached its source."""
        self._made[names.QUEUE_WAIT].observe(max(0.0, seconds))

    def ended(self, side: Side, status: Status) -> None:
        """An attempt's outcome is in the record. The source tells of the migration, each side of its own spans."""
        for phase, seconds in status.seconds.items():
            if phase in names.PHASES:
                self._made[names.PHASE].labels(side, phase).observe(seconds)
        if peak := _locked(status, "registered_most"):
            self._made[names.PINNED_PEAK].labels(side, _policy(status)).observe(peak)
        if side is not Side.SOURCE:
            if "guest_gap" in status.seconds:
                self._made[names.GUEST_GAP].observe(status.seconds["guest_gap"])
            return
        reason = status.reason or "none"
        state = str(status.outcome)
        self._made[names.MIGRATIONS].labels(state, reason if reason in names.REASONS else "other").inc()
        self._made[names.TRANSFERRED].inc(status.bytes.get("transferred", 0))
        for entry in status.rounds:
            self._round(entry)
        self._waits(status)
        self._transport(status.transport)
        if state == "completed":
            # QEMU's passes are known by looking: of those that nobody saw only the next one's index tells.
            last = status.rounds[-1].get("index", 0) if status.rounds else 0
            self._made[names.ROUNDS].observe(max(len(status.rounds), last + 1))
            self._downtime(status)

    def _round(self, entry: Mapping[str, Any]) -> None:
        kind, sent, seconds = entry.get("kind"), entry.get("sent", 0), entry.get("seconds", 0)
        if kind in names.SENT:
            delta, zero = entry.get("delta", 0), entry.get("zero", entry.get("bytes", sent) - sent)
            self._made[names.SENT_BYTES].labels(kind).inc(max(0, sent - delta))
            self._made[names.SENT_BYTES].labels("delta").inc(max(0, delta))
            self._made[names.SENT_BYTES].labels("zero-skipped").inc(max(0, zero))
        rate = sent / seconds if seconds else 0.0
        telling = sent >= _TELLING_BYTES and rate > 0
        if telling:
            self._made[names.THROUGHPUT].observe(rate)
        if (dirty := entry.get("dirty_rate")) is not None:
            self._made[names.DIRTY_RATE].observe(dirty)
            if telling:
                self._made[names.CONVERGENCE].observe(dirty / rate)

    def _waits(self, status: Status) -> None:
        if "links" in status.seconds or "bulk" in status.seconds:  # it sent, and if it did not wait, that is 0
            self._made[names.LINKS_WAIT].observe(status.seconds.get("links", 0.0))
        policy = status.choices.get("policy")
        if policy in names.POLICIES and "registration" in status.seconds:
            self._made[names.REGISTRATION_WAIT].labels(policy).observe(status.seconds["registration"])

    def _transport(self, said: Mapping[str, Any]) -> None:
        """Only of a link that carried memory: where QEMU moved a guest itself, ours had nothing to do."""
        kind = said.get("kind")
        if kind not in names.TRANSPORTS:
            return
        if said.get("in_flight_peak"):
            self._present.worked(kind, said.get("work", {}))
            self._made[names.PEAK_IN_FLIGHT].labels(kind).observe(said["in_flight_peak"])
        for status, count in said.get("failed", {}).items():
            known = status if status in names.COMPLETIONS else "unknown"
            self._made[names.FAILED_COMPLETIONS].labels(known).inc(count)
        if kind == "tcp":
            self._made[names.RETRIES].labels(kind).inc(said.get("resent") or 0)

    def _downtime(self, status: Status) -> None:
        if (took := status.seconds.get("downtime")) is None:
            return
        self._made[names.DOWNTIME].observe(took)
        if expected := status.rates.get("expected_downtime"):
            self._made[names.EXPECTED_DOWNTIME].observe(expected)
            self._made[names.DOWNTIME_RATIO].observe(took / expected)

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

    def serve(self, address: str, port: int, healthy: Check = well, ready: Check = well) -> Callable[[], None]:
        """Serve /metrics, /healthz and /readyz; the function returned ends that. Raises HostError: no such port."""
        setting = "host.metrics_source_port and host.metrics_destination_port"
        return serve(address, port, self.registry, healthy, ready, setting)


class _Present(Collector):
    """What is told from lists: the movers that are supervised now, and what transports counted by themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._movers: dict[tuple[Side, str], Status] = {}
        self._work = {kind: Tally(names.WORK_REQUEST.buckets) for kind in names.TRANSPORTS}

    def saw(self, side: Side, attempt: str, status: Status) -> None:
        with self._lock:
            self._movers[side, attempt] = status

    def left(self, side: Side, attempt: str) -> None:
        with self._lock:
            self._movers.pop((side, attempt), None)

    def worked(self, kind: str, said: Mapping[str, Any]) -> None:
        with self._lock:
            self._work[kind].add(said)

    def collect(self) -> Iterable[GaugeMetricFamily | HistogramMetricFamily]:
        movers = _family(names.IN_FLIGHT)
        registered, pinned, most = map(_family, (names.REGISTERED, names.PINNED, names.PINNED_MOST))
        work = HistogramMetricFamily(names.WORK_REQUEST.name, names.WORK_REQUEST.help, labels=["transport"])
        with self._lock:
            for side in Side:
                said = [status for (each, _), status in self._movers.items() if each is side]
                movers.add_metric([side], len(said))
                for policy in dict(names.PINNED.labels)["policy"]:
                    those = [status for status in said if _policy(status) == policy]
                    registered.add_metric([side, policy], sum(status.bytes.get("registered", 0) for status in those))
                    locked = [_locked(status, "registered") for status in those]
                    pinned.add_metric([side, policy], sum(locked))
                    most.add_metric([side, policy], max(locked, default=0))
            for kind, tally in self._work.items():
                work.add_metric([kind], tally.cumulative(), tally.sum)
        return [movers, registered, pinned, most, work]


def _family(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=[name for name, _ in metric.labels])


def _policy(status: Status) -> str:
    policy = status.choices.get("policy")
    return policy if policy in names.POLICIES else "other"


def _locked(status: Status, counted: str) -> int:
    """What this mover has locked of the guest, in bytes: of what it has `registered`, or `registered_most`."""
    capabilities = status.choices.get("capabilities", {})
    locks = pins(status.choices.get("transport", "tcp"), capabilities) or capabilities.get(Capability.RDMA_PIN_ALL)
    return status.bytes.get(counted, 0) if locks else 0


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
