"""A cluster made up from one line, the same one every time: to try a planner on what one does not have. Pure.

    hosts=1000,guests=20000,seed=7,memory=256GiB,fill=0.6,skew=0.5,groups=2000,uplinks=25

No hard rule is broken in what comes out: no host holds more than it has, no two guests of a group share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np

from config.errors import RequestError
from config.names import nearest
from config.units import BYTES, BYTES_PER_SECOND, COUNT, Unit
from tasks.planning.cluster import Cluster, Guest, Host
from tasks.planning.placement import Ints

_MIB = 1 << 20
#: A rack's uplink carries this many of its hosts' links at once.
_UPLINK_STREAMS = 4
_IN_A_GROUP = 3
#: Sizes of guests as clouds sell them, doubling, and how many have each; scaled to the fill that is asked for.
_SIZES, _SHARES = (1, 2, 4, 8, 16, 32), (0.1, 0.2, 0.3, 0.2, 0.15, 0.05)
#: Bytes/s that a guest with something to do writes, from and to; and what part of its memory it writes in.
_DIRTY, _WORKING_SET = (10e6, 400e6), 0.25
#: No host starts fuller than this, however skewed: where nothing fits any more there is nothing to plan.
_FULLEST = 0.97


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the line: a unit for whole numbers, None for a part of 1."""

    default: str
    unit: Unit | None
    low: float
    high: float


_KEYS: Mapping[str, _Key] = {
    "hosts": _Key("100", COUNT, 1, 100_000),
    "guests": _Key("2000", COUNT, 0, 2_000_000),
    "seed": _Key("0", COUNT, 0, 2**32),
    #: Of each host.
    "memory": _Key("256GiB", BYTES, 1 << 30, 1 << 50),
    "cpus": _Key("64", COUNT, 0, 4096),
    "bandwidth": _Key("10Gbit/s", BYTES_PER_SECOND, 1, 1 << 40),
    "outbound": _Key("1", COUNT, 1, 64),
    "inbound": _Key("1", COUNT, 1, 64),
    #: Parts of all memory that guests have, and of all cores that they keep busy.
    "fill": _Key("0.5", None, 0, _FULLEST),
    "load": _Key("0.4", None, 0, 1),
    #: 0: every host alike; 1: as unlike as the fill allows, at half from empty to nearly full.
    "skew": _Key("0.2", None, 0, 1),
    #: Part of the guests that write to their memory.
    "busy": _Key("0.2", None, 0, 1),
    #: Groups of three guests that never share a host; racks, each with its uplink.
    "groups": _Key("0", COUNT, 0, 1_000_000),
    "uplinks": _Key("0", COUNT, 0, 10_000),
    #: Part of the guests that need the label disk=fast, which half of the hosts have.
    "labels": _Key("0", None, 0, 0.5),
}


def simulate(line: str) -> Cluster:
    """The cluster that `line` describes: key=value, joined by commas. Raises RequestError."""
    asked = _read(line)
    draw = np.random.default_rng(int(asked["seed"]))
    number, guests = int(asked["hosts"]), int(asked["guests"])
    fast = draw.permutation(number) < number // 2
    hosts = [_host(asked, row, number, bool(fast[row])) for row in range(number)]
    sizes = _sizes(asked, draw)
    at = _places(asked, draw, sizes)
    loads = draw.exponential(1.0, guests) * sizes
    loads *= asked["load"] * asked["cpus"] * number / max(float(loads.sum()), 1.0)
    writes = np.where(draw.random(guests) < asked["busy"], draw.uniform(*_DIRTY, guests), 0.0)
    picky = fast[at] & (draw.random(guests) < 2 * asked["labels"])
    groups = _groups(int(asked["groups"]), draw, at)
    placed = [
        Guest(
            _name("guest", row, guests),
            hosts[at[row]].name,
            int(sizes[row]),
            load=round(float(loads[row]), 3),
            dirty_rate=int(writes[row]),
            working_set=int(sizes[row] * _WORKING_SET) if writes[row] else 0,
            groups=groups.get(row, frozenset()),
            needs=frozenset({"disk=fast"}) if picky[row] else frozenset(),
        )
        for row in range(guests)
    ]
    uplinks = {host.uplink: int(asked["bandwidth"]) * _UPLINK_STREAMS for host in hosts if host.uplink}
    return Cluster({host.name: host for host in hosts}, {guest.name: guest for guest in placed}, uplinks)


