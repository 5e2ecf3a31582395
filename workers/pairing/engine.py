"""Who moves a guest's memory: we from outside of its process, or QEMU itself. Pure, and the same on both sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from config.capabilities import EngineChoice
from config.errors import RefusedError
from workers.guests.blocker import Blocker, obstacle_from_outside, standing

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


def leaving(asked: object, found: Sequence[Blocker], not_by_itself: str | None) -> tuple[EngineChoice, list[Blocker]]:
    """Who is to move a guest of which its host finds this, and all that is in the way of that.

    Where `choose` refuses there is at least one: what keeps us from moving it, and why QEMU cannot either.
    """
    not_from_outside = obstacle_from_outside(found)
    try:
        engine = choose(asked, engines(not_from_outside, not_by_itself), not_from_outside, not_by_itself).name
    except RefusedError as refusal:
        engine = QEMU if asked == QEMU else DROVEWAY
        blockers = standing(found, by_qemu=engine is QEMU)
        if asked != DROVEWAY:
            remedy = "use engine=auto or droveway" if asked == QEMU else "remove what keeps us from moving it"
            blockers.append(Blocker(refusal.reason, f"QEMU itself cannot move it: {not_by_itself}", remedy))
        return engine, blockers
    return engine, standing(found, by_qemu=engine is QEMU)
