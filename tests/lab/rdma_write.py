"""Runs in a lab machine: writes MIB MiB from one RDMA device to another, by pyverbs alone, in one process.

    rdma_write.py SOURCE DESTINATION MIB

Shows that the lab's devices carry RDMA before anything of the project is blamed. Prints a line per MiB as it completes,
then the seconds that the writes took.
"""

from __future__ import annotations

import os
import sys
import time

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

MIB = 1 << 20
IPV4 = 1  # the GID index of a device's IPv4 address
IN_FLIGHT = 8


class End:
    """A queue pair on a device."""

    def __init__(self, device: str) -> None:
        self.context = Context(name=device)
        self.gid = str(self.context.query_gid(1, IPV4))
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 4 * IN_FLIGHT)
        capacity = QPCap(max_send_wr=2 * IN_FLIGHT, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        self.qp = QP(self.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=capacity))

    def connect(self, other: End) -> None:
        """Bring it up to send to `other`. It rides out 4 s of loss at least."""
        attributes = QPAttr(port_num=1)
        attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_WRITE
        self.qp.to_init(attributes)
        attributes = QPAttr(port_num=1)
        attributes.path_mtu = e.IBV_MTU_4096
        attributes.dest_qp_num = other.qp.qp_num
        attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = 12
        route = GlobalRoute(dgid=GID(other.gid), sgid_index=IPV4, hop_limit=64)
        attributes.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        self.qp.to_rtr(attributes)
        attributes.timeout = 18
        attributes.retry_cnt = 6
        attributes.rnr_retry = 6
        attributes.max_rd_atomic = 1
        self.qp.to_rts(attributes)


def main() -> None:
    source, destination, count = End(sys.argv[1]), End(sys.argv[2]), int(sys.argv[3])
    source.connect(destination)
    destination.connect(source)
    sent = MR(source.pd, MIB, e.IBV_ACCESS_LOCAL_WRITE)
    content = os.urandom(MIB)
    sent.write(content, MIB)
    received = MR(destination.pd, count * MIB, e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE)
    posted = done = 0
    start = time.monotonic()
    while done < count:
        while posted < count and posted - done < IN_FLIGHT:
            element = SGE(sent.buf, MIB, sent.lkey)
            write = SendWR(
                wr_id=posted, opcode=e.IBV_WR_RDMA_WRITE, num_sge=1, sg=[element], send_flags=e.IBV_SEND_SIGNALED
            )
            write.set_wr_rdma(received.rkey, received.buf + posted * MIB)
            source.qp.post_send(write)
            write.close()
            element.close()
            posted += 1
        polled, completions = source.cq.poll(IN_FLIGHT)
        for completion in completions or []:
            assert completion.status == e.IBV_WC_SUCCESS, f"write {completion.wr_id}: status {completion.status}"
            done += 1
            print(f"{done} MiB", flush=True)
        if not polled:
            time.sleep(0.001)
    seconds = time.monotonic() - start
    assert all(received.read(MIB, number * MIB) == content for number in range(count)), "something else arrived"
    print(f"{seconds:.3f} s, {count / seconds:.0f} MiB/s")


if __name__ == "__main__":
    main()
