"""The `droveway` command called in this process, on a real Redis that knows two hosts and a guest."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest

from config.settings import RedisSettings, Settings, WorkerSettings
from tasks.cli.main import main
from tasks.ledger.ledger import Ledger
from tasks.records import LocalGuest
from tests.redis_server import RedisServer
from workers.pairing.contract import Side

GIB = 1 << 30
OFFERED = {
    "address": "::1",
    "version": "1",
    "memory": str(4 * GIB),
    "memlock": "",
    "capabilities": '["zero-pages", "verify-ram"]',
    "transports": "[]",
    "trackers": "[]",
    "slots:source": "1",
    "slots:destination": "1",
}


class Console:
    """The command, called in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = self._capsys.readouterr()
        return int(str(ended.value.code or 0)), said.out, said.err

    def said(self, *words: str) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)


def fleet_in(server: RedisServer) -> Settings:
    """The settings that reach it; alpha has the guest web."""
    redis = RedisSettings.model_validate({"url": server.url})
    settings = Settings(redis=redis, worker=WorkerSettings(lease=3600))
    with closing(Ledger(settings)) as ledger:
        for side in Side:
            ledger.heartbeat("alpha", side, OFFERED, [], [LocalGuest("web", GIB, 0)])
            ledger.heartbeat("beta", side, OFFERED, [], [])
    return settings
