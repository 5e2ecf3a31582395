"""Bad input to real workers: one sentence, an exit code to branch on, a guest that goes on, and nothing left behind.

What test_cli_migration.py shows already (unknown guest, host and migration, source = destination, no worker, a guest
that is migrating) is not shown again.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config.settings import RedisSettings
from config.units import BYTES
from tasks.app import make_app
from tasks.ledger.ledger import Ledger
from tasks.messages import MAX_BODY, DestinationDoorbell, MigrateRequest, SourceDoorbell, new_migration_id
from tasks.one_machine.fleet import LocalFleet
from tasks.queues import CONTROL_QUEUE, host_queue
from tests.redis_server import RedisServer
from tests.requirements import missing
from workers.pairing.contract import Side
from workers.registration.choose import LEAST_LOCKABLE
from workers.transports.tcp.frames import VERSION

ROOT = Path(__file__).parents[2]
NOWHERE = "unix:///nonexistent/redis.sock"


def until(what: str, look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Place:
    """Two hosts' workers, one Redis, the command, and a look at all that a migration may leave."""

    def __init__(self) -> None:
        self.server = RedisServer()
        self.server.start()
        self.fault = self.server.directory / "fault"
        self.fleet = LocalFleet(
            RedisSettings.model_validate({"url": self.server.url}),
            overrides={"worker.lease": "5s", "worker.poll_interval": "200ms", "host.memory": "96M"},
            environment={"DROVEWAY_FAULT": f"file={self.fault}"},
        )
        self.ledger = Ledger(self.fleet.settings)

    def close(self) -> None:
        self.ledger.close()
        self.fleet.close()
        self.server.close()

    def environment(self, host: str = "alpha", **more: str) -> dict[str, str]:
        return os.environ | self.fleet.hosts[host].settings.environment() | more

    def call(self, *words: str, host: str = "alpha", **more: str) -> tuple[int, str, str]:
        """`droveway` on a host: exit code, output, errors."""
        command = [sys.executable, "-m", "tasks.cli.main", *words]
        environment = self.environment(host, **more)
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    def said(self, *words: str, code: int = 0, host: str = "alpha") -> dict[str, Any]:
        got, out, err = self.call(*words, "--json", host=host)
        assert got == code, (out, err)
        document: dict[str, Any] = json.loads(out)
        return document

    def refused(self, *words: str, code: int, reason: str) -> str:
        """The sentence of a call that ends with this code, for this reason; a person gets the same one."""
        error = self.said(*words, code=code)["error"]
        assert (error["exit_code"], error["reason"]) == (code, reason), error
        message = str(error["message"])
        assert "Traceback" not in message
        assert message.count("\n") == 0
        return message

    # --- what is left -------------------------------------------------------------------------------------------------

    def keys(self) -> set[str]:
        with self.server.client() as client:
            found = {key.decode() for key in client.scan_iter(count=1000)}
        passing = ("droveway:_kombu", "droveway:unacked", "droveway:looked")
        return {key for key in found if not key.startswith(passing)}

    def nothing_held(self) -> None:
        """No attempt, no mover, no slot, no reserved memory, no open record."""
        until("all attempts' end", lambda: not any(host.attempts() for host in self.fleet.hosts.values()))
        until("the end of all that is open", lambda: self.ledger.open() == [])
        assert not any(taken for host in self.ledger.fleet().hosts.values() for taken in host.admitted.values())
        assert not [key for key in self.keys() if key.startswith("droveway:reserved:")]

    def runs_whole(self, guest: str, host: str = "alpha") -> None:
        """It runs there and nowhere else, nothing of it is locked, and it finds itself sound."""
        copies = {
            name: each for name, there in self.fleet.hosts.items() for each in there.guests.list() if each.name == guest
        }
        assert list(copies) == [host]
        assert str(copies[host].status) == "running"
        assert "VmLck:\t       0 kB" in Path(f"/proc/{copies[host].pid}/status").read_text()
        for name, there in self.fleet.hosts.items():
            names = [each.name for each in there.guests.list()]
            files = [path.name for path in there.ram_dir.iterdir()]
            assert len(files) == len(names), (name, files)
            assert all(any(file.endswith(f"-{each}.ram") for each in names) for file in files), (name, files)
        check = self.said("guest", "check", guest, "--full", host=host)
        assert (check["corrupt"], check["full_check"]["corrupt"]) == (0, 0)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    place = Place()
    try:
        place.fleet.start()
        yield place
    finally:
        place.close()


