"""The only place where a Celery app is made, and where a worker is put together. Nothing connects on import."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from celery import Celery, signals
from celery.beat import Scheduler, Service

from config.capabilities import SUPPORTED
from config.celery import beat_entries, celery_options, reaching_broker
from config.settings import Settings, memory_total
from tasks.bell import Bell, MessageBell, Send
from tasks.checks import Checks, Examiner
from tasks.host import HostService, Offered
from tasks.ledger.ledger import Ledger
from tasks.messages import DOORBELL_LIFETIME, Message, Rebalance
from tasks.migrate import Tasks
from tasks.queues import served_by
from tasks.records import LocalGuest
from tasks.requests import admit
from tasks.supervise import Supervisor
from workers import logs
from workers.attempt import MOVER, Attempt, Status
from workers.dirty.choose import TRACKERS
from workers.guests.load import Loads
from workers.guests.local import LocalGuests
from workers.guests.qemu.cpu_models import CpuModels
from workers.metrics.exporter import Exporter
from workers.metrics.page import Pulse, Recent
from workers.pairing.contract import Side
from workers.pairing.redis import RedisPairing
from workers.registration.limits import lock_limit
from workers.settle import highest_epochs, owned_here, settle, told_by_journals
from workers.transports.open import kinds

#: Seconds between two heartbeats, as a part of the lease: two may be lost before anybody looks.
_BEATS_PER_LEASE = 3
#: Leases without a tick after which a worker is ill. Redis may be away for longer than one, and each call that finds it
#: away ends by its time-out.
_STANDS_STILL = 4
#: Seconds before a consumer that ended on its own is started again.
_BEFORE_SERVING_AGAIN = 1.0
#: Workers have nothing to tell each other through Celery: claims and cancels are in the record.
_ALONE = {"without_mingle": True, "without_gossip": True}

log = logging.getLogger("droveway.worker")


def make_app(settings: Settings) -> Celery:
    """A Celery app, not connected."""
    app = Celery("droveway", set_as_current=False)
    app.conf.update(celery_options(settings))
    return app


def sender(settings: Settings) -> Send:
    """A function that puts a message in a queue. Raises UnreachableError."""
    return _sender(make_app(settings), settings)


def bell_for(settings: Settings) -> Bell:
    """What a producer rings with."""
    return MessageBell(sender(settings))


def run_worker(settings: Settings, side: Side, mover: Sequence[str] = MOVER) -> int:
    """Run this host's worker of one role until SIGTERM; the exit code. Movers (`mover` DIRECTORY) outlive it.

    Raises HostError when the role has a worker here already, or /metrics cannot listen.
    """
    logs.configure(settings.worker)
    app = make_app(settings)
    metrics = Exporter()
    with closing(Ledger(settings)) as ledger, closing(Checks(settings)) as checks:
        bell = MessageBell(_sender(app, settings))
        host = host_service(settings, side, ledger, bell, metrics, mover)
        pulse = Pulse(f"the {side} worker's tick", _STANDS_STILL * settings.worker.lease)
        host.ticked = pulse.beat
        guests = LocalGuests(settings.host.state_dir, settings.host.ram_dir)
        examiner = Examiner(settings.host.name, side, guests, checks)
        _register(app, Tasks(ledger, bell, host, metrics, examiner.answer))
        port = settings.host.metrics_source_port if side is Side.SOURCE else settings.host.metrics_destination_port
        ready = Recent(ledger.now)
        stop_page = metrics.serve(settings.host.metrics_listen, port, pulse, ready) if port else lambda: None
        try:
            host.start()
            return _consume(app, settings, side, host)
        finally:
            host.stop()
            stop_page()


def run_beat(settings: Settings) -> int:
    """Tell the workers of every policy that is due, until SIGTERM or Ctrl-C; the exit code. Keeps nothing on disk."""
    logs.configure(settings.worker)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit  # which ends the service's sleep, and its waiting for a broker

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    beat_service(settings).start()
    return 0


def beat_service(settings: Settings) -> Service:
    """Celery's beat with an entry for each policy, not started."""
    calendars = {name: terms.calendar for name, terms in settings.rebalance.items()}

    def body_of(policy: str) -> dict[str, Any]:
        """Good until the policy is due again, and not for longer than an hour: what was asked for at two in the night
        is not made up for at noon, when a worker or the beat itself wakes up."""
        calendar, now = calendars[policy], time.time()
        expires = min(calendar.next(now), calendar.due(now) + DOORBELL_LIFETIME)
        return Rebalance(policy=policy, terms=settings.rebalance[policy], expires=expires).to_json()

    app = make_app(settings)
    app.conf.beat_schedule = beat_entries(calendars, Rebalance.task, body_of)
    # The one that keeps its times in memory: two of those that keep a file cannot share it.
    return Service(app, scheduler_cls=Scheduler)


