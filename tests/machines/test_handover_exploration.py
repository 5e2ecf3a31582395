"""Every way through a handover, with any number of faults: `handover_world` says what that means and what must hold."""

from __future__ import annotations

from collections import Counter

from tests.machines.handover_world import Copy, explore
from workers.handover.machine import Entry


def test_no_way_through_a_handover_breaks_an_invariant() -> None:
    found = explore()
    ends = Counter((world.source.entry, world.destination.entry) for world in found.worlds)
    print(f"\n{found}")
    print(
        "\n".join(f"{count:8} worlds: {source} / {destination}" for (source, destination), count in ends.most_common())
    )

    # A search that shrank, or that no longer comes to the hard places, would pass for the wrong reason.
    assert len(found.worlds) > 75_000
    assert found.transitions > 900_000
    assert max(found.faults) >= 8, "the last new worlds should need many faults: the search ended by itself"
    for source, destination in (
        (Entry.BEGUN, Entry.READY),
        (Entry.GIVEN, Entry.READY),
        (Entry.GIVEN, Entry.TAKEN),
        (Entry.ABORTED, Entry.READY),
        (Entry.RELEASED, Entry.TAKEN),
        (Entry.TAKEN_BACK, Entry.READY),
        (Entry.TAKEN_BACK, Entry.TAKEN),
        (Entry.TAKEN_BACK, Entry.DISCARDED),
    ):
        assert ends[source, destination], f"no world with {source} at the source and {destination} at the destination"


def test_without_faults_the_guest_always_gets_there() -> None:
    found = explore(faults=0)
    assert any(world.destination.copy is Copy.RUNNING for world in found.worlds)
    assert not any(world.owner_lost for world in found.worlds)
