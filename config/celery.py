"""Settings → Celery's options: the only place that knows both.

A Celery message is a doorbell here: the record in Redis says what is to be done and the fenced claim who does it. So
nothing asks Celery for exactly-once, and the options choose the mode that surprises least. What is called measured was
tried on Celery 5.7.0 with kombu 5.7.0, redis-py 8.1.0 and Redis 7.0.15.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

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
