"""The verbs offer's codec, the table of completions, and what can be shown of pyverbs without a device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
from workers.transports.verbs.completions import MAY_BE_A_DYING_PEER, MEANINGS, Status, name_failure
from workers.transports.verbs.offer import QueuePairName, VerbsOffer, decode_offer

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


def test_requests_are_reused_and_end_where_the_list_ends(pyverbs: None) -> None:
    """In a process of its own: how such structures are freed differs between versions of pyverbs."""
    said = in_python(
        "import numpy as np\n"
        "from workers.transports.contract import Writes\n"
        "from workers.transports.verbs.library import Verbs\n"
        "from workers.transports.verbs.work_requests import LENGTH, SIGNAL_EVERY, WriteRequests\n"
        "verbs = Verbs(); requests = WriteRequests(verbs)\n"
        "def batch(n):\n"
        "    at = np.arange(n, dtype=np.int64) * 4096\n"
        "    return Writes(at, np.full(n, 4096), at + 7, np.full(n, 9, np.uint64))\n"
        "for n in (1, 2, 17, LENGTH):\n"
        "    head = requests.fill(1 << 20, batch(n), [5] * n, 1000, 128)\n"
        "    work, seen, signalled = head, 0, []\n"
        "    for place in range(LENGTH - n, LENGTH):\n"
        "        work, sge = requests._works[place], requests._sges[place]\n"
        "        row = place - (LENGTH - n)\n"
        "        assert (sge.addr, sge.length, sge.lkey) == ((1 << 20) + 4096 * row, 4096, 5)\n"
        "        assert work.wr_id == 1000 + 128 * row\n"
        "        signalled.append(bool(work.send_flags & verbs.enums.IBV_SEND_SIGNALED))\n"
        "    assert head is requests._works[LENGTH - n]\n"
        "    assert signalled[-1] and sum(signalled) == -(-n // SIGNAL_EVERY), signalled\n"
        "print('ok')"
    )
    assert said.strip() == "ok"
