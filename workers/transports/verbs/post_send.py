"""`ibv_post_send` as a C program calls it: through the function table of libibverbs' public interface.

pyverbs' own wants request objects of its own and keeps the interpreter's lock while the device is told. A card is told
in a microsecond; soft-RoCE moves the data within the call, 10 to 15 ms a MiB in an emulated machine, in which no other
thread of the mover would run. A foreign call gives the lock back.

pyverbs shows no pointers. The queue pair's is found among the fields of its object, as the one that leads to a
`struct ibv_qp` with the number, state and type that pyverbs says, on a context with its descriptor. Nothing is followed
before the kernel has read it for us, so a layout that we do not know is an error, never a crash.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

from config.errors import DeviceError

#: struct ibv_qp up to its type: context, qp_context, pd, send_cq, recv_cq, srq; handle, qp_num, state, qp_type.
_QP = struct.Struct("6Q4I")
#: struct ibv_context up to its descriptor: device, 32 functions, cmd_fd.
_CONTEXT = struct.Struct("33Qi")
#: Where post_send is in it: the 26th function.
_POST_SEND = 1 + 25
_libc = ctypes.CDLL(None, use_errno=True)
_libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.write.restype = ctypes.c_ssize_t
_PostSend = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class PostSend:
    """Posting to one queue pair; for one thread at a time, and never after the queue pair was closed."""

    def __init__(self, qp: Any, command_descriptor: int) -> None:
        """Raises DeviceError when pyverbs or libibverbs are laid out in a way that we do not know."""
        self._qp, function = _found(qp, command_descriptor)
        self._function = _PostSend(function)
        self._refused = ctypes.c_void_p()
        self._refused_at = ctypes.addressof(self._refused)

    def __call__(self, head: int) -> int:
        """Post the list of requests that begins at this address; 0, or the errno of the first that was refused."""
        return int(self._function(self._qp, head, self._refused_at))


def _found(qp: Any, command_descriptor: int) -> tuple[int, int]:
    fields = (ctypes.c_uint64 * (type(qp).__basicsize__ // 8)).from_address(id(qp))
    wanted = (qp.qp_num, qp.qp_state, qp.qp_type)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0):
        for address in fields:
            found = _read(address, _QP, reading, writing)
            if not found or found[-3:] != wanted:
                continue
            context = _read(found[0], _CONTEXT, reading, writing)
            if context and context[-1] == command_descriptor:
                return address, context[_POST_SEND]
    raise DeviceError(
        "this version of pyverbs or libibverbs keeps its queue pairs in a way that Droveway does not know: install the "
        "distribution's own python3-pyverbs with the rdma-core of the same version, and report both versions"
    )


def _read(address: int, layout: struct.Struct, reading: int, writing: int) -> tuple[int, ...] | None:
    """What lies at an address, if that is one of ours to read: a write of what is not fails, or ends there.

    Through a pipe, since /proc/self/mem is closed to a process that gave up its privileges.
    """
    copied = _libc.write(writing, address, layout.size)
    found = os.read(reading, layout.size) if copied > 0 else b""
    return layout.unpack(found) if len(found) == layout.size else None