@pytest.fixture
def guest(place: Place, request: pytest.FixtureRequest) -> Iterator[str]:
    """A guest on alpha with a name of this test's own; gone afterwards, wherever it went."""
    name = f"g{abs(hash(request.node.name)) % 10**6}"
    place.said("guest", "start", name, "--memory", "32M", "--dirty-rate", "1M")
    # The record forgets the guests of the tests before only when their hosts have not named them for two leases.
    until(
        "room on both hosts",
        lambda: all(place.ledger.fleet().hosts[host].free >= 32 << 20 for host in ("alpha", "beta")),
    )
    yield name
    for host in place.fleet.hosts:
        if name in [each.name for each in place.fleet.hosts[host].guests.list()]:
            place.said("guest", "stop", name, host=host)


def on(capability: str) -> tuple[str, str]:
    return "--capability", f"{capability}=on"


def test_a_wrong_request_gets_its_sentence_and_leaves_no_trace(place: Place, guest: str) -> None:
    before = place.keys()
    wrong = {
        on("rdma-pin-al"): "did you mean rdma-pin-all",
        on("postcopy-ram"): "capability of QEMU's",
        on("xbzrle"): "not possible yet",
        ("--capability", "rdma-pin-all=maybe"): "write rdma-pin-all=on or rdma-pin-all=off",
        ("--set", "downtime-limt=1s"): "did you mean downtime-limit",
        ("--set", "downtime-limit=0"): "allowed: 1ms to 2000s",
        ("--set", "max-bandwidth=100"): "allowed: 0 (no limit) or 1MiB/s to 1TiB/s",
        (*on("rdma-pin-all"), "--set", "pin-budget=128M"): "exclude each other",
        ("--frobnicate",): "--help",
    }
    for words, sentence in wrong.items():
        assert sentence in place.refused("migrate", guest, "--to", "beta", *words, code=2, reason="invalid-request")
    said = place.refused("guest", "start", "vm.toml", "--memory", "1G", code=2, reason="invalid-request")
    assert "--memory are for memory guests" in said
    code, out, err = place.call("migrate", guest, "--to", "beta", *on("rdma-pin-al"))
    assert (code, out) == (2, "")
    assert err.startswith("droveway: There is no capability 'rdma-pin-al'")
    assert err.count("\n") == 1
    assert place.keys() <= before, "nothing new; what an earlier guest left may go meanwhile"
    place.nothing_held()
    place.runs_whole(guest)


def test_a_setting_that_is_wrong_is_named_with_where_it_was_read(place: Place) -> None:
    code, _, err = place.call("hosts", DROVEWAY_HOST__NAEM="x")
    assert code == 4
    assert "did you mean DROVEWAY_HOST__NAME" in err


def test_a_destination_of_an_older_release_is_refused_for_what_it_lacks(place: Place, guest: str) -> None:
    with place.server.client() as client:
        beta = client.hgetall("droveway:host:beta")
        far = round(time.time() * 1000) + 3_600_000
        beta |= {b"capabilities": b'["rdma-pin-all", "zero-pages"]', b"lease:destination": far}
        client.hset("droveway:host:old", mapping=beta)
        client.sadd("droveway:hosts", "old")
        try:
            message = place.refused("migrate", guest, "--to", "old", code=3, reason="capability")
        finally:
            client.delete("droveway:host:old")
            client.srem("droveway:hosts", "old")
    assert "cannot do verify-ram; set it off or upgrade" in message
    place.nothing_held()
    place.runs_whole(guest)


def test_a_guest_that_is_too_large_for_its_destination_stays(place: Place) -> None:
    place.said("guest", "start", "large", "--memory", "128M")
    try:
        before = place.keys()
        message = place.refused("migrate", "large", "--to", "beta", code=3, reason="host-memory")
        assert "choose another destination or make room there" in message
        assert place.keys() <= before, "nothing new; what an earlier guest left may go meanwhile"
        place.nothing_held()
        place.runs_whole("large")
    finally:
        place.said("guest", "stop", "large")


def test_a_redis_that_is_not_there_is_said_at_once_and_named(place: Place, guest: str) -> None:
    for words in (("migrate", guest, "--to", "beta"), ("status",), ("cancel", "m-1"), ("worker",)):
        code, out, err = place.call("--redis", NOWHERE, *words)
        assert (code, out) == (5, "")
        assert NOWHERE in err
        assert "check that it runs" in err
    place.runs_whole(guest)


