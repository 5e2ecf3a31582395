"""What a failed completion means for a migration, as one table. Pure.

Numbers are `enum ibv_wc_status`. What each looks like in practice was measured on soft-RoCE (Linux 6.1), where a device
may also report its neighbour: a wrong local key is LOC_QP_OP_ERR there and LOC_PROT_ERR on most adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from config.errors import (
    DeviceError,
    DrovewayError,
    LinkLostError,
    LocalProtectionError,
    MigrationFailedError,
    PeerError,
    RemoteAccessError,
)


class Status(IntEnum):
    """`enum ibv_wc_status` (rdma-core, libibverbs/verbs.h)."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    LOC_RDD_VIOL_ERR = 14
    REM_INV_RD_REQ_ERR = 15
    REM_ABORT_ERR = 16
    INV_EECN_ERR = 17
    INV_EEC_STATE_ERR = 18
    FATAL_ERR = 19
    RESP_TIMEOUT_ERR = 20
    GENERAL_ERR = 21


@dataclass(frozen=True, slots=True)
class Meaning:
    """Which error a status becomes, what happened, and what to do next."""

    error: type[DrovewayError]
    happened: str
    advice: str


_DEFECT = "this is a defect of the program: keep both movers' logs and report it"
_LOCAL = Meaning(LocalProtectionError, "this host's device refused to read the memory to be sent", _DEFECT)
_REFUSED = Meaning(RemoteAccessError, "the destination's device refused the write", _DEFECT)
_LINK = Meaning(
    LinkLostError,
    "the destination's device confirmed nothing, however often it was asked",
    "check the link between the hosts (cable, switch, PFC, a firewall on UDP port 4791) and migrate again",
)
_PEER = Meaning(PeerError, "the destination's device gave up", "look at the destination's kernel log for its device")
_DEVICE = Meaning(
    DeviceError,
    "this host's device or its port failed",
    "look at the kernel log and at `rdma link`, and choose another by rdma.device when it is broken",
)
_FLUSHED = Meaning(MigrationFailedError, "the queue pair stopped before this write", "look for the error before it")

MEANINGS: Mapping[Status, Meaning] = {
    Status.LOC_LEN_ERR: _LOCAL,
    Status.LOC_QP_OP_ERR: _LOCAL,
    Status.LOC_EEC_OP_ERR: _LOCAL,
    Status.LOC_PROT_ERR: _LOCAL,
    Status.WR_FLUSH_ERR: _FLUSHED,
    Status.MW_BIND_ERR: _LOCAL,
    Status.BAD_RESP_ERR: _PEER,
    Status.LOC_ACCESS_ERR: _LOCAL,
    Status.REM_INV_REQ_ERR: _REFUSED,
    Status.REM_ACCESS_ERR: _REFUSED,
    Status.REM_OP_ERR: _PEER,
    Status.RETRY_EXC_ERR: _LINK,
    Status.RNR_RETRY_EXC_ERR: _LINK,
    Status.LOC_RDD_VIOL_ERR: _LOCAL,
    Status.REM_INV_RD_REQ_ERR: _REFUSED,
    Status.REM_ABORT_ERR: _PEER,
    Status.INV_EECN_ERR: _DEVICE,
    Status.INV_EEC_STATE_ERR: _DEVICE,
    Status.FATAL_ERR: _DEVICE,
    Status.RESP_TIMEOUT_ERR: _LINK,
    Status.GENERAL_ERR: _DEVICE,
}

#: A peer that is killed may answer with these, since its regions go before its queue pairs do (2 of 3 times here).
MAY_BE_A_DYING_PEER = frozenset(status for status, row in MEANINGS.items() if row in (_REFUSED, _LINK, _PEER))


def status_name(status: int) -> str:
    """A failed completion's status as the metrics name it: retry-exc-err."""
    return Status(status).name.lower().replace("_", "-") if status in set(Status) else "unknown"


def name_failure(status: int, write: str, *, port_is_active: bool) -> DrovewayError:
    """The typed error for a completion that failed with `status`; `write` says which write it was.

    A port that went down shows as a local error (LOC_QP_OP_ERR), so its state is asked first.
    """
    try:
        known = Status(status)
        meaning, name = MEANINGS[known], known.name
    except (ValueError, KeyError):  # a newer libibverbs, or a success taken for a failure
        meaning, name = _DEVICE, "unknown"
    if not port_is_active and meaning in (_LOCAL, _LINK, _FLUSHED):
        meaning = Meaning(
            LinkLostError, "this host's RDMA port is no longer active", "bring its link up and migrate again"
        )
    return meaning.error(f"{write} failed with status {status} ({name}): {meaning.happened}; {meaning.advice}")
