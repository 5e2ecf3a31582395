"""A cluster in columns that a planner may change: the same rules as tasks.planning.rules, for every host at once.

Private to one planner at work; what it gives away are moves. Hosts and guests are rows in the order of their names,
so that the first of equals is always the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tasks.planning.cluster import Cluster, Guest
from tasks.planning.rules import RULES, Refusal, held, shared_transport, speak

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: The row of a host that the cluster does not have.
NOWHERE = -1
#: So many hosts that fail by one rule are named, each with what it lacks; more would not be read.
_FEW = 3


class Placement:
    """Who is where, while a planner tries. Columns of hosts have one entry for each of `hosts`; memory in bytes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.hosts: Sequence[str] = sorted(cluster.hosts)
        self.row: Mapping[str, int] = {name: row for row, name in enumerate(self.hosts)}
        there = [cluster.hosts[name] for name in self.hosts]
        self.memory: Ints = np.array([host.memory for host in there], dtype=np.int64)
        self.cpus: Floats = np.array([host.cpus for host in there], dtype=np.float64)
        self.cordoned: Bools = np.array([host.cordoned is not None for host in there], dtype=np.bool_)
        self.stale: Bools = np.array([host.stale for host in there], dtype=np.bool_)
        #: Of hosts that guests may be moved to.
        self.open: Bools = ~(self.cordoned | self.stale)
        #: By row of `uplinks`; NOWHERE: the host has none.
        self.uplinks: Sequence[str] = sorted({host.uplink for host in there} - {""})
        uplink_row = {name: row for row, name in enumerate(self.uplinks)}
        self.uplink: Ints = np.array([uplink_row.get(host.uplink, NOWHERE) for host in there], dtype=np.int64)
        self._place([cluster.guests[name] for name in sorted(cluster.guests)])
        self._transport: dict[frozenset[str], Bools] = {}
        self._wire: dict[int, Bools] = {}
        self._alike = len({(host.transports, host.wire) for host in there}) <= 1
        self._cpu_model: dict[str, Bools] = {}
        self._labels: dict[frozenset[str], Bools] = {}

    def _place(self, guests: Sequence[Guest]) -> None:
        find = self.row.get
        self.guests: Sequence[str] = [guest.name for guest in guests]
        self.guest_row: Mapping[str, int] = {name: row for row, name in enumerate(self.guests)}
        self.guest_memory: Ints = np.array([guest.memory for guest in guests], dtype=np.int64)
        self.guest_load: Floats = np.array([guest.load for guest in guests], dtype=np.float64)
        #: The row of each guest's host, and of the host where it will be once what is under way has ended.
        self.at: Ints = np.array([find(guest.host, NOWHERE) for guest in guests], dtype=np.int64)
        self.home: Ints = np.array([find(guest.moving_to or guest.host, NOWHERE) for guest in guests], dtype=np.int64)
        coming = (self.home != self.at) & (self.home != NOWHERE)
        #: Bytes promised on each host, also to those on their way to it.
        self.used: Ints = self._summed(self.at, self.guest_memory)
        self.used += self._summed(np.where(coming, self.home, NOWHERE), self.guest_memory)
        #: Bytes on each host once what is under way has ended: what an even spread is measured by.
        self.settled: Ints = self._summed(self.home, self.guest_memory)
        #: Cores kept busy on each host once what is under way has ended.
        self.load: Floats = np.zeros(len(self.hosts))
        np.add.at(self.load, self.home[self.home != NOWHERE], self.guest_load[self.home != NOWHERE])
        #: Of each group, how many count on a host, by its row (on their way to it, too); and how many will be behind
        #: an uplink, by its row.
        self.group_hosts: dict[str, dict[int, int]] = {}
        self.group_uplinks: dict[str, dict[int, int]] = {}
        self.grouped: Bools = np.array([bool(guest.groups) for guest in guests], dtype=np.bool_)
        #: Of guests that not every open host takes, however much memory it has left.
        self.picky: Bools = np.array([bool(one.groups or one.cpu_model or one.needs) for one in guests], dtype=np.bool_)
        #: How often any guest is in a group.
        self.memberships = sum(len(guest.groups) for guest in guests)
        for row in [row for row, guest in enumerate(guests) if guest.groups]:
            self._count(row, int(self.at[row]), 1)
            if coming[row]:
                self._count(row, int(self.home[row]), 1)
            self._count_uplink(row, int(self.home[row]), 1)

    def _summed(self, rows: Ints, values: Ints) -> Ints:
        found = np.zeros(len(self.hosts), dtype=np.int64)
        np.add.at(found, rows[rows != NOWHERE], values[rows != NOWHERE])
        return found

    def guest(self, row: int) -> Guest:
        """The guest of this row, as the cluster has it."""
        return self.cluster.guests[self.guests[row]]

    @property
    def left(self) -> Ints:
        """Bytes that each host can still promise; below 0 where more is promised than there is."""
        return self.memory - self.used

    def residents(self, host: int) -> Ints:
        """Rows of the guests that are on the host of this row."""
        return np.flatnonzero(self.at == host)

    def candidates(self, guest: str) -> Bools:
        """Hosts that `guest` may go to now: where tasks.planning.rules.judge has nothing against it."""
        row = self.guest_row.get(guest, NOWHERE)
        if row == NOWHERE or held(self.cluster, guest):
            return np.zeros(len(self.hosts), dtype=np.bool_)
        found: Bools = self.takes(np.array([row]), np.arange(len(self.hosts)))[0]
        found &= self.left >= self.guest_memory[row]
        return found

    def takes(self, guests: Ints, hosts: Ints) -> Bools:
        """Whether each of `hosts` (columns) would take each of `guests` (rows), as far as all but memory goes.

        That a guest is not held where it is (tasks.planning.rules.held) is not asked here.
        """
        found: Bools = self.open[hosts] & (hosts != self.at[guests][:, np.newaxis])
        for source in () if self._alike else np.unique(self.at[guests]).tolist():
            found[self.at[guests] == source] &= self.reachable(self.hosts[source])[hosts]
        taken: list[tuple[int, int]] = []
        for place in np.flatnonzero(self.picky[guests]).tolist():
            one = self.guest(int(guests[place]))
            if one.cpu_model:
                found[place] &= self._with_cpu_model(one.cpu_model)[hosts]
            if one.needs:
                found[place] &= self._with_labels(one.needs)[hosts]
            taken += [(place, host) for host in self._taken(one)]
        if taken:
            free = np.ones((len(guests), len(self.hosts)), dtype=np.bool_)
            free[tuple(np.array(taken).T)] = False
            found &= free[:, hosts]
        return found

    def roomless(self, guest: str) -> Bools:
        """Hosts that `guest` could go to but for guests that are there: `no-memory` and `anti-affinity` left out."""
        row = self.guest_row.get(guest, NOWHERE)
        if row == NOWHERE or held(self.cluster, guest):
            return np.zeros(len(self.hosts), dtype=np.bool_)
        one = self.guest(row)
        found: Bools = self.open & self._with_cpu_model(one.cpu_model) & self._with_labels(one.needs)
        found &= self.reachable(self.hosts[self.at[row]])
        found[self.at[row]] = False
        return found

    def reachable(self, source: str) -> Bools:
        """Hosts that understand `source`, and to which some transport carries memory, as far as either is known."""
        return self._speaking(source) & self._carried(source)

    def _speaking(self, source: str) -> Bools:
        wire = self.cluster.hosts[source].wire
        if wire not in self._wire:
            able = [speak(wire, self.cluster.hosts[name].wire) for name in self.hosts]
            self._wire[wire] = np.array(able, dtype=np.bool_)
        return self._wire[wire]

    def _carried(self, source: str) -> Bools:
        kinds = self.cluster.hosts[source].transports
        if kinds not in self._transport:
            able = [shared_transport(kinds, self.cluster.hosts[name].transports) for name in self.hosts]
            self._transport[kinds] = np.array(able, dtype=np.bool_)
        return self._transport[kinds]

    def move(self, guest: str, host: str) -> None:
        """`guest` is on `host` now, its memory free where it was. Not judged: ask `candidates` first."""
        row, to = self.guest_row[guest], self.row[host]
        came_from = int(self.at[row])
        self.used[came_from] -= self.guest_memory[row]
        self.used[to] += self.guest_memory[row]
        self.settled[came_from] -= self.guest_memory[row]
        self.settled[to] += self.guest_memory[row]
        self.load[came_from] -= self.guest_load[row]
        self.load[to] += self.guest_load[row]
        self.at[row] = self.home[row] = to
        for where, change in ((came_from, -1), (to, 1)):
            self._count(row, where, change)
            self._count_uplink(row, where, change)

    def why_nowhere(self, guest: str) -> Refusal:
        """Why no host takes `guest`: which refuse it by which rule, the rule that the nearest of them got to first.

        A host that fails by a late rule of RULES has passed all before it: that is what stands in the way. A few hosts
        that fail by one rule say what they lack, each by its name; more are counted.
        """
        if holding := held(self.cluster, guest):
            return holding
        row = self.guest_row[guest]
        one, left = self.guest(row), np.ones(len(self.hosts), dtype=np.bool_)
        left[self.at[row]] = False
        failed: dict[str, Ints] = {}
        for rule, passed in self._passed(one).items():
            failed[rule] = np.flatnonzero(left & ~passed)
            left &= passed
        failing = [rule for rule in reversed(RULES) if rule in failed and failed[rule].size]
        if not failing:
            return Refusal("same-host", f"there is no host beside {one.host}")
        return Refusal(failing[0], "; ".join(part for rule in failing for part in self._said(one, rule, failed[rule])))

    def _said(self, one: Guest, rule: str, rows: Ints) -> list[str]:
        """What is to be said of the hosts of these rows, which all refuse `one` by `rule`."""
        if rows.size <= _FEW:
            there = self._as_it_stands([int(self.at[self.guest_row[one.name]]), *rows.tolist()])
            return [RULES[rule](there, one.name, self.hosts[host]) or rule for host in rows.tolist()]
        counted = f"{rule} on {rows.size} hosts"
        if rule != "no-memory":
            return [counted]
        most = max(0, int(self.left[rows].max()))
        return [f"{counted}: it needs {one.memory} bytes, the roomiest of them has {most} left"]

    def _as_it_stands(self, rows: Sequence[int]) -> Cluster:
        """The hosts of these rows and who counts on them, the moves made so far included: a cluster for the rules."""
        counted = np.flatnonzero(np.isin(self.at, rows) | np.isin(self.home, rows)).tolist()
        guests = {}
        for row in counted:
            found = self.guest(row)
            here = self.hosts[self.at[row]] if self.at[row] != NOWHERE else found.host
            # Only who is not on the way is moved by a planner.
            guests[found.name] = found if here == found.host else replace(found, host=here)
        return Cluster({self.hosts[row]: self.cluster.hosts[self.hosts[row]] for row in rows}, guests)

    def _passed(self, one: Guest) -> Mapping[str, Bools]:
        free = np.ones(len(self.hosts), dtype=np.bool_)
        free[self._taken(one)] = False
        source = self.hosts[self.at[self.guest_row[one.name]]]
        return {
            "stale": ~self.stale,
            "cordoned": ~self.cordoned,
            "version": self._speaking(source),
            "transport": self._carried(source),
            "cpu-model": self._with_cpu_model(one.cpu_model),
            "labels": self._with_labels(one.needs),
            "anti-affinity": free,
            "no-memory": self.left >= one.memory,
        }

    def _taken(self, one: Guest) -> list[int]:
        return [host for group in one.groups for host in self.group_hosts.get(group, ())]

    def _with_cpu_model(self, model: str) -> Bools:
        if model not in self._cpu_model:
            offered = [self.cluster.hosts[name].cpu_models for name in self.hosts]
            able = [not model or not models or model in models for models in offered]
            self._cpu_model[model] = np.array(able, dtype=np.bool_)
        return self._cpu_model[model]

    def _with_labels(self, needs: frozenset[str]) -> Bools:
        if needs not in self._labels:
            able = [needs <= self.cluster.hosts[name].labels for name in self.hosts]
            self._labels[needs] = np.array(able, dtype=np.bool_)
        return self._labels[needs]

    def _count(self, row: int, host: int, change: int) -> None:
        for group in self.guest(row).groups:
            _add(self.group_hosts.setdefault(group, {}), host, change)

    def _count_uplink(self, row: int, host: int, change: int) -> None:
        uplink = NOWHERE if host == NOWHERE else int(self.uplink[host])
        for group in self.guest(row).groups:
            _add(self.group_uplinks.setdefault(group, {}), uplink, change)


def _add(counts: dict[int, int], key: int, change: int) -> None:
    if key == NOWHERE:
        return
    counts[key] = counts.get(key, 0) + change
    if not counts[key]:
        del counts[key]