# --- memory that may not be locked ------------------------------------------------------------------------------------


#: Bytes. What systemd lets everybody lock; a process cannot raise it.
USUAL_LIMIT = 8 << 20


class Low:
    """A host of its own, whose workers have no privilege to lock memory beyond a limit that a test may lower."""

    name = "low"

    def __init__(self, place: Place) -> None:
        unprivileged = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"] if os.getuid() == 0 else []
        self.state_dir = place.fleet.directory / "low"
        self.ram_dir = place.fleet.hosts["alpha"].ram_dir.with_name("low")
        self.settings = {
            "DROVEWAY_HOST__NAME": "low",
            "DROVEWAY_HOST__STATE_DIR": str(self.state_dir),
            "DROVEWAY_HOST__RAM_DIR": str(self.ram_dir),
        }
        self.log = place.fleet.directory / "low.log"
        with self.log.open("ab") as log:
            command = [
                *unprivileged,
                "prlimit",
                f"--memlock={USUAL_LIMIT}",
                sys.executable,
                "-m",
                "tasks.cli.main",
                "worker",
            ]
            environment = place.environment(**self.settings)
            self.worker = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def may_lock(self, limit: int) -> None:
        """From now on: bytes, for the workers and whatever they start. What they said of themselves stays as it is."""
        for pid in (self.worker.pid, *_children(self.worker.pid)):
            resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (limit, USUAL_LIMIT))

    def movers(self) -> list[int]:
        return [json.loads(path.read_bytes())["pid"] for path in (self.state_dir / "movers").glob("*/pid")]

    def close(self) -> None:
        self.worker.send_signal(signal.SIGTERM)
        self.worker.wait(60)
        places = [
            path for path in (self.state_dir / "movers", self.state_dir / "guests", self.ram_dir) if path.exists()
        ]
        assert [path for path in places if [*path.iterdir()]] == []


def _locked(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.partition(":")[2].strip() for line in status.splitlines() if line.startswith("VmLck:"))


def _children(pid: int) -> list[int]:
    each_thread = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in each_thread for child in thread.read_text().split()]
    return [found for child in children for found in (child, *_children(child))]


@pytest.fixture(scope="module")
def low_host(place: Place) -> Iterator[Low]:
    if not (shutil.which("setpriv") and shutil.which("prlimit")):
        missing("no setpriv or prlimit to start a worker with a low limit")
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if hard != resource.RLIM_INFINITY and hard < USUAL_LIMIT:
        missing(f"only {hard} bytes may be locked, less than the {USUAL_LIMIT} that the workers of low need")
    low = Low(place)
    try:
        until("low's workers", lambda: low.worker.poll() is not None or _alive(place, low.name))
        assert low.worker.poll() is None, low.log.read_text()
        yield low
    finally:
        low.close()


@pytest.fixture
def low(low_host: Low) -> Iterator[Low]:
    """It may lock the usual 8 MiB before and after each test."""
    yield low_host
    low_host.may_lock(USUAL_LIMIT)


def _alive(place: Place, name: str) -> bool:
    host = place.ledger.fleet().hosts.get(name)
    return host is not None and len(host.alive) == 2


def _got_no_further_than_pairing(ended: dict[str, Any]) -> bool:
    """Neither was the guest tracked or surveyed, nor was anything locked or sent; the source speaks for both."""
    phases = {phase for phase, took in ended["seconds"].items() if took is not None}
    return phases == {"queue", "pairing", "total"} and not ended["choices"] and not ended["transferred_bytes"]


def test_pin_all_is_refused_where_so_much_may_not_be_locked(place: Place, guest: str, low: Low) -> None:
    message = place.refused("migrate", guest, "--to", low.name, *on("rdma-pin-all"), code=3, reason="memory-lock")
    assert re.search(r"may lock 8388608: \d+ are missing; raise LimitMEMLOCK there or set rdma-pin-all off", message)
    place.nothing_held()
    place.runs_whole(guest)


