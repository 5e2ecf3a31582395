"""Waiting on a migration's stream of events. An event only says: look at the record again."""

from __future__ import annotations

from typing import Any

import redis

from config.redis import LONGEST_BLOCK


class Events:
    """A cursor on one stream: no event between two waits is missed, nor one that came before the first."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._cursor: bytes | str = "0"

    def wait(self, seconds: float) -> None:
        """Return when something happened, or after `seconds`, at most 5. Raises what redis-py raises."""
        block = max(1, int(min(LONGEST_BLOCK, seconds) * 1000))  # 0 would mean: for ever
        answer: Any = self._client.xread({self._key: self._cursor}, count=1000, block=block)
        for _, entries in answer or ():
            self._cursor = entries[-1][0]
