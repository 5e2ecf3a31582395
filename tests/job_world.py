"""A job lived through on a cluster, with nothing real beneath: moves are begun and end as the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tasks.jobs import Asked
from tasks.planning import evacuating, relocating
from tasks.planning.cluster import Cluster
from tasks.planning.evacuating import Evacuation
from tasks.planning.job import ENDED, Attempt, Step
from tasks.planning.moves import begin
from tasks.planning.rules import Refusal

NOW = 1_700_000_000.0


@dataclass
class World:
    """Moves asked for are begun and end one after the other, as `fails` says; a step is taken after each end."""

    cluster: Cluster
    asked: Asked
    fails: Callable[[Attempt], str] = lambda attempt: ""
    attempts: dict[str, Attempt] = field(default_factory=dict)
    steps: int = 0

    def step(self) -> Step:
        """As an executor does: what is asked for is begun, if the fleet still allows it."""
        self.steps += 1
        found = self._judged(list(self.attempts.values()))
        assert found == self._judged(list(self.attempts.values())[::-1])
        for ask in found.asks:
            assert ask.migration not in self.attempts, "one id, one migration"
            assert not any(each.open for each in self.attempts.values() if each.guest == ask.move.guest)
            begun = begin(self.cluster, ask.move)
            if not isinstance(begun, Refusal):
                self.cluster = begun
                self.attempts[ask.migration] = Attempt(ask.move.guest, ask.move.destination, ask.number, open=True)
        if isinstance(self.asked, Evacuation):
            homes = {name: each.home for name, each in found.guests.items() if each.home}
            self.asked = replace(self.asked, guests=self.asked.guests | found.guests.keys(), homes=homes)
        return found

    def _judged(self, attempts: list[Attempt]) -> Step:
        if isinstance(self.asked, Evacuation):
            return evacuating.step(self.asked, self.cluster, attempts, NOW)
        return relocating.step(self.asked, self.cluster, attempts, NOW)

    def end_one(self) -> None:
        """The move that was begun first ends."""
        migration, attempt = next((name, each) for name, each in self.attempts.items() if each.open)
        moving = self.cluster.guests[attempt.guest]
        reason = self.fails(attempt)
        self.attempts[migration] = replace(attempt, open=False, completed=not reason, reason=reason)
        self.cluster = self.cluster.placed(
            [replace(moving, moving_to="", host=moving.host if reason else attempt.destination)]
        )

    def lived(self, *, patient: bool = True) -> Step:
        """The last step of all; not `patient`: the deadline passes once nothing is under way."""
        for _ in range(10_000):
            found = self.step()
            if found.state in ENDED:
                return found
            if any(each.open for each in self.attempts.values()):
                self.end_one()
            else:
                assert not patient, f"it waits for nothing: {found}"
                self.asked = replace(self.asked, deadline=NOW)
        raise AssertionError("it does not end")