def test_what_a_destination_may_not_lock_is_found_before_the_guest_is_touched(place: Place, low: Low) -> None:
    name = "pinned"
    place.said("guest", "start", name, "--memory", "8M")  # as much as low's workers said that they may lock
    try:
        low.may_lock(4 << 20)
        failed = place.said("migrate", name, "--to", low.name, *on("rdma-pin-all"), code=6)
        assert failed["error"]["reason"] == "memory-lock"
        sentence = (
            r"low may lock 4MiB more, (\w+) are needed: (\w+) are missing; raise LimitMEMLOCK of its workers(.*)\."
        )
        found = re.fullmatch(sentence, failed["error"]["message"])
        assert found is not None, failed["error"]
        needed, lacking = BYTES.parse(found[1]), BYTES.parse(found[2])
        assert (needed - lacking, found[3]) == (4 << 20, ", or set rdma-pin-all off")
        assert needed > LEAST_LOCKABLE, "pin-all needs all that is touched"
        assert _got_no_further_than_pairing(failed)
        place.nothing_held()
        place.runs_whole(name)
    finally:
        place.said("guest", "stop", name)


@pytest.mark.parametrize("options", [(), ("--set", "pin-budget=64M")], ids=["dynamic", "windowed"])
def test_over_tcp_a_guest_moves_to_and_from_hosts_that_may_lock_nothing(
    place: Place, guest: str, low: Low, options: tuple[str, ...]
) -> None:
    low.may_lock(0)
    place.fault.write_text("stop-at=source.sending")
    try:
        migration = place.said("migrate", guest, "--to", low.name, *options, "--detach")["migration"]
        mover = until("the source's stop", lambda: _stopped(place))
        # After its first batch: what that needs is registered on both sides, and more is asked for.
        locked = [_locked(pid) for pid in (mover, *low.movers())]
        os.kill(mover, signal.SIGCONT)
    finally:
        place.fault.unlink()
    there = place.said("status", migration, "--watch")
    assert (there["state"], there["choices"]["policy"]) == ("completed", "windowed" if options else "dynamic")
    assert "lock" in there["choices"]["policy-reason"]
    assert locked == ["0 kB", "0 kB"]
    place.refused("migrate", guest, "--to", "beta", *on("rdma-pin-all"), code=3, reason="memory-lock")
    code, out, err = place.call("guest", "list", "--json", **low.settings)
    assert (code, [(each["name"], each["status"]) for each in json.loads(out)["guests"]]) == (
        0,
        [(guest, "running")],
    ), err
    assert place.said("migrate", guest, "--to", "beta", *options)["state"] == "completed"
    place.nothing_held()
    place.runs_whole(guest, "beta")


def test_a_limit_that_is_met_on_the_way_ends_the_move_and_not_the_guest(place: Place, low: Low) -> None:
    guest = "pinned"
    place.said("guest", "start", guest, "--memory", "6M")
    try:
        place.fault.write_text("stop-at=source.connecting")
        migration = place.said("migrate", guest, "--to", low.name, *on("rdma-pin-all"), "--detach")["migration"]
        mover = until("the source's stop", lambda: _stopped(place))
        low.may_lock(1 << 20)  # both have agreed by what was true before
        os.kill(mover, signal.SIGCONT)
        failed = place.said("status", migration, "--watch", code=6)
        assert failed["state"] == "failed"
        assert failed["error"]["reason"] == "memory-lock", "the destination's own word"
        assert "RLIMIT_MEMLOCK is 1048576 bytes" in failed["error"]["message"]
        assert "raise the limit (LimitMEMLOCK= of the service)" in failed["error"]["message"]
        place.nothing_held()
        place.runs_whole(guest)
    finally:
        place.fault.unlink(missing_ok=True)
        place.said("guest", "stop", guest)


# --- memory that does not fit into its directory ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--set", "pin-budget=64M")], ids=["dynamic", "windowed"])
def test_a_ram_directory_that_fills_up_on_the_way_ends_the_move_and_not_the_guest(
    place: Place, guest: str, low: Low, options: tuple[str, ...]
) -> None:
    if os.geteuid() != 0:
        missing("only root may mount a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", low.ram_dir], check=True)
    try:
        place.fault.write_text("stop-at=source.connecting")
        migration = place.said("migrate", guest, "--to", low.name, *options, "--detach")["migration"]
        mover = until("the source's stop", lambda: _stopped(place))
        (low.ram_dir / "else").write_bytes(bytes(40 << 20))  # there was room when both looked
        os.kill(mover, signal.SIGCONT)
        failed = place.said("status", migration, "--watch", code=6)
        place.nothing_held()
        left = [path.name for path in low.ram_dir.iterdir()]
    finally:
        place.fault.unlink(missing_ok=True)
        subprocess.run(["umount", "--lazy", low.ram_dir], check=True)
    assert failed["state"] == "failed"
    assert failed["error"]["reason"] == "host-memory", "the destination's own word"
    assert f"guest memory does not fit into {low.ram_dir} (No space left on device)" in failed["error"]["message"]
    assert left == ["else"]
    place.runs_whole(guest)


