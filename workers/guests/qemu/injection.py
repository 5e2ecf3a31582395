"""One system call made inside another process: how a userfaultfd comes to be for memory that is not ours (x86-64).

    attach (SEIZE) → stop its main thread → save registers → call, where it waits → restore → let go

Killed at any point of it, we leave the process running. That rules out single steps, at which the kernel would deliver
SIGTRAP to it. The wait that we interrupt is left the way in which the kernel restarts it by itself, and it must be a
wait for descriptors: if we die, it returns early with our call's result for a count. QEMU's main loop then looks at its
descriptors, finds nothing, and waits again. Any other system call might make something of a strange result (a lock's
would end the process), so we wait until the main loop is idle, which takes no time even in a busy QEMU.

ptrace belongs to the thread that attached: all of it happens in one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config.errors import HostError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.syscall.restype = ctypes.c_long
_SEIZE, _INTERRUPT, _DETACH, _GETREGS, _SETREGS, _SYSCALL, _CONT = 0x4206, 0x4207, 17, 12, 13, 24, 7
_TRACE_SYSGOOD = 1
_WALL = 0x40000000
#: A stop at a system call, told from a signal's by PTRACE_O_TRACESYSGOOD.
_AT_SYSCALL = signal.SIGTRAP | 0x80
#: The stop that PTRACE_INTERRUPT makes, in the bits above the signal.
_EVENT_STOP = 128
_SYSCALL_INSTRUCTION = b"\x0f\x05"
#: poll and ppoll, which leave a note of nothing with each descriptor. epoll's list would be taken for full.
_WAITS_FOR_DESCRIPTORS = frozenset({7, 271})
#: Seconds in which a main loop that is not stuck comes to wait.
_IDLE_SECONDS = 10.0
#: Seconds between two looks, doubled each time: one that is behind with its work, or waits for QEMU's big lock, would
#: come to an end no sooner for being stopped every millisecond (on a loaded host it was so held up for 5 s).
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.064
_USERFAULTFD, _CLOSE, _PIDFD_GETFD = 323, 3, 438
_USER_MODE_ONLY = 1

_NAMES = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es"


class _Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in f"{_NAMES} fs gs".split())


def userfaultfd_in(pid: int) -> int:
    """A userfaultfd (O_NONBLOCK, USER_MODE_ONLY) over that process's memory, as a descriptor of ours alone.

    Those that workers left there who died within an injection are closed, and with them ends what they tracked: of two
    only one could follow the same memory. Only the main thread stands still, for 0.2 ms, 4 at most (measured).
    Raises HostError.
    """
    try:
        with _stopped(pid) as thread:
            for left in left_userfaultfds(pid):
                thread.call(_CLOSE, left)
            theirs = thread.call(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
            try:
                return _taken(pid, theirs)
            finally:
                thread.call(_CLOSE, theirs)
    except OSError as error:  # from /proc, or waiting for it
        raise HostError(f"process {pid} ended while it was attached to ({error.strerror})") from None


def left_userfaultfds(pid: int) -> list[int]:
    """Descriptors of userfaultfds in that process. QEMU has some of its own only in postcopy and snapshots."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(entry.readlink()) == "anon_inode:[userfaultfd]":
                found.append(int(entry.name))
    return sorted(found)


def _taken(pid: int, descriptor: int) -> int:
    """A descriptor of that process, as one of ours for the same thing."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise HostError(f"process {pid} cannot be opened ({error.strerror}): is the guest gone?") from None
    try:
        got = int(_libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
    finally:
        os.close(process)
    if got < 0:
        raise _not_allowed(pid, ctypes.get_errno())
    return got


class _Stopped:
    """The main thread of a process, attached to and stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._held_back: list[int] = []
        self._saved = _Registers()
        self._at = 0

    def stop(self) -> bool:
        """Interrupt it, pass on the signals that come first; whether it was waiting for descriptors."""
        self._ptrace(_INTERRUPT)
        while not self._is_event_stop(status := self._wait()):
            self._ptrace(_CONT, data=os.WSTOPSIG(status))
        self._ptrace(_GETREGS, data=ctypes.addressof(self._saved))
        self._at = self._saved.rip - len(_SYSCALL_INSTRUCTION)
        return self._saved.orig_rax in _WAITS_FOR_DESCRIPTORS and self._instruction() == _SYSCALL_INSTRUCTION

    def go_on(self) -> None:
        """Let it run; `stop` stops it again."""
        self._ptrace(_CONT)

    def call(self, number: int, *arguments: int) -> int:
        """What the system call returns there. Raises HostError with its errno's words."""
        registers = _Registers.from_buffer_copy(self._saved)
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(registers, name, value)
        # orig_rax -1: the kernel must not restart what the thread was interrupted in from here.
        registers.rax, registers.orig_rax, registers.rip = number, (1 << 64) - 1, self._at
        self._ptrace(_SETREGS, data=ctypes.addressof(registers))
        self._to_syscall_stop()
        self._to_syscall_stop()
        self._ptrace(_GETREGS, data=ctypes.addressof(registers))
        result = ctypes.c_int64(registers.rax).value
        if -4096 < result < 0:
            raise HostError(f"process {self._pid} may not make system call {number}: {os.strerror(-result)}")
        return result

    def restore(self) -> None:
        """Back to a stop inside the kernel's signal delivery: only from there does it restart an interrupted wait."""
        self._ptrace(_SETREGS, data=ctypes.addressof(self._saved))
        self._ptrace(_INTERRUPT)
        self._ptrace(_CONT)
        while not self._is_event_stop(status := self._wait()):
            self._ptrace(_CONT, data=os.WSTOPSIG(status))

    def let_go(self) -> None:
        """Detach, and deliver what was held back."""
        with suppress(HostError):  # it has ended
            self._ptrace(_DETACH)
        for number in self._held_back:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _to_syscall_stop(self) -> None:
        while True:
            self._ptrace(_SYSCALL)
            status = self._wait()
            if os.WSTOPSIG(status) == _AT_SYSCALL:
                return
            if not status >> 16:
                self._held_back.append(os.WSTOPSIG(status))

    def _wait(self) -> int:
        _, status = os.waitpid(self._pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise HostError(f"process {self._pid} ended while it was being attached to")
        return status

    @staticmethod
    def _is_event_stop(status: int) -> bool:
        return status >> 16 == _EVENT_STOP

    def _instruction(self) -> bytes:
        with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), len(_SYSCALL_INSTRUCTION), self._at)

    def _ptrace(self, request: int, data: int = 0) -> None:
        _ptrace(request, self._pid, data)


@contextmanager
def _stopped(pid: int) -> Iterator[_Stopped]:
    _ptrace(_SEIZE, pid, _TRACE_SYSGOOD)
    thread = _Stopped(pid)
    try:
        _stop_where_it_waits(thread, pid)
        try:
            yield thread
        finally:
            thread.restore()
    finally:
        thread.let_go()


def _stop_where_it_waits(thread: _Stopped, pid: int) -> None:
    deadline = time.monotonic() + _IDLE_SECONDS
    pause = _FIRST_PAUSE
    while not thread.stop():
        if time.monotonic() > deadline:  # said while it stands still, or it could not be let go of
            raise HostError(f"the main thread of process {pid} was never idle for {_IDLE_SECONDS:g} s: is it stuck?")
        thread.go_on()
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        raise _not_allowed(pid, ctypes.get_errno())


def _not_allowed(pid: int, number: int) -> HostError:
    return HostError(
        f"process {pid} cannot be attached to ({os.strerror(number)}): run the worker as root or with CAP_SYS_PTRACE, "
        "and detach any debugger from the guest"
    )
