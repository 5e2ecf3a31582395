"""Between Prometheus and Redis: however often it is scraped, Redis is read at most once in `interval` seconds.

scrape ─► the last reading, or a new one ─► samples
          └► once a minute at most, in a thread: the outlook, which is planned
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from config.errors import DrovewayError
from tasks.exporter.figures import Samples, samples
from tasks.exporter.outlook import MOST_HOSTS, Outlook, outlook
from tasks.exporter.reading import Reading
from tasks.inventory.live import cluster
from tasks.planning.cluster import Cluster
from tasks.planning.rebalancing import Policy
from workers.metrics import names
from workers.metrics.names import Metric
from workers.wire import WIRE

log = logging.getLogger("droveway.exporter")

#: Seconds between two outlooks, and how many times what the last one took: planning never has more than a tenth of a
#: processor.
_BETWEEN_OUTLOOKS, _TIMES_AN_OUTLOOK = 60.0, 10.0


class FleetCollector(Collector):
    """What the exporter shows. Any thread may collect; all of one interval get the same."""

    def __init__(
        self,
        read: Callable[[], Reading],
        interval: float,
        policies: Mapping[str, Policy],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` may raise DrovewayError: Redis is away, and nothing is shown of the fleet. `policies`: those by which
        guests are spread out, by name; none: what `droveway rebalance` goes by."""
        self._read = read
        self._interval = interval
        self._clock = clock
        self._policies = policies or {names.DEFAULT_POLICY: Policy()}
        self._lock = threading.Lock()
        self._made_at = float("-inf")
        self._made: dict[Metric, Samples] = {}
        self._outlook: Outlook | None = None
        self._next_outlook = float("-inf")
        self._planning: threading.Thread | None = None
        self._told = False

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Every metric of names.FLEET that has a value now, and what runs here."""
        with self._lock:
            if self._clock() - self._made_at >= self._interval:
                self._made = self._anew()
                self._made_at = self._clock()
            made = self._made
        build: Samples = {(version("droveway"), str(WIRE)): 1.0}
        return [_family(names.BUILD, build), *(_family(metric, found) for metric, found in made.items())]

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Names only: registering it must not read Redis."""
        return [GaugeMetricFamily(metric.name, metric.help) for metric in (names.BUILD, *names.FLEET)]

    def _anew(self) -> dict[Metric, Samples]:
        began = self._clock()
        try:
            reading = self._read()
        except DrovewayError as error:
            log.warning("%s", error)
            return {names.REDIS_UP: {(): 0.0}, names.READ_SECONDS: {(): self._clock() - began}}
        found = cluster(reading.fleet, reading.open, reading.now)
        self._look_ahead(found)
        made = samples(reading, found, self._policies, self._outlook)
        return made | {names.REDIS_UP: {(): 1.0}, names.READ_SECONDS: {(): self._clock() - began}}

    def _look_ahead(self, found: Cluster) -> None:
        if self._clock() < self._next_outlook or (self._planning is not None and self._planning.is_alive()):
            return
        if len(found.hosts) > MOST_HOSTS:
            self._outlook = None
            if not self._told:
                log.warning("%d hosts are more than %d: what takes planning is not shown", len(found.hosts), MOST_HOSTS)
            self._told = True
            return
        self._planning = threading.Thread(target=self._plan, args=(found,), name="outlook", daemon=True)
        self._planning.start()

    def _plan(self, found: Cluster) -> None:
        began = self._clock()
        try:
            self._outlook = outlook(found, self._policies)
        except Exception:  # the thread's last frame: a defect in planning must not pass unseen, nor end the exporter
            log.exception("planning what is shown failed: a defect")
            self._outlook = None
        self._next_outlook = began + max(_BETWEEN_OUTLOOKS, (self._clock() - began) * _TIMES_AN_OUTLOOK)


def _family(metric: Metric, found: Samples) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=[name for name, _ in metric.labels])
    for values, value in found.items():
        family.add_metric(list(values), value)
    return family
