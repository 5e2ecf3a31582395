"""Something that keeps a guest from being moved: found before anything starts, said all at once. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from config.errors import RefusedError

#: The one word with which a migration that has any blocker is refused.
BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Blocker:
    """`reason` is a stable word to branch on, `what` names the thing in the way, `remedy` says what to do about it.

    `from_outside`: only as long as we move the memory; QEMU itself (engine=qemu) could.
    """

    reason: str
    what: str
    remedy: str
    from_outside: bool = False

    def __str__(self) -> str:
        return f"{self.what} ({self.reason}): {self.remedy}"

    def to_json(self) -> dict[str, str | bool]:
        """For `read_blockers`."""
        return asdict(self)


def read_blockers(said: object) -> list[Blocker]:
    """What `to_json` made of each. Raises ValueError for anything else."""
    if not isinstance(said, Sequence):
        raise ValueError("blockers are a list")
    return [_read(each) for each in said]


def _read(said: Any) -> Blocker:
    fields = ("reason", "what", "remedy")
    if not isinstance(said, Mapping) or not all(isinstance(said.get(field), str) for field in fields):
        raise ValueError("a blocker has a reason, what it is, and a remedy")
    reason, what, remedy = (said[field] for field in fields)
    return Blocker(reason, what, remedy, said.get("from_outside") is True)


def obstacle_from_outside(blockers: Sequence[Blocker]) -> str | None:
    """Why QEMU must move this guest itself, if it can be moved at all; None when nothing says so."""
    return "; ".join(each.what for each in blockers if each.from_outside) or None


def standing(blockers: Sequence[Blocker], *, by_qemu: bool) -> list[Blocker]:
    """Those that keep the guest where it is even so."""
    return [each for each in blockers if not (by_qemu and each.from_outside)]


def refuse_blocked(guest: str, host: str, blockers: Sequence[Blocker]) -> None:
    """Raises RefusedError (`blocked`) naming all of them; returns when there is none."""
    if blockers:
        named = "; ".join(str(each) for each in blockers)
        raise RefusedError(f"{guest} cannot be moved, by what {host} sees: {named}.", BLOCKED)