# --- messages put into the queues by hand -----------------------------------------------------------------------------


def test_messages_that_are_wrong_are_dropped_with_a_reason_and_start_nothing(place: Place, guest: str) -> None:
    place.said("migrate", guest, "--to", "beta")
    back = place.said("migrate", guest, "--to", "alpha", host="beta")["migration"]
    request = MigrateRequest(migration=new_migration_id(), guest=guest, destination="beta").to_json()
    ring: dict[str, Any] = {"migration": back, "guest": guest, "source": "beta", "destination": "alpha"}
    stale = SourceDoorbell(**ring, epoch=1), DestinationDoorbell(**ring, epoch=1)
    over = SourceDoorbell(**ring, epoch=2), DestinationDoorbell(**ring, epoch=2)
    invented = DestinationDoorbell(**ring | {"migration": "m-invented"}, epoch=2)
    control = {
        "is malformed at 'guest'": request | {"guest": "../g"},
        "is malformed at 'shell'": request | {"shell": "id"},
        f"more than {MAX_BODY}": request | {"parameters": {"x": "y" * MAX_BODY}},
        "is of version 7": request | {"version": 7},
        "expired": request | {"expires": 1.0},
        "is a list, not an object": [request],
    }
    before = place.keys()
    app = make_app(place.fleet.settings)
    with closing(app):
        for body in control.values():
            app.send_task(MigrateRequest.task, args=[body], queue=CONTROL_QUEUE)
        for each in (*stale, *over, invented):
            app.send_task(each.task, args=[each.to_json()], queue=host_queue(each.host, each.side))
        app.send_task("os.system", args=["true"], queue=CONTROL_QUEUE)
        app.send_task(SourceDoorbell.task, args=[over[0].to_json()], queue=host_queue("beta", Side.DESTINATION))
    wanted = (
        *control,
        f"A doorbell for {back}, epoch 1, does not agree with the record",
        "A doorbell for m-invented, epoch 2, does not agree with the record",
        "A doorbell for the source on beta rang at the destination on beta",
        "os.system",
    )
    # Any worker may serve the control queue, low's too.
    logs = [*place.fleet.directory.glob("*/*.log"), *place.fleet.directory.glob("*.log")]

    def untold() -> list[str]:
        said = "\n".join(log.read_text() for log in logs)
        return [words for words in wanted if words not in said]

    until("a word about each message", lambda: not untold())
    place.nothing_held()
    place.runs_whole(guest)
    assert place.keys() <= before, "nothing new; what an earlier guest left may go meanwhile"
    assert place.said("migrate", guest, "--to", "beta")["state"] == "completed"


# --- whoever else calls on the destination's port ---------------------------------------------------------------------


def test_strangers_on_the_data_port_are_sent_away_and_the_right_one_still_comes_in(place: Place, guest: str) -> None:
    place.fault.write_text("stop-at=source.connecting")
    try:
        migration = place.said("migrate", guest, "--to", "beta", "--detach")["migration"]
        mover = until("the source's stop", lambda: _stopped(place))
        with place.server.client() as client:
            offer = json.loads(client.hget(f"droveway:migration:{migration}", "offer:destination") or "{}")
        host, _, port = offer["transports"]["tcp"]["addresses"][0].rpartition(":")
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
            assert stranger.recv(100) == b""
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(b"DRWY" + bytes([VERSION]) + struct.pack(">32s16sHH", b"x" * 32, b"s" * 16, 0, 4))
            assert stranger.recv(6) == b"DRWY" + bytes([VERSION, 2])
            assert stranger.recv(1) == b""
        os.kill(mover, signal.SIGCONT)
        assert place.said("status", migration, "--watch")["state"] == "completed"
    finally:
        place.fault.unlink()
    place.nothing_held()
    place.runs_whole(guest, "beta")


def _stopped(place: Place) -> int | None:
    for attempt in place.fleet.hosts["alpha"].attempts(Side.SOURCE):
        try:
            pid = int(json.loads((attempt.directory / "pid").read_bytes())["pid"])
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError, KeyError):
            continue
        if state == "T":
            return pid
    return None
