"""How this program talks to Redis where it coordinates (Celery has connections of its own: config/celery.py).

Clients answer in bytes (`decode_responses` is off): offers and tables travel as blobs, and one client that decodes
some answers and not others is worse than one `.decode()` where text is meant.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.errors import DrovewayError, HostError, UnreachableError
from config.settings import RedisSettings

#: Seconds that one blocking read may ask the server to wait; loop for more. Below every sensible `socket_timeout`, for
#: redis-py cannot tell "nothing came" from a dead server once its own time-out is the shorter one.
LONGEST_BLOCK = 5

#: Celery 5.7 needs it, and so do our streams and scripts. Valkey counts on from 7.2.
OLDEST_SERVER = (6, 2)


def coordination_client(settings: RedisSettings, client_name: str = "droveway") -> redis.Redis:
    """A client, not connected yet; thread-safe, not to be carried over a fork. `client_name` is for CLIENT LIST."""
    return redis.Redis.from_url(
        settings.url.get_secret_value(),
        socket_timeout=settings.socket_timeout,
        socket_connect_timeout=settings.connect_timeout,
        # Redis() of redis-py 8 repeats every command up to ten times by itself: measured, one incr() whose reply was
        # lost returned 3, and a blocking read of 8 s ended after 58 s. from_url() of 8.1 does not; said, so that it
        # stays so. Who called knows what may be repeated.
        retry=Retry(NoBackoff(), 0),
        # redis-py 8 would speak RESP3, which brings us nothing but a handshake more and other shapes of some answers.
        protocol=2,
        client_name=client_name,
        **tls_options(settings),
    )


def tls_options(settings: RedisSettings) -> dict[str, Any]:
    """redis-py's words for TLS, which are kombu's too; empty for a connection in the clear."""
    if not settings.tls:
        return {}
    files = {"ssl_ca_certs": settings.ca, "ssl_certfile": settings.certificate, "ssl_keyfile": settings.key}
    checks = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return checks | {option: str(file) for option, file in files.items() if file}


@contextmanager
def reaching_redis(settings: RedisSettings) -> Generator[None]:
    """Turn what redis-py raises into errors of ours; a context manager and a decorator.

    Raises UnreachableError when Redis does not answer or let us in, HostError when it answers that it will not do it.
    """
    try:
        yield
    except exceptions.RedisError as error:
        raise translate(error, settings) from error


def translate(error: exceptions.RedisError, settings: RedisSettings) -> Exception:
    """The error of ours that says what `error` means and what to do; `error` itself when it is a mistake of ours."""
    for kind, ours, means, advice in _MEANINGS:
        if isinstance(error, kind):
            return ours(f"Redis at {settings.shown_url} {means} ({error}): {advice}.")
    if str(error).startswith(("MISCONF", "NOREPLICAS")):
        return HostError(f"Redis at {settings.shown_url} refuses to write ({error}): repair its disk or its replicas.")
    return error


#: What redis-py raises, whose fault it is, what it means, what to do. Subclasses stand before their parents.
_MEANINGS: tuple[tuple[type[exceptions.RedisError], type[DrovewayError], str, str], ...] = (
    (
        exceptions.NoPermissionError,
        HostError,
        "forbids us a command",
        "give the user of redis.url the rights listed in ops/redis/droveway.acl",
    ),
    (
        exceptions.AuthenticationError,
        UnreachableError,
        "does not accept our user or password",
        "correct redis.url in the settings",
    ),
    (exceptions.BusyLoadingError, UnreachableError, "is still loading its data", "try again when it has"),
    (exceptions.MaxConnectionsError, UnreachableError, "has no connection left for us", "raise its maxclients"),
    (
        exceptions.TimeoutError,
        UnreachableError,
        "did not answer in time",
        "check that it runs and has the time to answer",
    ),
    (
        exceptions.ConnectionError,
        UnreachableError,
        "cannot be reached",
        "check that it runs, and redis.url in the settings",
    ),
    (
        exceptions.OutOfMemoryError,
        HostError,
        "is out of memory",
        "raise its maxmemory and leave its maxmemory-policy at noeviction",
    ),
    (exceptions.ReadOnlyError, HostError, "is a read-only replica", "point redis.url at the primary"),
)


def server_warnings(info: Mapping[str, Any]) -> list[str]:
    """What an operator should know about a server before relying on it; `info` is the answer to INFO."""
    warnings = []
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        warnings.append(f"Redis {version} is older than 6.2, which Celery needs: upgrade it.")
    if not info.get("aof_enabled"):
        warnings.append("Redis keeps no log (appendonly is off), so a restart forgets who claimed what: switch it on.")
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        warnings.append(
            f"Redis drops keys when it is full (maxmemory-policy {info['maxmemory_policy']}): set noeviction."
        )
    return warnings