def _read(line: str) -> dict[str, float]:
    values = {name: key.default for name, key in _KEYS.items()}
    for part in filter(None, (part.strip() for part in line.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in _KEYS:
            raise RequestError(
                f"A simulated cluster has no {name!r}{nearest(name, _KEYS)} (it has {', '.join(_KEYS)}); write it like"
                " hosts=100,guests=2000,seed=7."
            )
        values[name] = value
    return {name: _value(name, value) for name, value in values.items()}


def _value(name: str, text: str) -> float:
    key = _KEYS[name]
    try:
        value = float(key.unit.parse(text)) if key.unit else float(text)
    except ValueError as error:
        raise RequestError(f"{name}={text} of a simulated cluster is not understood: {error}.") from error
    if not key.low <= value <= key.high:
        raise RequestError(f"{name}={text} of a simulated cluster is not within {key.low:g} and {key.high:g}.")
    return value


def _name(kind: str, row: int, number: int) -> str:
    return f"{kind}-{row + 1:0{len(str(number))}}"


def _host(asked: Mapping[str, float], row: int, number: int, fast: bool) -> Host:
    racks = int(asked["uplinks"])
    return Host(
        _name("host", row, number),
        int(asked["memory"]),
        cpus=asked["cpus"],
        bandwidth=int(asked["bandwidth"]),
        outbound=int(asked["outbound"]),
        inbound=int(asked["inbound"]),
        uplink=_name("rack", row * racks // number, racks) if racks else "",
        labels=frozenset({"disk=fast"}) if fast else frozenset(),
    )


def _sizes(asked: Mapping[str, float], draw: np.random.Generator) -> Ints:
    """Bytes of each guest, whole MiB; none has more than half a host."""
    sizes = draw.choice(np.array(_SIZES, dtype=np.float64), int(asked["guests"]), p=_SHARES)
    sizes *= asked["fill"] * asked["hosts"] * asked["memory"] / max(float(sizes.sum()), 1.0)
    whole: Ints = np.clip(sizes // _MIB, 1, asked["memory"] // _MIB // 2).astype(np.int64)
    return whole * _MIB


def _places(asked: Mapping[str, float], draw: np.random.Generator, sizes: Ints) -> Ints:
    """The row of each guest's host: the biggest first, each to the host that is furthest below what it is to hold."""
    memory, number = int(asked["memory"]), int(asked["hosts"])
    fill, apart = asked["fill"], draw.uniform(-1, 1, number)
    wanted = fill + asked["skew"] * min(fill, _FULLEST - fill) * (apart - apart.mean())
    room = [(-float(share), row) for row, share in enumerate(wanted * memory)]
    heapify(room)
    left = [memory] * number
    at = np.zeros(len(sizes), dtype=np.int64)
    for guest in np.argsort(-sizes, kind="stable"):
        (share, row), size = room[0], int(sizes[guest])
        if size > left[row]:
            raise RequestError(
                f"A simulated guest of {size} bytes fits on no host any more; ask for more guests (they are smaller"
                " then) or less fill."
            )
        at[guest] = row
        left[row] -= size
        heapreplace(room, (share + size, row))
    return at


def _groups(number: int, draw: np.random.Generator, at: Ints) -> dict[int, frozenset[str]]:
    """Rows of guests and their groups: neighbours in a shuffled row of guests, but never two from one host."""
    found: dict[int, frozenset[str]] = {}
    shuffled = iter(draw.permutation(len(at)))
    for group in range(number):
        name, hosts = frozenset({_name("group", group, number)}), set[int]()
        for row in shuffled:
            if int(at[row]) not in hosts:
                hosts.add(int(at[row]))
                found[int(row)] = name
            if len(hosts) == _IN_A_GROUP:
                break
    return found
