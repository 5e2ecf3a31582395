"""A cluster as a text that people write and read: any fleet can be kept, sent by mail, and planned on again. Pure.

    # two hosts behind one rack's uplink
    uplink rack1 40Gbit/s
    host alpha memory=64GiB cpus=16 bandwidth=25Gbit/s outbound=1 inbound=1 uplink=rack1 labels=zone=1,ssd=yes
    host beta memory=64GiB cordoned="memory is replaced"
    guest web on alpha memory=8GiB load=2.5 dirty=100MiB/s working-set=1GiB groups=db needs=zone=1
    guest licence on alpha memory=1GiB stays="bound to the host"

Each line is a thing and its keys; what is not said has the default of tasks/planning/cluster.py. Words with spaces
stand in double quotes. `taken 1700000000` says when it was so, in seconds since 1970.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from config.errors import RequestError
from config.names import check_name, nearest
from config.units import BYTES, BYTES_PER_SECOND, COUNT
from tasks.planning.cluster import Cluster, Guest, Host

_T = TypeVar("_T", Host, Guest)


#: As Python writes any float from 0 to 1e99.
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,25})?(e[+-]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of a key are read, and written so that reading gives the same. Reading raises ValueError."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]


def _positive(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r:.40} is not a number of 0 or more, such as 2.5")
    return float(text)


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r:.40} is neither yes nor no")
    return text == "yes"


_SIZE, _RATE, _COUNT = (_Kind(unit.whole, unit.format) for unit in (BYTES, BYTES_PER_SECOND, COUNT))
_CORES = _Kind(_positive, repr)
_SECONDS = _Kind(_positive, repr)
_MOMENT = _Kind(_positive, repr)
_TEXT = _Kind(str, str)
_LIST = _Kind(_words, lambda words: ",".join(sorted(words)))
_SWITCH = _Kind(_yes, lambda value: "yes" if value else "no")

#: Key → (field, kind).
_HOST: Mapping[str, tuple[str, _Kind]] = {
    "memory": ("memory", _SIZE),
    "cpus": ("cpus", _CORES),
    "bandwidth": ("bandwidth", _RATE),
    "stream": ("stream", _RATE),
    "overhead": ("overhead", _SECONDS),
    "outbound": ("outbound", _COUNT),
    "inbound": ("inbound", _COUNT),
    "uplink": ("uplink", _TEXT),
    "labels": ("labels", _LIST),
    "transports": ("transports", _LIST),
    "wire": ("wire", _COUNT),
    "cpu-models": ("cpu_models", _LIST),
    "cordoned": ("cordoned", _TEXT),
    "stale": ("stale", _SWITCH),
}
_GUEST: Mapping[str, tuple[str, _Kind]] = {
    "memory": ("memory", _SIZE),
    "load": ("load", _CORES),
    "dirty": ("dirty_rate", _RATE),
    "working-set": ("working_set", _SIZE),
    "groups": ("groups", _LIST),
    "needs": ("needs", _LIST),
    "cpu-model": ("cpu_model", _TEXT),
    "stays": ("stays", _TEXT),
    "moving-to": ("moving_to", _TEXT),
    "moved": ("moved", _MOMENT),
}


def read(text: str, name: str = "the cluster") -> Cluster:
    """The cluster that `text` describes. Raises RequestError naming `name`, the line, and what was expected there."""
    made = _Reading()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                made.take(words)
        except (ValueError, RequestError) as error:
            raise RequestError(f"{name}, line {number}: {str(error).rstrip('.')}.") from None
    try:
        return made.cluster()
    except ValueError as error:
        raise RequestError(f"{name}: {error}.") from None


def write(cluster: Cluster) -> str:
    """The text of which `read` makes the same cluster."""
    lines = [f"taken {cluster.taken!r}"] if cluster.taken else []
    lines += [
        f"uplink {_quoted(name)} {BYTES_PER_SECOND.format(rate)}" for name, rate in sorted(cluster.uplinks.items())
    ]
    for _, host in sorted(cluster.hosts.items()):
        lines.append(" ".join([f"host {host.name}", *_keys(host, _HOST)]))
    for _, guest in sorted(cluster.guests.items()):
        lines.append(" ".join([f"guest {guest.name} on {guest.host}", *_keys(guest, _GUEST)]))
    return "".join(f"{line}\n" for line in lines)


class _Reading:
    """What the lines have said so far."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._guests: dict[str, Guest] = {}
        self._uplinks: dict[str, int] = {}
        self._taken = 0.0

    def take(self, words: list[str]) -> None:
        """One line. Raises ValueError, RequestError."""
        match words:
            case ["taken", moment] if not self._taken:
                self._taken = _positive(moment)
            case ["uplink", name, rate]:
                _new(name, self._uplinks, "uplink")
                self._uplinks[name] = _RATE.read(rate)
            case ["host", name, *keys]:
                _new(check_name("host", name), self._hosts, "host")
                self._hosts[name] = Host(name, **_values(keys, _HOST, Host))
            case ["guest", name, "on", host, *keys]:
                _new(check_name("guest", name), self._guests, "guest")
                self._guests[name] = Guest(name, host, **_values(keys, _GUEST, Guest))
            case _:
                forms = "taken SECONDS, uplink NAME RATE, host NAME KEY=VALUE..., guest NAME on HOST KEY=VALUE..."
                raise ValueError(f"{' '.join(words)!r:.60} is none of: {forms}")

    def cluster(self) -> Cluster:
        """All of it. Raises ValueError for a name that no line explains."""
        return joined(self._hosts.values(), self._guests.values(), self._uplinks, self._taken)


