"""Who moves a guest's memory: we from outside of its process, or QEMU itself. Pure, and the same on both sides."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from config.capabilities import EngineChoice
from config.errors import RefusedError

DROVEWAY, QEMU = EngineChoice.DROVEWAY, EngineChoice.QEMU


@dataclass(frozen=True, slots=True)
class Engine:
    """Which one, and why."""

    name: EngineChoice
    reason: str


def engines(*, moves_itself: bool, not_from_outside: str | None) -> tuple[str, ...]:
    """Those that can move a guest, the preferred one first."""
    ours = () if not_from_outside else (DROVEWAY.value,)
    return (*ours, QEMU.value) if moves_itself else ours


def choose(asked: object, able: Collection[str], not_from_outside: str | None) -> Engine:
    """The engine for a guest that those in `able` can move. Raises RefusedError (`engine`) when none will do.

    What we move is compared and paced by us, over any transport; so QEMU is left what we cannot reach, unless asked.
    """
    why_not = not_from_outside or "nothing here moves it from outside"
    if asked == QEMU:
        if QEMU not in able:
            raise RefusedError("only a QEMU guest can be moved by engine=qemu: leave engine at auto.", "engine")
        return Engine(QEMU, "asked for")
    if DROVEWAY in able:
        return Engine(DROVEWAY, "asked for" if asked == DROVEWAY else "its RAM can be moved from outside")
    if asked == DROVEWAY:
        raise RefusedError(f"engine=droveway cannot move this guest: {why_not}; use engine=auto or qemu.", "engine")
    if QEMU not in able:
        raise RefusedError(f"no engine can move this guest: {why_not}.", "engine")
    return Engine(QEMU, f"{why_not}, so QEMU moves it")
