"""What can be locked, what the task set → one registration policy with its reason, and what the facts favour. Pure.

Where registering locks nothing (tcp; devices that fault memory in) no limit binds but under `rdma-pin-all`: dynamic.

What the task set wins: `rdma-pin-all` on is pin-all, `pin-budget` is windowed. Else dynamic where all of the guest's
memory may be locked on both hosts, windowed within what may be locked where not. Pin-all is never taken by itself, for
`rdma-pin-all` is off then; it is only recommended.

Why, as measured on soft-RoCE: populating memory that was never touched dominates registration, 2.6 to 5.5 ms per MiB
against 0.05 to 0.3 for memory that exists, and a destination's memory never exists yet. Dynamic does it beside the
writes (111 MB/s in all, against 88 to 93 with pin-all first, 256 MiB), and once written both came to the same speed.
Free memory judges nothing here: what was written stays at the destination, locked or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from config.errors import RefusedError

_MIB = 1 << 20
#: Seconds to lock a MiB that must be populated first: from, to.
_COLD = (2.6e-3, 5.5e-3)
#: Pin-all is worth its wait when that is at most this long, in seconds.
_SHORT = 1.0
#: Bytes. Queues of an RDMA device are locked as well, and count against the same limit.
_QUEUES = 1 << 20
#: Bytes. Windowed asks for eighths of its window; below half a MiB each, the round trips would set the pace.
_SMALLEST = 4 << 20
#: Bytes that each side must be able to lock, whatever the guest: the preflight refuses less (pairing/agreement.py).
LEAST_LOCKABLE = _SMALLEST + _QUEUES


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to choose by. Bytes; a limit of None: none that binds."""

    #: The guest's RAM, and what of it holds data: what it has not touched by now, it may while it moves.
    memory: int
    touched: int
    #: What each side's process may lock.
    source_limit: int | None
    destination_limit: int | None
    #: What the task set; no budget is 0.
    pin_all: bool
    pin_budget: int
    #: Whether registering locks memory though nobody asked for it: a device pins it.
    locks: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The policy, its window in bytes (windowed only, else 0), and why; the policy that the facts favour, and why."""

    policy: str
    window: int
    reason: str
    recommended: str
    recommendation: str

    def to_json(self) -> dict[str, str]:
        """For the report. A recommendation only where it is another policy."""
        report = {"policy": self.policy, "policy-reason": self.reason}
        if self.recommended != self.policy:
            report["recommended"] = f"{self.recommended}: {self.recommendation}"
        return report


def choose(facts: Facts) -> Choice:
    """The policy for this guest. RefusedError (`memory-lock`) when not even the smallest window can be locked."""
    lockable = _lockable(facts)
    enough = lockable is None or lockable >= facts.memory
    if facts.pin_all:
        if not facts.locks:
            favoured = "dynamic", "no device needs memory locked here"
        elif enough and not _short(facts):
            low, high = (facts.touched / _MIB * cold for cold in _COLD)
            favoured = (
                "dynamic",
                f"it locks {_size(facts.touched)} beside the writes, not {low:.1f} to {high:.1f} s before",
            )
        else:
            favoured = _favoured(facts, enough)
        return Choice("pin-all", 0, "rdma-pin-all is on", *favoured)
    if facts.pin_budget:
        # What is locked in all, the device's queues too, stays within what was asked for.
        budget = facts.pin_budget - _QUEUES if facts.locks else facts.pin_budget
        window = budget if lockable is None else min(budget, lockable)
        reason = f"pin-budget is {_size(facts.pin_budget)}"
        if window < budget:
            reason += f", of which {_size(window)} can be locked"
        if not facts.locks:
            reason += "; registered memory is not locked here"
        favoured = _favoured(facts, enough) if window < facts.touched else ("windowed", reason)
        return Choice("windowed", window, reason, *favoured)
    if not facts.locks:
        reason = f"registering locks nothing here, so no limit binds; the guest has {_size(facts.memory)}"
        return Choice("dynamic", 0, reason, "dynamic", reason)
    if enough:
        limit = "without a limit" if lockable is None else f"up to {_size(lockable)}"
        reason = f"both hosts may lock memory {limit}, the guest has {_size(facts.memory)}"
        return Choice("dynamic", 0, reason, *_favoured(facts, enough))
    assert lockable is not None
    reason = (
        f"the {_tighter(facts)} host may keep {_size(lockable)} locked, the guest has {_size(facts.memory)}, of which "
        f"{_size(facts.touched)} hold data"
    )
    return Choice("windowed", lockable, reason, "windowed", reason)


def _favoured(facts: Facts, enough: bool) -> tuple[str, str]:
    if not facts.locks:
        return "dynamic", "registering locks nothing here, so there is nothing to limit"
    if not enough:
        return "windowed", f"not all of the guest's {_size(facts.memory)} may be locked"
    if _short(facts):
        return "pin-all", (
            f"{_size(facts.touched)} are locked within {_SHORT:g} s, and no round waits for registration after that"
        )
    return "dynamic", f"all of the guest's {_size(facts.memory)} may be locked"


def _short(facts: Facts) -> bool:
    return facts.touched / _MIB * _COLD[1] <= _SHORT


def _lockable(facts: Facts) -> int | None:
    """What guest memory may be locked on both sides; None without a limit, or where none is locked."""
    if not (facts.locks or facts.pin_all):
        return None
    limits = [limit for limit in (facts.source_limit, facts.destination_limit) if limit is not None]
    if not limits:
        return None
    lockable = min(limits) - _QUEUES
    if lockable < _SMALLEST:
        raise RefusedError(
            f"the {_tighter(facts)} host may lock {min(limits)} bytes, and moving a guest takes {LEAST_LOCKABLE}: "
            "raise LimitMEMLOCK of its workers",
            "memory-lock",
        )
    return lockable


def _tighter(facts: Facts) -> str:
    source, destination = facts.source_limit, facts.destination_limit
    return "source" if destination is None or (source is not None and source <= destination) else "destination"


def _size(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size >= _MIB else f"{size} bytes"
