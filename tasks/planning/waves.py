"""When each move of a plan runs: longest first, as soon as slots, links and memory allow. Pure.

Where that takes longer than the busiest link needs, a second order is tried, in which a move counts for as long as it
and all that its links have to carry take: what goes over busy links is then not left for the end, however short.

A stream takes the whole rate of its path, since two that share a link take as long together and both guests write
meanwhile; slots only bound how many there are. A move waits for one thing at a time, and is looked at again when that
thing is released: work per event is what the event can let start, however many moves wait.

The order of the plan is kept where it matters: a move never takes memory that an earlier one into the same host still
needs, and waits for the earlier one that takes a guest of its group away. A plan that can be made one move after
another can therefore always be scheduled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from tasks.planning.cluster import Cluster
from tasks.planning.estimate import DOWNTIME_LIMIT, Estimate, crossed, estimate, path_bandwidth, path_overhead
from tasks.planning.moves import Move


@dataclass(frozen=True, slots=True)
class Timed:
    """A move with its times, in seconds from the start of the plan.

    `wave`: 1 when it waits for nothing, else one more than that of the move whose end lets it start.
    """

    move: Move
    start: float
    end: float
    wave: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Schedule:
    """Moves by their start. No order of them can end before `lower_bound`, in seconds like `makespan`."""

    moves: tuple[Timed, ...] = ()
    makespan: float = 0.0
    lower_bound: float = 0.0


@dataclass(slots=True)
class _Job:
    """A move on its way through the schedule. `rank` 0 goes first."""

    number: int
    move: Move
    memory: int
    rate: int
    estimate: Estimate
    links: tuple[_Link, ...] = ()
    rank: int = 0
    start: float = -1.0
    wave: int = 1
    #: Earlier moves that have to end first, and those that wait for this one.
    after: set[int] = field(default_factory=set)
    before: list[_Job] = field(default_factory=list)


@dataclass(slots=True)
class _Link:
    """One direction of a host's link or of an uplink, and who waits for it, by the rate that they need."""

    bandwidth: int
    slots: float
    rate: int = 0
    streams: int = 0
    #: Wave of the move that left it last.
    wave: int = 0
    waiting: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def admits(self, rate: int) -> bool:
        return self.streams < self.slots and self.rate + rate <= self.bandwidth

    def park(self, job: _Job) -> None:
        heappush(self.waiting.setdefault(job.rate, []), (job.rank, job.number))


