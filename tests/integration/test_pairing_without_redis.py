"""Pairing rides out a Redis that is away, or that forgot everything, until its deadline."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from config.errors import UnreachableError
from config.settings import RedisSettings
from tests.redis_server import RedisServer
from workers.pairing.contract import Side, Ticket
from workers.pairing.keys import Keys
from workers.pairing.redis import RedisPairing

KEYS = Keys()


def _pairing(server: RedisServer, side: Side) -> RedisPairing:
    return RedisPairing(
        RedisSettings(url=SecretStr(server.url)), Ticket("m-1", "web", 3, side, f"{side}-nonce"), "alpha"
    )


def _record(server: RedisServer) -> None:
    claims = {f"claim:{side}": f"{side}-nonce" for side in Side}
    with server.client() as client:
        client.hset(KEYS.migration("m-1"), mapping={"epoch": 3, "state": "setup", **claims})


def test_an_offer_lost_by_redis_is_published_again(own_redis_server: RedisServer) -> None:
    _record(own_redis_server)
    source, destination = _pairing(own_redis_server, Side.SOURCE), _pairing(own_redis_server, Side.DESTINATION)
    source.publish(b"source")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(source.await_offer, 60)
        own_redis_server.forget()
        threading.Timer(0.2, _record, [own_redis_server]).start()  # as a worker's heartbeat does
        destination.publish(b"destination")
        assert destination.await_offer(30) == b"source"
        assert waiting.result(30) == b"destination"
    source.close()
    destination.close()


def test_a_redis_that_stays_away_is_named_when_the_deadline_is_over(own_redis_server: RedisServer) -> None:
    _record(own_redis_server)
    source = _pairing(own_redis_server, Side.SOURCE)
    own_redis_server.kill()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        source.await_offer(0.1)
    with pytest.raises(UnreachableError):
        source.facts()
    source.close()
