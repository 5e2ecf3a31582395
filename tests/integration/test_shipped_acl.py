"""The rights in ops/redis/droveway.acl are enough for a whole migration."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr

from config.settings import RedisSettings, Settings
from tasks.app import bell_for
from tasks.exporter.reading import Reader
from tasks.ledger.ledger import Answer, Ledger
from tasks.reconcile import reconcile
from tasks.records import LocalGuest, Submission
from tasks.requests import admit
from tests.redis_server import RedisServer
from workers.attempt import Status
from workers.pairing.contract import Side, Ticket
from workers.pairing.redis import RedisPairing

ACL = Path(__file__).parents[2] / "ops" / "redis" / "droveway.acl"
GIB = 1 << 30
OFFERED = {"address": "", "version": "", "memory": str(4 * GIB), "memlock": "", "capabilities": "[]"} | {
    "transports": "[]",
    "trackers": "[]",
    "slots:source": "1",
    "slots:destination": "1",
}


ROOT = Path(__file__).parents[2]


def rights(user: str) -> set[str]:
    """The commands that a user is given by name, in capitals."""
    (line,) = [line for line in ACL.read_text().splitlines() if line.startswith(f"user {user} ")]
    return {rule[1:].upper() for rule in line.split() if rule.startswith("+") and not rule.startswith("+@")}


def test_every_command_of_every_script_is_given_by_name() -> None:
    scripts = "".join(path.read_text() for folder in ("tasks", "workers") for path in (ROOT / folder).rglob("*.lua"))
    used = set(re.findall(r"redis\.p?call\('([A-Za-z]+)'", scripts))
    assert len(used) > 15
    assert used <= rights("droveway")


def restricted(server: RedisServer) -> Settings:
    (line,) = [line for line in ACL.read_text().splitlines() if line.startswith("user droveway ")]
    rules = [">secret" if rule.startswith("#") else rule for rule in line.split()[2:]]
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "droveway", *rules)
    return Settings(redis=RedisSettings(url=SecretStr(f"unix://droveway:secret@{server.socket}")))


def test_every_script_and_every_ring_is_allowed(own_redis_server: RedisServer) -> None:
    settings = restricted(own_redis_server)
    ledger, bell = Ledger(settings), bell_for(settings)
    for host, guests in (("alpha", [LocalGuest("web", GIB, 0)]), ("beta", [])):
        for side in Side:
            ledger.heartbeat(host, side, OFFERED, [], guests)
    assert ledger.submit(Submission("m-1", "web", "alpha", "beta", GIB, {}, {}))[0] is Answer.OK
    assert admit(ledger, bell) == ["m-1"]
    tickets = {side: Ticket("m-1", "web", 1, side, f"{side}-nonce") for side in Side}
    pairings = {side: RedisPairing(settings.redis, ticket, side) for side, ticket in tickets.items()}
    for side, ticket in tickets.items():
        assert ledger.claim(ticket) is Answer.OK
        pairings[side].publish(side.encode())
    for side, pairing in pairings.items():
        assert pairing.await_offer(5) == side.peer.encode()
        pairing.tell("given", 1)
        assert pairing.facts() == {(1, "given")}
        assert ledger.renew(tickets[side], Status(state="active"))[0] is Answer.OK
        pairing.close()
    assert ledger.cancel("m-1", "")[0] is Answer.ASKED
    for ticket in tickets.values():
        assert ledger.finish(ticket, Status(outcome="cancelled")) is Answer.OK
    ledger.retell("alpha", [("web", 1, "aborted", "m-1")])
    ledger.rung("m-1")
    ledger.release("m-1")
    ledger.free_links("m-1", 0)
    ledger.abandon("m-1", 1, 0, "")
    assert reconcile(ledger, bell).failures == ()
    assert [record.state for record in ledger.history()] == ["cancelled"]
    assert Reader(ledger).read().durable.keys() == {"appendonly", "appendfsync", "maxmemory_policy"}
    ledger.resign("alpha", Side.SOURCE)
    ledger.close()