def joined(hosts: Iterable[Host], guests: Iterable[Guest], uplinks: Mapping[str, int], taken: float) -> Cluster:
    """The cluster of these. Raises ValueError for a name that is there twice, or is named and nowhere described."""
    found, there = _by_name("host", hosts), _by_name("guest", guests)
    for guest in there.values():
        for name in (guest.host, guest.moving_to):
            if name and name not in found:
                raise ValueError(f"guest {guest.name} names a host {name}, which is nowhere described")
    for host in found.values():
        if host.uplink and host.uplink not in uplinks:
            raise ValueError(f"host {host.name} names an uplink {host.uplink}, which is nowhere described")
    return Cluster(found, there, dict(uplinks), taken)


def _by_name(kind: str, things: Iterable[_T]) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for each in things:
        _new(each.name, found, kind)
        found[each.name] = each
    return found


def _new(name: str, known: Mapping[str, object], kind: str) -> None:
    if name in known:
        raise ValueError(f"there is a {kind} {name} already")


def _values(words: list[str], table: Mapping[str, tuple[str, _Kind]], of: type[_T]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, given, value = word.partition("=")
        if key not in table or not given:
            hint = nearest(key, table).rstrip("?")
            raise ValueError(f"{word!r:.60} is not understood{hint}; keys are {', '.join(table)}, each KEY=VALUE")
        field, kind = table[key]
        if field in found:
            raise ValueError(f"{key} is said twice")
        try:
            found[field] = kind.read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    lacking = [
        part.name for part in fields(of) if part.default is MISSING and part.name not in {*found, "name", "host"}
    ]
    if lacking:
        raise ValueError(f"{', '.join(lacking)} is missing")
    return found


def _keys(thing: Host | Guest, table: Mapping[str, tuple[str, _Kind]]) -> Iterator[str]:
    """What differs from the defaults."""
    defaults = {part.name: part.default for part in fields(thing)}
    for key, (field, kind) in table.items():
        value = getattr(thing, field)
        if value != defaults[field]:
            yield f"{key}={_quoted(kind.write(value))}"


def _quoted(text: str) -> str:
    text = " ".join(text.splitlines())  # a line is a line
    if text and not set(text) & set(" \t'\"\\#"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
