"""Which dirty tracker this host uses: the best one that passes its own test here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.errors import HostError, RequestError
from workers.dirty.content import ContentTracker
from workers.dirty.contract import TrackerFactory
from workers.dirty.pagemap_scan import PagemapScanTracker
from workers.dirty.userfaultfd import UserfaultfdTracker

#: Best first.
TRACKERS: tuple[TrackerFactory, ...] = (PagemapScanTracker, UserfaultfdTracker, ContentTracker)
KINDS = tuple(tracker.kind for tracker in TRACKERS)


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind of tracker that works here, and why it is this one."""

    kind: str
    factory: TrackerFactory
    reason: str


def choose(
    preferred: str | None = None, *, kernel_writes: bool = True, trackers: Sequence[TrackerFactory] = TRACKERS
) -> Choice:
    """Try the trackers in order, or only the `preferred` kind.

    `kernel_writes` says whether the kernel may write the guest's RAM on its behalf (any guest under KVM, or one that
    reads files into its RAM); it rules out a tracker that would make those calls fail. Say False only when sure.

    Raises HostError when the preferred kind, or every kind, does not work here; RequestError on an unknown kind.
    """
    if preferred is None:
        return _first_that_works(trackers, kernel_writes=kernel_writes)
    wanted = [tracker for tracker in trackers if tracker.kind == preferred]
    if not wanted:
        known = ", ".join(tracker.kind for tracker in trackers)
        raise RequestError(f"there is no dirty tracker {preferred!r}: choose one of {known}, or none to have it chosen")
    why_not = _why_not(wanted[0], kernel_writes=kernel_writes)
    if why_not:
        raise HostError(f"the dirty tracker {preferred} was asked for and does not work here: {why_not}")
    return Choice(preferred, wanted[0], f"{preferred} was asked for")


def _first_that_works(trackers: Sequence[TrackerFactory], *, kernel_writes: bool) -> Choice:
    skipped: list[str] = []
    for tracker in trackers:
        why_not = _why_not(tracker, kernel_writes=kernel_writes)
        if why_not is None:
            return Choice(tracker.kind, tracker, "; ".join([*skipped, f"{tracker.kind} works here"]))
        skipped.append(f"not {tracker.kind}: {why_not}")
    raise HostError("no dirty tracker works on this host: " + "; ".join(skipped))


def _why_not(tracker: TrackerFactory, *, kernel_writes: bool) -> str | None:
    if kernel_writes and not tracker.sees_kernel_writes:
        return "the kernel writes this guest's memory too, and that would fail under served write faults"
    try:
        tracker.self_test()
    except HostError as error:
        return str(error)
    return None
