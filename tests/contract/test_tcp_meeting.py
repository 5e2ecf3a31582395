"""Who may connect to a tcp destination, and what becomes of everybody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from config.errors import DrovewayError, PeerError, PeerLostError, SettingsError
from tests.contract.tls_certificates import Authority
from tests.contract.transport_makers import connect, make_ram
from workers.ram import Ram
from workers.ranges import RangeTable
from workers.transports.tcp import TcpEndpoint, TcpSettings, TlsFiles, meeting


@pytest.fixture
def ram() -> Iterator[Ram]:
    with closing(make_ram()) as ram:
        yield ram


@pytest.fixture
def source(ram: Ram) -> Iterator[TcpEndpoint]:
    with closing(TcpEndpoint(ram, TcpSettings("source"))) as endpoint:
        yield endpoint


@pytest.fixture
def destination(ram: Ram) -> Iterator[TcpEndpoint]:
    with closing(TcpEndpoint(ram, TcpSettings("destination"))) as endpoint:
        yield endpoint


class Waiting(threading.Thread):
    """A destination's connect, in a thread; `outcome` is the error that it ended with."""

    def __init__(self, destination: TcpEndpoint, offer: dict[str, object], timeout: float = 20) -> None:
        super().__init__()
        self.outcome: DrovewayError | None = None
        self._arguments = destination, offer, timeout
        self.start()

    def run(self) -> None:
        destination, offer, timeout = self._arguments
        try:
            destination.connect(offer, timeout)
        except DrovewayError as error:
            self.outcome = error


def place(destination: TcpEndpoint) -> tuple[str, int]:
    host, _, port = destination.offer()["addresses"][0].rpartition(":")
    return host, int(port)


def test_a_wrong_token_is_refused_on_both_sides_and_the_right_one_still_gets_in(
    ram: Ram, source: TcpEndpoint, destination: TcpEndpoint
) -> None:
    waiting = Waiting(destination, source.offer())
    offer = destination.offer()
    with closing(TcpEndpoint(ram, TcpSettings("source"))) as stranger, pytest.raises(PeerError, match="wrong token"):
        stranger.connect({**offer, "token": "00" * 32}, 10)
    source.connect(offer, 10)
    waiting.join()
    assert waiting.outcome is None
    destination.send(b"hello")
    assert source.receive(10) == b"hello"


def test_a_destination_that_only_strangers_came_to_says_so(
    ram: Ram, source: TcpEndpoint, destination: TcpEndpoint
) -> None:
    waiting = Waiting(destination, source.offer(), 1)
    with pytest.raises(PeerError, match="wrong token"):
        source.connect({**destination.offer(), "token": "11" * 32}, 10)
    waiting.join()
    assert isinstance(waiting.outcome, PeerError)
    assert not isinstance(waiting.outcome, PeerLostError)
    assert "wrong token" in str(waiting.outcome)


