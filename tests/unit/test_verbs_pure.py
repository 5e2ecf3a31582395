"""The verbs offer's codec, the table of completions, and what can be shown of pyverbs without a device."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from config.errors import (
    DeviceError,
    LinkLostError,
    LocalProtectionError,
    MessageError,
    MigrationFailedError,
    PeerError,
    PeerLostError,
    RemoteAccessError,
)
from tests.requirements import missing
from workers.ranges import PAGE_SIZE
from workers.transports.contract import Writes
from workers.transports.verbs.completions import MAY_BE_A_DYING_PEER, MEANINGS, Status, name_failure
from workers.transports.verbs.offer import QueuePairName, VerbsOffer, decode_offer
from workers.transports.verbs.post_send import PostSend
from workers.transports.verbs.work_requests import LENGTH, SIGNAL_EVERY, WriteRequests

OFFER = VerbsOffer(
    device="mlx5_0",
    link_layer="ethernet",
    gid="0000:0000:0000:0000:0000:ffff:0a00:0001",
    lid=0,
    mtu=4096,
    queue_pairs=(QueuePairName(17, 99), QueuePairName(18, (1 << 24) - 1)),
    scratch=(0x7F0000000000, 0x1234),
    odp=False,
    control={"addresses": ["10.0.0.1:49152"], "token": "0" * 64, "fingerprint": None},
)


# --- the offer --------------------------------------------------------------------------------------------------------


def test_an_offer_survives_its_way_and_unknown_fields_are_ignored() -> None:
    assert decode_offer({**OFFER.encode(), "new": 1}) == OFFER
    assert OFFER.encode()["channels"] == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_pairs", []),
        ("queue_pairs", "17"),
        ("queue_pairs", [[17]]),
        ("queue_pairs", [[1 << 24, 0]]),
        ("queue_pairs", [[17, -1]]),
        ("queue_pairs", [[True, 0]]),
        ("queue_pairs", [[17, 0]] * 129),
        ("gid", "10.0.0.1"),
        ("gid", None),
        ("gid", "fe80::%eth0/64"),
        ("lid", 1 << 16),
        ("lid", "1"),
        ("mtu", 1500),
        ("mtu", "4096"),
        ("link_layer", "token ring"),
        ("scratch", [1 << 64, 1]),
        ("scratch", [0, 1 << 32]),
        ("scratch", 5),
        ("control", None),
    ],
)
def test_a_malformed_offer_is_refused(field: str, value: object) -> None:
    with pytest.raises(MessageError, match="verbs offer"):
        decode_offer({**OFFER.encode(), field: value})


def test_only_a_true_odp_counts() -> None:
    assert not decode_offer({**OFFER.encode(), "odp": "yes"}).odp


# --- completions ------------------------------------------------------------------------------------------------------


def test_every_status_but_success_has_its_meaning() -> None:
    assert set(MEANINGS) == set(Status) - {Status.SUCCESS}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.REM_ACCESS_ERR, RemoteAccessError),
        (Status.REM_INV_REQ_ERR, RemoteAccessError),
        (Status.LOC_PROT_ERR, LocalProtectionError),
        (Status.LOC_QP_OP_ERR, LocalProtectionError),
        (Status.RETRY_EXC_ERR, LinkLostError),
        (Status.REM_OP_ERR, PeerError),
        (Status.FATAL_ERR, DeviceError),
        (Status.WR_FLUSH_ERR, MigrationFailedError),
    ],
)
def test_a_failure_is_named_with_its_status_the_write_and_what_to_do(status: Status, error: type[Exception]) -> None:
    named = name_failure(status, "a write of 4096 bytes from guest memory 0x5000", port_is_active=True)
    assert type(named) is error
    for word in (str(int(status)), status.name, "0x5000", "; "):
        assert word in str(named)


def test_a_status_of_tomorrow_is_named_too() -> None:
    assert "99" in str(name_failure(99, "a write", port_is_active=True))


def test_a_port_that_is_down_explains_what_looks_local() -> None:
    for status in (Status.LOC_QP_OP_ERR, Status.RETRY_EXC_ERR, Status.WR_FLUSH_ERR):
        named = name_failure(status, "a write", port_is_active=False)
        assert type(named) is LinkLostError
        assert "no longer active" in str(named)
    assert type(name_failure(Status.REM_ACCESS_ERR, "a write", port_is_active=False)) is RemoteAccessError


def test_only_what_the_peer_or_the_link_causes_may_be_a_dying_peer() -> None:
    assert Status.REM_ACCESS_ERR in MAY_BE_A_DYING_PEER  # its regions go before its queue pairs do
    assert Status.RETRY_EXC_ERR in MAY_BE_A_DYING_PEER
    assert Status.LOC_PROT_ERR not in MAY_BE_A_DYING_PEER
    assert issubclass(LinkLostError, PeerLostError)


# --- pyverbs ----------------------------------------------------------------------------------------------------------


def in_python(code: str, *options: str) -> str:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_host_without_pyverbs_is_told_the_package() -> None:
    said = in_python(
        "import sys; sys.modules['pyverbs'] = None\n"
        "from workers.transports.verbs.library import Verbs\n"
        "from config.errors import DeviceError\n"
        "try: Verbs()\n"
        "except DeviceError as error: print(error)"
    )
    assert "apt install python3-pyverbs rdma-core" in said


def test_the_package_itself_imports_no_pyverbs() -> None:
    said = in_python("import sys, workers.transports.open; print([name for name in sys.modules if 'pyverbs' in name])")
    assert said.strip() == "[]"


@pytest.fixture
def pyverbs() -> None:
    try:
        import pyverbs.device  # noqa: F401
    except ImportError:
        missing("no pyverbs for this Python (apt install python3-pyverbs)")


def test_loading_pyverbs_leaves_the_root_logger_alone(pyverbs: None) -> None:
    said = in_python(
        "import logging\n"
        "from workers.transports.verbs.library import Verbs\n"
        "Verbs(); print(logging.root.handlers, logging.root.level)"
    )
    assert said.strip() == f"[] {30}"


def test_requests_are_reused_and_end_where_the_list_ends() -> None:
    """Walked as the device's library walks it: from the head along `next`, each request's `sg_list` on its way."""
    requests = WriteRequests()
    for count in (1, 2, 17, LENGTH):
        at = np.arange(count, dtype=np.int64) * PAGE_SIZE
        batch = Writes(at, np.full(count, PAGE_SIZE), at + 7, np.full(count, 9, np.uint64))
        head = requests.fill(1 << 20, batch, np.full(count, 5, np.uint32), 1000, 128)
        signalled = []
        for row in range(count):
            work = SendWr.from_address(head)
            sge = Sge.from_address(work.sg_list)
            assert (sge.addr, sge.length, sge.lkey) == ((1 << 20) + PAGE_SIZE * row, PAGE_SIZE, 5)
            assert (work.wr_id, work.num_sge, work.opcode) == (1000 + 128 * row, 1, 0)
            assert (work.remote_addr, work.rkey) == (PAGE_SIZE * row + 7, 9)
            signalled.append(work.send_flags == 2)
            head = work.next
        assert not head
        assert signalled[-1]
        assert sum(signalled) == -(-count // SIGNAL_EVERY), signalled


class Sge(ctypes.Structure):
    """struct ibv_sge, infiniband/verbs.h."""

    _fields_ = (("addr", ctypes.c_uint64), ("length", ctypes.c_uint32), ("lkey", ctypes.c_uint32))


class SendWr(ctypes.Structure):
    """struct ibv_send_wr up to what an RDMA write needs, infiniband/verbs.h."""

    _fields_ = (
        ("wr_id", ctypes.c_uint64),
        ("next", ctypes.c_uint64),
        ("sg_list", ctypes.c_uint64),
        ("num_sge", ctypes.c_int),
        ("opcode", ctypes.c_int),
        ("send_flags", ctypes.c_uint),
        ("imm_data", ctypes.c_uint32),
        ("remote_addr", ctypes.c_uint64),
        ("rkey", ctypes.c_uint32),
    )


class NotAQueuePair:
    """An object with a queue pair's properties, and no pointer to one."""

    qp_num, qp_state, qp_type = 17, 3, 2


def test_a_layout_that_is_not_known_is_an_error_and_no_crash() -> None:
    with pytest.raises(DeviceError, match="report both versions"):
        PostSend(NotAQueuePair(), 3)
