"""The control connection by itself, as a transport without data connections uses it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from config.errors import DrovewayError, PeerError, PeerLostError, RemoteAccessError
from tests.contract.transport_makers import make_ram
from workers.transports.tcp import Control, ControlSettings, TcpEndpoint, TcpSettings
from workers.transports.tcp.frames import Kind
from workers.transports.tcp.meeting import Dialler

PATIENCE = 30.0


class Owner:
    """What stands where an endpoint stands; `stopped` once its control has called it."""

    def __init__(self, settings: ControlSettings) -> None:
        self.stopped = threading.Event()
        self.control = Control(settings, self.stopped.set)


@pytest.fixture
def source() -> Iterator[Owner]:
    owner = Owner(ControlSettings("source"))
    with closing(owner.control):
        yield owner


@pytest.fixture
def destination() -> Iterator[Owner]:
    owner = Owner(ControlSettings("destination"))
    with closing(owner.control):
        yield owner


def meet(source: Control, destination: Control, data_connections: int = 0) -> list[socket.socket]:
    """Connect both; all data connections, which the caller closes."""
    opened: list[socket.socket] = []
    waiting = threading.Thread(
        target=lambda: opened.extend(destination.connect(source.offer(), PATIENCE, data_connections))
    )
    waiting.start()
    try:
        opened += source.connect(destination.offer(), PATIENCE, data_connections)
    finally:
        waiting.join()
    return opened


@pytest.fixture
def pair(source: Owner, destination: Owner) -> tuple[Owner, Owner]:
    assert meet(source.control, destination.control) == []
    return source, destination


def failure(control: Control) -> DrovewayError:
    """The failure that `control` learns of."""
    with pytest.raises(DrovewayError) as caught:
        control.receive(PATIENCE)
    return caught.value


def test_messages_need_no_data_connection(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    source.control.send(b"there")
    assert destination.control.receive(PATIENCE) == b"there"
    destination.control.send(b"back")
    assert source.control.receive(PATIENCE) == b"back"
    assert not source.stopped.is_set()


def test_data_connections_come_with_the_same_token(source: Owner, destination: Owner) -> None:
    opened = meet(source.control, destination.control, 3)
    for connection in opened:
        connection.close()
    assert len(opened) == 2 * 3


def test_a_source_that_finds_its_write_refused_tells_the_destination(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    source.control.fail(RemoteAccessError("the write at 4096 was refused"), tell="a write at 4096 was refused")

    told = failure(destination.control)
    assert type(told) is PeerError
    assert "a write at 4096 was refused" in str(told)
    with pytest.raises(RemoteAccessError, match="4096"):
        source.control.send(b"more")
    assert source.stopped.is_set()
    assert destination.stopped.wait(PATIENCE)


def test_a_destination_that_refuses_a_write_tells_the_source(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    destination.control.fail(PeerError("cut off"), tell="a write at 4096", kind=Kind.REFUSED)

    told = failure(source.control)
    assert type(told) is RemoteAccessError
    assert "refused a write at 4096" in str(told)
    with pytest.raises(PeerError, match="cut off"):
        destination.control.check()


def test_a_destination_cannot_be_told_that_it_was_refused(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    source.control.fail(PeerError("over"), tell="a lie", kind=Kind.REFUSED)
    told = failure(destination.control)
    assert type(told) is PeerError
    assert "a lie" not in str(told)


def test_the_first_failure_stays_and_is_the_one_that_is_told(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    source.control.fail(PeerError("first"), tell="first")
    source.control.fail(RemoteAccessError("second"), tell="second")
    assert "first" in str(failure(destination.control))
    with pytest.raises(PeerError, match="first"):
        source.control.check()


def test_a_failure_without_a_word_is_a_lost_peer_to_the_other(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    source.control.send(b"last")
    source.control.fail(PeerError("nobody's business"))
    assert destination.control.receive(PATIENCE) == b"last"
    assert type(failure(destination.control)) is PeerLostError


def test_each_raise_of_a_failure_is_a_fresh_error(source: Owner) -> None:
    source.control.fail(PeerError("once"))
    assert failure(source.control) is not failure(source.control)


def test_who_waits_for_something_of_its_own_is_woken_by_the_peers_last_word(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    timer = threading.Timer(0.05, lambda: destination.control.fail(PeerError("no room"), tell="no room"))
    timer.start()
    with source.control.changed, pytest.raises(PeerError, match="no room"):
        source.control.wait(lambda: False, PATIENCE)
    timer.join()


def test_waiting_ends_when_the_time_is_out_or_the_thing_is_there(source: Owner) -> None:
    with source.control.changed:
        assert not source.control.wait(lambda: False, 0.01)
        assert source.control.wait(lambda: True, 0.01)


def test_a_way_that_ends_waits_for_the_peers_reason(pair: tuple[Owner, Owner]) -> None:
    source, destination = pair
    destination.control.fail(PeerError("no room"), tell="no room")
    source.control.lost("a write was not answered")
    assert "no room" in str(failure(source.control))


def _ends() -> None:
    pass


def _loses_the_link() -> None:
    raise OSError(5, "link down")


def _finds_fault() -> None:
    raise PeerError("that makes no sense")


@pytest.mark.parametrize(
    ("task", "kind", "told"),
    [
        (_ends, PeerLostError, PeerLostError),
        (_loses_the_link, PeerLostError, PeerLostError),
        (_finds_fault, PeerError, PeerError),
    ],
)
def test_whatever_ends_a_thread_ends_the_connection(
    pair: tuple[Owner, Owner], task: Callable[[], None], kind: type[PeerError], told: type[PeerError]
) -> None:
    source, destination = pair
    source.control.start(task)
    assert type(failure(source.control)) is kind
    assert type(failure(destination.control)) is told


@pytest.fixture
def aborted_as_it_meets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Put an abort in, and it comes when the source has met its peer and has nothing to stop yet."""
    aborts: list[Callable[[], None]] = []
    real = Dialler.meet

    def meet(dialler: Dialler, timeout: float) -> list[socket.socket]:
        connections = real(dialler, timeout)
        for abort in aborts:
            abort()
        return connections

    monkeypatch.setattr(Dialler, "meet", meet)
    return aborts


def test_an_abort_at_the_moment_of_meeting_reaches_the_peer(
    source: Owner, destination: Owner, aborted_as_it_meets: list[Callable[[], None]]
) -> None:
    aborted_as_it_meets.append(source.control.abort)
    meet(source.control, destination.control)
    assert source.control.failed
    assert type(failure(destination.control)) is PeerLostError


def test_an_endpoint_aborted_at_the_moment_of_meeting_stops_its_data_connections(
    aborted_as_it_meets: list[Callable[[], None]],
) -> None:
    with (
        closing(make_ram()) as ram,
        closing(TcpEndpoint(ram, TcpSettings("source"))) as source,
        closing(Control(ControlSettings("destination"), lambda: None)) as destination,
    ):
        aborted_as_it_meets.append(source.abort)
        opened: list[socket.socket] = []
        waiting = threading.Thread(
            target=lambda: opened.extend(destination.connect(source.offer(), PATIENCE, 2)),
        )
        waiting.start()
        with pytest.raises(PeerLostError, match="aborted"):
            source.connect({**destination.offer(), "channels": 2}, PATIENCE)
        waiting.join()
        assert len(opened) == 2
        for connection in opened:
            with closing(connection):
                connection.settimeout(PATIENCE)
                assert connection.recv(1) == b""
