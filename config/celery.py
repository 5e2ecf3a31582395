"""Settings → Celery's options: the only place that knows both.

A Celery message is a doorbell here: the record in Redis says what is to be done and the fenced claim who does it. So
nothing asks Celery for exactly-once, and the options choose the mode that surprises least. What is called measured was
tried on Celery 5.7.0 with kombu 5.7.0, redis-py 8.1.0 and Redis 7.0.15.
"""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, schedstate
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config.calendar import Calendar
from config.errors import UnreachableError
from config.redis import tls_options, translate
from config.settings import RedisSettings, Settings

#: Where tasks go that are of no one host: evacuate, rebalance, reconcile.
CONTROL_QUEUE = "droveway.control"

#: Seconds after which an unacknowledged message is delivered again: above every countdown that is ever used. Celery
#: takes the shortest of all programs on one prefix, so nothing else may use ours.
VISIBILITY_TIMEOUT = 12 * 3600


def celery_options(settings: Settings) -> dict[str, Any]:
    """Everything that a Celery app of this program is configured with."""
    return {
        **_broker(settings.redis),
        **_delivery(),
        **_worker(settings),
        # Nothing on the wire is code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # No result backend: the record is the truth, and a result is lost when the backend is away as a task ends.
        "result_backend": None,
        "task_ignore_result": True,
        "task_default_queue": CONTROL_QUEUE,
    }


def broker_url(settings: RedisSettings) -> str:
    """`redis.url` in kombu's words, which differ for unix sockets: unix:///s?db=1 is redis+socket:///s?virtual_host=1."""
    url = settings.url.get_secret_value()
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"


@contextmanager
def reaching_broker(settings: RedisSettings) -> Generator[None]:
    """Turn what publishing raises into errors of ours, as `reaching_redis` does for commands."""
    try:
        yield
    except RedisError as error:
        raise translate(error, settings) from error
    except OperationalError as error:
        cause = error.__cause__
        if isinstance(cause, RedisError):
            raise translate(cause, settings) from error
        where = f"Redis at {settings.shown_url}"
        raise UnreachableError(f"{where} takes no message ({error}): check that it runs, and redis.url.") from error


class DueMoments(BaseSchedule):  # type: ignore[misc]  # Celery has no types
    """A policy's calendar as Celery's beat asks for it.

    Not Celery's own crontab: that has one time zone for all entries, and wants day and weekday both to match where cron
    wants either. What was due while no beat ran is not made up for.
    """

    def __init__(self, calendar: Calendar) -> None:
        super().__init__(nowfun=_utc_now)
        self.calendar = calendar

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Until the first match after `last_run_at`."""
        return timedelta(seconds=self.calendar.next(last_run_at.timestamp()) - time.time())

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether a match has passed since `last_run_at`, and the seconds until the next."""
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        now = time.time()
        return schedstate(True, self.calendar.next(now) - now)


def beat_entries(calendars: Mapping[str, Calendar], task: str, body_of: Callable[[str], Any]) -> dict[str, Any]:
    """One entry for each name: `task` goes to the control queue, with what `body_of` says of the name just then."""
    return {
        name: {
            "task": task,
            "schedule": DueMoments(calendar),
            "args": (BeatLazyFunc(body_of, name),),
            "options": {"queue": CONTROL_QUEUE},
        }
        for name, calendar in calendars.items()
    }


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _broker(settings: RedisSettings) -> dict[str, Any]:
    return {
        "broker_url": broker_url(settings),
        # Never False for rediss://: kombu would then connect without checking the server's certificate.
        "broker_use_ssl": tls_options(settings) or False,
        "broker_transport_options": {
            "global_keyprefix": settings.prefix,
            "visibility_timeout": VISIBILITY_TIMEOUT,
            # Look for messages to redeliver every 10 s, not every 100 s.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            # Finds a connection that died without a word; a stuck consumer recovers after about 51 s.
            "health_check_interval": 10,
            "queue_order_strategy": "priority",
            "client_name": "droveway-celery",
        },
        # A worker outlives its broker: it waits for it at the start and, however long, later (Celery's default: 100).
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A producer does not hang for a broker that is away: the record was written first, reconcile rings again.
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
    }


def _delivery() -> dict[str, Any]:
    return {
        # Acknowledged at the start. Late acknowledgement runs a second copy at once when a connection is reset, and
        # another whenever a task outlives the visibility time-out (measured); no mode is free of losses.
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_retry_on_worker_lost": False,
        # The key setting: a message waiting behind a long task is redelivered elsewhere after the visibility time-out,
        # even with a multiplier of 1 (measured: 2 runs); not fetched before a thread is free, it runs once.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Explicit, as Celery 6 turns it on: a second without the broker would then end running migrations.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _worker(settings: Settings) -> dict[str, Any]:
    return {
        # Threads only supervise movers. prefork's children die with the worker and may raise SystemExit anywhere; solo
        # answers no remote control while a task runs.
        "worker_pool": "threads",
        # Answering a doorbell takes milliseconds: a thread of ours follows the mover. One for each slot all the same,
        # and two for control tasks, so that nobody waits behind a Redis that is slow for another.
        "worker_concurrency": settings.host.outbound_slots + settings.host.inbound_slots + 2,
        # A soft shutdown ends tasks after a time; a migration is drained, or left to its mover.
        "worker_soft_shutdown_timeout": 0,
        "worker_hijack_root_logger": False,
        # For the usual dashboards (Flower, celery-exporter).
        "worker_send_task_events": True,
        "task_send_sent_event": True,
    }