class _Memory:
    """What a destination has left, and the moves into it that have not started, in the order of the plan."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.pending: dict[int, int] = {}
        self.waiting: list[_Job] = []
        self.ample = False

    def settle(self) -> None:
        """All moves into it are known now; where all fit at once, none of them has to be looked at."""
        self.ample = sum(self.pending.values()) <= self.left

    def admits(self, job: _Job) -> bool:
        if self.ample:
            return True
        earlier = sum(memory for number, memory in self.pending.items() if number < job.number)
        return self.left - earlier >= job.memory


def schedule(cluster: Cluster, moves: Sequence[Move], downtime_limit: float = DOWNTIME_LIMIT) -> Schedule:
    """Times for `moves`, of which each can be made once those before it are.

    Raises ValueError for moves that cannot be made in this order.
    """
    found = _Clock(cluster, moves, downtime_limit).run()
    if found.makespan <= found.lower_bound * (1 + 1e-9):
        return found
    other = _Clock(cluster, moves, downtime_limit, busiest_first=True).run()
    return min(found, other, key=lambda each: each.makespan)


class _Clock:
    """The state of a schedule in the making, from event to event."""

    def __init__(
        self, cluster: Cluster, moves: Sequence[Move], downtime_limit: float, *, busiest_first: bool = False
    ) -> None:
        self.links: dict[tuple[str, str], _Link] = {}
        self.jobs = [self._job(cluster, number, move, downtime_limit) for number, move in enumerate(moves)]
        self.memory = _memories(cluster, self.jobs)
        _order(cluster, self.jobs)
        lengths = [job.estimate.seconds for job in self.jobs]
        if busiest_first:
            work = {link: max(sums) for link, sums in self._work().items()}
            lengths = [job.estimate.seconds + sum(work[id(link)] for link in job.links) for job in self.jobs]
        for rank, job in enumerate(sorted(self.jobs, key=lambda job: (-lengths[job.number], job.number))):
            job.rank = rank
        self.running: list[tuple[float, int]] = []
        #: What may be able to start now: (rank, number, the link whose queue it heads or None, its rate there).
        self.ready: list[tuple[int, int, _Link | None, int]] = [(job.rank, job.number, None, 0) for job in self.jobs]
        heapify(self.ready)

    def _job(self, cluster: Cluster, number: int, move: Move, downtime_limit: float) -> _Job:
        rate = path_bandwidth(cluster, move.source, move.destination)
        guest = cluster.guests[move.guest]
        ends = cluster.hosts[move.source], cluster.hosts[move.destination]
        links = [self._link("out", ends[0].name, ends[0].bandwidth, ends[0].outbound)]
        links.append(self._link("in", ends[1].name, ends[1].bandwidth, ends[1].inbound))
        for uplink in crossed(cluster, move.source, move.destination):
            direction = "up" if uplink == ends[0].uplink else "down"
            links.append(self._link(direction, uplink, cluster.uplinks[uplink], float("inf")))
        overhead = path_overhead(cluster, move.source, move.destination)
        took = estimate(guest, rate, downtime_limit, overhead=overhead)
        return _Job(number, move, guest.memory, rate, took, tuple(links))

    def _link(self, direction: str, name: str, bandwidth: int, slots: float) -> _Link:
        return self.links.setdefault((direction, name), _Link(max(1, bandwidth), max(1, slots)))

    def run(self) -> Schedule:
        now = 0.0
        while True:
            self._start(now)
            if not self.running:
                break
            now = self.running[0][0]
            while self.running and self.running[0][0] == now:
                self._end(self.jobs[heappop(self.running)[1]])
        if stuck := next((job for job in self.jobs if job.start < 0), None):
            raise ValueError(f"{stuck.move.guest} does not fit on {stuck.move.destination} when its turn comes")
        timed = [
            Timed(job.move, job.start, job.start + job.estimate.seconds, job.wave, job.estimate) for job in self.jobs
        ]
        ordered = sorted(range(len(timed)), key=lambda number: (timed[number].start, number))
        makespan = max((each.end for each in timed), default=0.0)
        return Schedule(tuple(timed[number] for number in ordered), makespan, self._lower_bound())

    def _start(self, now: float) -> None:
        while self.ready:
            _, number, link, rate = heappop(self.ready)
            if link:
                if not (link.waiting[rate] and link.admits(rate)):
                    continue
                number = heappop(link.waiting[rate])[1]
            job = self.jobs[number]
            if self._fits(job):
                if link:
                    job.wave = link.wave + 1
                self._take(job, now)
            if link:
                self._offer(link, rate)

    def _fits(self, job: _Job) -> bool:
        """Whether it can start now; if not, it waits for the first thing that is in its way."""
        if job.after:
            return False  # the last of those before it brings it back
        memory = self.memory[job.move.destination]
        if not memory.admits(job):
            memory.waiting.append(job)
            return False
        for link in job.links:
            if not link.admits(job.rate):
                link.park(job)
                return False
        return True

    def _take(self, job: _Job, now: float) -> None:
        job.start = now
        for link in job.links:
            link.streams += 1
            link.rate += job.rate
        memory = self.memory[job.move.destination]
        memory.left -= memory.pending.pop(job.number)
        heappush(self.running, (now + job.estimate.seconds, job.number))

    def _end(self, job: _Job) -> None:
        for link in job.links:
            link.streams -= 1
            link.rate -= job.rate
            link.wave = job.wave
            for rate in link.waiting:
                self._offer(link, rate)
        if memory := self.memory.get(job.move.source):
            memory.left += job.memory
            self._wake(memory.waiting, job.wave)
            memory.waiting = []
        for later in job.before:
            later.after.discard(job.number)
        self._wake((later for later in job.before if not later.after), job.wave)

    def _wake(self, jobs: Iterable[_Job], wave: int) -> None:
        for job in jobs:
            job.wave = wave + 1
            heappush(self.ready, (job.rank, job.number, None, 0))

    def _offer(self, link: _Link, rate: int) -> None:
        if link.waiting[rate] and link.admits(rate):
            rank, number = link.waiting[rate][0]
            heappush(self.ready, (rank, number, link, rate))

    def _lower_bound(self) -> float:
        """The longest move, and the work of the busiest link."""
        longest = max((job.estimate.seconds for job in self.jobs), default=0.0)
        return max([longest, *(max(sums) for sums in self._work().values())])

    def _work(self) -> dict[int, list[float]]:
        """Seconds of work that each link has to carry: by bytes, by slots, and by the streams of which no two fit on it
        at once."""
        work: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for job in self.jobs:
            for link in job.links:
                seconds, sums = job.estimate.seconds, work[id(link)]
                sums[0] += seconds * job.rate / link.bandwidth
                sums[1] += seconds / link.slots
                sums[2] += seconds if 2 * job.rate > link.bandwidth else 0.0
        return work


def _memories(cluster: Cluster, jobs: Sequence[_Job]) -> dict[str, _Memory]:
    found = {job.move.destination: _Memory(cluster.hosts[job.move.destination].memory) for job in jobs}
    for guest in cluster.guests.values():
        for host in {guest.host, guest.moving_to} & found.keys():
            found[host].left -= guest.memory
    for job in jobs:
        found[job.move.destination].pending[job.number] = job.memory
    for memory in found.values():
        memory.settle()
    return found


def _order(cluster: Cluster, jobs: Sequence[_Job]) -> None:
    """Who has to wait for the end of whom: for an earlier move of the same guest, and for one of a guest of its group
    away from its destination."""
    moved: dict[str, _Job] = {}
    leaving: dict[tuple[str, str], list[_Job]] = defaultdict(list)
    for job in jobs:
        groups = sorted(cluster.guests[job.move.guest].groups)
        earlier = [moved[job.move.guest]] if job.move.guest in moved else []
        earlier += [one for group in groups for one in leaving[job.move.destination, group]]
        for one in earlier:
            if one.number not in job.after:
                job.after.add(one.number)
                one.before.append(job)
        moved[job.move.guest] = job
        for group in groups:
            leaving[job.move.source, group].append(job)
