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


def engines(not_from_outside: str | None, not_by_itself: str | None) -> tuple[str, ...]:
    """Those that can move a guest, of which we know why it cannot be moved in one way or the other."""
    return tuple(engine for engine, obstacle in ((DROVEWAY, not_from_outside), (QEMU, not_by_itself)) if not obstacle)


def choose(
    asked: object, able: Collection[str], not_from_outside: str | None, not_by_itself: str | None = None
) -> Engine:
    """The engine for a guest that those in `able` can move. Raises RefusedError (`engine`) when none will do.

    What we move is compared and paced by us, over any transport; so QEMU is left what we cannot reach, unless asked.
    """
    why_not = not_from_outside or "nothing here moves it from outside"
    nor = not_by_itself or "the guest's QEMU or the destination cannot do it"
    if asked == QEMU:
        if QEMU not in able:
            raise RefusedError(f"engine=qemu cannot move this guest: {nor}; use engine=auto or droveway.", "engine")
        return Engine(QEMU, "asked for")
    if DROVEWAY in able:
        return Engine(DROVEWAY, "asked for" if asked == DROVEWAY else "its RAM can be moved from outside")
    if asked == DROVEWAY:
        raise RefusedError(f"engine=droveway cannot move this guest: {why_not}; use engine=auto or qemu.", "engine")
    if QEMU not in able:
        raise RefusedError(f"no engine can move this guest: {why_not}, and {nor}.", "engine")
    return Engine(QEMU, f"{why_not}, so QEMU moves it")