def host_service(
    settings: Settings, side: Side, ledger: Ledger, bell: Bell, metrics: Exporter, mover: Sequence[str] = MOVER
) -> HostService:
    """One role of this host, with everything that it works with on a real machine."""
    guests = LocalGuests(settings.host.state_dir, settings.host.ram_dir)
    state_dir = settings.host.state_dir

    def settle_one(attempt: Attempt) -> Status:
        job = attempt.job()
        with closing(RedisPairing(settings.redis, job.ticket, job.host)) as pairing:
            return settle(attempt, guests, state_dir, pairing)

    lease = settings.worker.lease
    supervisor = Supervisor(
        ledger,
        settle_one,
        metrics,
        settings.environment(),
        settings.worker.poll_interval,
        lease,
        # A slot fell free: whoever waits for it is not left to the next heartbeat.
        finished=partial(admit, ledger, bell),
        command=mover,
    )
    return HostService(
        host=settings.host.name,
        side=side,
        state_dir=state_dir,
        ledger=ledger,
        bell=bell,
        supervisor=supervisor,
        metrics=metrics,
        offered=offered(settings),
        owned_guests=partial(owned_guests, settings, guests, Loads()),
        journal_facts=lambda: told_by_journals(state_dir),
        heartbeat_interval=lease / _BEATS_PER_LEASE,
        reconcile_interval=settings.worker.reconcile_interval,
        cpu_models=CpuModels().known,
    )


def offered(settings: Settings) -> Offered:
    """What this host offers: what this release can do, as far as this machine lets it."""
    host = settings.host
    return Offered(
        address=host.advertised,
        version=version("droveway"),
        memory=host.offered_memory(memory_total()),
        memlock=lock_limit(),
        capabilities=[capability.value for capability in SUPPORTED],
        transports=kinds(),
        trackers=[tracker.kind for tracker in TRACKERS],
        slots={Side.SOURCE: host.outbound_slots, Side.DESTINATION: host.inbound_slots},
        cpus=host.cpus,
        bandwidth=host.bandwidth,
        uplink=host.uplink or "",
        uplink_bandwidth=host.uplink_bandwidth if host.uplink else 0,
        labels=host.labels,
        ahead=host.prepared_ahead,
    )


def owned_guests(settings: Settings, guests: LocalGuests, loads: Loads) -> list[LocalGuest]:
    """The guests that this host's journals let run here, with the highest epoch that they have seen.

    The journal alone tells a twin that is incoming: it was begun before the twin. So a heartbeat waits for no guest.
    """
    state_dir = settings.host.state_dir
    epochs = highest_epochs(state_dir)
    found = guests.list(ask=False)
    load = loads.look(guest.pid for guest in found if guest.pid is not None)
    return [
        LocalGuest(
            guest.name,
            guest.memory,
            epochs.get(guest.name, 0),
            load.get(guest.pid or 0),
            guest.anti_affinity,
            guest.needs,
            guest.cpu_model,
        )
        for guest in found
        if guest.memory is not None and owned_here(state_dir, guest.name)
    ]


def _sender(app: Celery, settings: Settings) -> Send:
    def send(message: Message, queue: str) -> None:
        with reaching_broker(settings.redis):
            app.send_task(message.task, args=[message.to_json()], queue=queue)

    return send


def _register(app: Celery, tasks: Tasks) -> None:
    for name, handler in tasks.handlers().items():
        app.task(name=name)(handler)


def _consume(app: Celery, settings: Settings, side: Side, host: HostService) -> int:
    """Serve the queues until a signal ends it; the exit code."""
    stopping = threading.Event()

    def keep_logging(**_: Any) -> None:
        """Being connected is what keeps Celery from configuring logging itself."""

    def let_go(**_: Any) -> None:
        stopping.set()
        host.supervisor.detach(0)

    signals.setup_logging.connect(keep_logging)
    signals.worker_shutting_down.connect(let_go)
    try:
        while True:
            code = _serve_queues(app, settings, side)
            if stopping.wait(_BEFORE_SERVING_AGAIN):
                return code
            # An envelope that is not JSON ends Celery's consumer (kombu reads it before anything can be refused); the
            # message is gone from the queue by then, so that the next consumer does not meet it again.
            log.error("the consumer ended on its own (%s); it is started again", code)
    finally:
        signals.setup_logging.disconnect(keep_logging)
        signals.worker_shutting_down.disconnect(let_go)


def _serve_queues(app: Celery, settings: Settings, side: Side) -> int:
    name = f"{side}@{settings.host.name}"
    worker = app.Worker(hostname=name, queues=served_by(settings.host.name, side), quiet=True, **_ALONE)
    worker.start()
    return int(worker.exitcode or 0)