def test_nobody_coming_is_a_lost_peer(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    waiting = Waiting(destination, source.offer(), 0.1)
    waiting.join()
    assert isinstance(waiting.outcome, PeerLostError)


def test_nobody_listening_is_a_lost_peer(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    offer = destination.offer()
    destination.close()
    with pytest.raises(PeerLostError, match="did not answer"):
        source.connect(offer, 0.3)


def hello(destination: TcpEndpoint, name: bytes, index: int = 0, channels: int = 2) -> socket.socket:
    """Dial by hand, with the right token."""
    connection = socket.create_connection(place(destination), timeout=20)
    token = bytes.fromhex(destination.offer()["token"])
    connection.sendall(struct.pack(">4sB32s16sHH", b"DRWY", 1, token, name, index, channels))
    return connection


def test_a_token_serves_one_set_of_connections_only(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    waiting = Waiting(destination, source.offer(), 2)
    with closing(hello(destination, b"a" * 16)) as first:
        assert first.recv(6)[5] == 1
        with closing(hello(destination, b"b" * 16)) as second:
            assert second.recv(6)[5] == 3
        with pytest.raises(PeerError, match="used before"):
            source.connect(destination.offer(), 10)
    waiting.join()


def test_another_number_of_channels_than_agreed_is_refused(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    waiting = Waiting(destination, source.offer(), 1)
    with closing(hello(destination, b"a" * 16, channels=5)) as caller:
        assert caller.recv(6)[5] == 4
    waiting.join()
    assert "channels" in str(waiting.outcome)


def test_junk_and_callers_that_say_nothing_never_keep_the_right_one_out(
    source: TcpEndpoint, destination: TcpEndpoint
) -> None:
    waiting = Waiting(destination, source.offer())
    words = [b"", b"DRWY", b"GET / HTTP/1.1\r\n\r\n", b"DRWY\x09" + bytes(52)]
    with contextlib.ExitStack() as callers:
        for index in range(200):
            caller = callers.enter_context(socket.create_connection(place(destination), timeout=10))
            with contextlib.suppress(OSError):  # some are dropped before they have spoken
                caller.sendall(words[index % 4])
        source.connect(destination.offer(), 10)
        waiting.join()
    assert waiting.outcome is None


def test_who_says_nothing_longest_is_dropped_when_too_many_do(
    source: TcpEndpoint, destination: TcpEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_HELLO_SECONDS", 1000)  # else each is dropped for its own silence
    waiting = Waiting(destination, source.offer())
    with contextlib.ExitStack() as callers:
        first, *_ = [callers.enter_context(socket.create_connection(place(destination), timeout=20)) for _ in range(60)]
        assert first.recv(1) == b""
        destination.abort()
        waiting.join()


def test_an_abort_ends_both_sides_waiting_for_each_other(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:  # takes the call and says nothing
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        waiting = Waiting(destination, source.offer())
        dialling = Waiting(source, {**destination.offer(), "addresses": [address]})
        mute.accept()[0].close()
        source.abort()
        destination.abort()
        waiting.join()
        dialling.join()
    assert isinstance(waiting.outcome, PeerLostError)
    assert isinstance(dialling.outcome, PeerLostError)


def test_two_of_a_role_are_told_so(ram: Ram, source: TcpEndpoint, destination: TcpEndpoint) -> None:
    with pytest.raises(PeerError, match="both sides"):
        source.connect(source.offer(), 1)
    with pytest.raises(PeerError, match="both sides"):
        destination.connect(destination.offer(), 1)


def test_the_smaller_number_of_channels_is_used(ram: Ram) -> None:
    with (
        closing(TcpEndpoint(ram, TcpSettings("destination", channels=4))) as destination,
        closing(TcpEndpoint(ram, TcpSettings("source", channels=1))) as source,
    ):
        connect(source, destination)
        assert sum(thread.name == "droveway-tcp" for thread in threading.enumerate()) == (1 + 2) + (1 + 1)


def test_an_address_that_somebody_else_answers_at_is_passed_over(source: TcpEndpoint, destination: TcpEndpoint) -> None:
    other = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        caller, _ = other.accept()
        with closing(caller):
            caller.sendall(b"220 ready\r\n")
            caller.recv(100)

    thread = threading.Thread(target=answer)
    thread.start()
    offer = destination.offer()
    with closing(other):
        connect(
            source, destination, {**offer, "addresses": [f"127.0.0.1:{other.getsockname()[1]}", *offer["addresses"]]}
        )
        thread.join()
    assert source.in_flight() == 0


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_destination_listens_in_its_range_of_ports(ram: Ram) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        taken = probe.getsockname()[1]
        probe.listen()
        settings = TcpSettings("destination", ports=(taken, taken + 20))
        with closing(TcpEndpoint(ram, settings)) as destination:
            assert taken < place(destination)[1] <= taken + 20
        with pytest.raises(SettingsError, match=str(taken)):
            TcpEndpoint(ram, TcpSettings("destination", ports=(taken, taken)))


def test_listening_everywhere_needs_an_address_to_advertise(ram: Ram) -> None:
    with pytest.raises(SettingsError, match="advertise"):
        TcpEndpoint(ram, TcpSettings("destination", listen="0.0.0.0"))
    settings = TcpSettings("destination", listen="0.0.0.0", advertise=("192.0.2.7", "[2001:db8::1]:4000", "localhost"))
    with closing(TcpEndpoint(ram, settings)) as destination:
        first, second, third = destination.offer()["addresses"]
    assert first.startswith("192.0.2.7:")
    assert second == "[2001:db8::1]:4000"
    assert third.startswith(("127.0.0.1:", "[::1]:"))


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def refusals(
    ram: Ram, source_tls: TlsFiles | None, destination_tls: TlsFiles | None, **lies: object
) -> tuple[str, str]:
    """What each side says when the two try to meet; `lies` change what the source tells of itself."""
    with (
        closing(TcpEndpoint(ram, TcpSettings("source", tls=source_tls))) as source,
        closing(TcpEndpoint(ram, TcpSettings("destination", tls=destination_tls))) as destination,
    ):
        waiting = Waiting(destination, {**source.offer(), **lies}, 2)
        with pytest.raises(PeerError) as refused:
            source.connect(destination.offer(), 10)
        waiting.join()
        assert isinstance(waiting.outcome, PeerError)
        assert not isinstance(refused.value, PeerLostError)
        assert not isinstance(waiting.outcome, PeerLostError)
        return str(refused.value), str(waiting.outcome)


@pytest.mark.parametrize("with_tls", ["source", "destination"])
def test_tls_on_one_side_only_is_told_to_both(ram: Ram, authority: Authority, with_tls: str) -> None:
    files = authority.host("one")
    said = refusals(ram, files if with_tls == "source" else None, files if with_tls == "destination" else None)
    assert all("uses TLS" in text for text in said)


def test_a_certificate_of_another_authority_is_refused(ram: Ram, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").host("source")
    trusting = TlsFiles(stranger.certificate, stranger.key, authority.path)
    said_by_source, said_by_destination = refusals(ram, trusting, authority.host("two"))
    assert "refused this host's certificate" in said_by_source
    assert "does not verify" in said_by_destination


def test_a_source_refuses_a_destination_that_its_authority_does_not_know(
    ram: Ram, authority: Authority, tmp_path: Path
) -> None:
    said_by_source, _ = refusals(ram, Authority(tmp_path, "mine").host("source"), authority.host("three"))
    assert "does not verify" in said_by_source


def test_a_good_certificate_that_is_not_the_one_offered_is_refused(ram: Ram, authority: Authority) -> None:
    said = refusals(ram, authority.host("four"), authority.host("five"), fingerprint="ab" * 32)
    assert all("another certificate than its offer" in text for text in said)


def test_a_destination_with_another_certificate_than_it_offered_is_refused(ram: Ram, authority: Authority) -> None:
    with (
        closing(TcpEndpoint(ram, TcpSettings("source", tls=authority.host("eight")))) as source,
        closing(TcpEndpoint(ram, TcpSettings("destination", tls=authority.host("nine")))) as destination,
    ):
        waiting = Waiting(destination, source.offer(), 1)
        with pytest.raises(PeerError, match="somebody else"):
            source.connect({**destination.offer(), "fingerprint": "ab" * 32}, 10)
        waiting.join()


def test_files_that_do_not_fit_are_a_setting_to_correct(ram: Ram, authority: Authority, tmp_path: Path) -> None:
    one, other = authority.host("six"), authority.host("seven")
    (tmp_path / "junk.pem").write_text("junk")
    for files in (
        TlsFiles(one.certificate, other.key, one.ca),
        TlsFiles(tmp_path / "junk.pem", one.key, one.ca),
        TlsFiles(tmp_path / "missing.pem", one.key, one.ca),
    ):
        with pytest.raises(SettingsError, match="TLS files"):
            TcpEndpoint(ram, TcpSettings("source", tls=files))


# --- a peer that breaks the rules, or dies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"\0" * 16,
        struct.pack(">2sBBIQ", b"DW", 2, 3, 0, 4),
        struct.pack(">2sBBIQ", b"DW", 1, 99, 0, 4),
        struct.pack(">2sBBIQ", b"DW", 1, 3, 0, 1 << 40),
    ],
    ids=["zeroes", "a version to come", "an unknown kind", "a message without end"],
)
def test_an_illegal_frame_ends_the_connection_with_its_reason(
    source: TcpEndpoint, destination: TcpEndpoint, frame: bytes
) -> None:
    waiting = Waiting(destination, source.offer())
    with contextlib.ExitStack() as sockets:
        control, *_ = [sockets.enter_context(hello(destination, b"x" * 16, index)) for index in range(3)]
        waiting.join()
        control.sendall(frame)
        with pytest.raises(PeerError, match="sent") as error:
            destination.receive(20)
        assert not isinstance(error.value, PeerLostError)


@pytest.mark.parametrize(
    ("rows", "size", "table"),
    [
        (1, 4096, struct.pack(">QII", 0, 8192, 7)),
        (2, 4096, struct.pack(">QIIQII", 0, 4096, 7, 0, 0, 7)),
        (0, 4096, b""),
        (70_000, 4096, b""),
    ],
    ids=["rows longer than the frame", "an empty row", "no row", "a table without end"],
)
def test_an_illegal_table_ends_the_connection(
    source: TcpEndpoint, destination: TcpEndpoint, rows: int, size: int, table: bytes
) -> None:
    waiting = Waiting(destination, source.offer())
    with contextlib.ExitStack() as sockets:
        _, data, _ = [sockets.enter_context(hello(destination, b"x" * 16, index)) for index in range(3)]
        waiting.join()
        data.sendall(struct.pack(">2sBBIQ", b"DW", 1, 1, rows, size) + table)
        with pytest.raises(PeerError, match="sent"):
            destination.receive(20)


DESTINATION = """
import json, sys
from tests.contract.transport_makers import make_ram
from workers.ranges import RangeTable
from workers.transports.tcp import TcpEndpoint, TcpSettings
endpoint = TcpEndpoint(make_ram(), TcpSettings("destination"))
print(json.dumps(endpoint.offer()), flush=True)
endpoint.connect(json.loads(sys.stdin.readline()), 20)
endpoint.register(RangeTable([(0, 4096)]))
endpoint.send(b"ready")
endpoint.receive(600)
"""


def test_a_killed_peer_is_a_lost_peer(source: TcpEndpoint) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DESTINATION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin
        assert process.stdout
        offer = json.loads(process.stdout.readline())
        process.stdin.write(json.dumps(source.offer()) + "\n")
        process.stdin.flush()
        source.connect(offer, 20)
        assert source.receive(20) == b"ready"
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PeerLostError):
            source.receive(20)
        with pytest.raises(PeerLostError):
            source.register(RangeTable([(0, 4096)]))
