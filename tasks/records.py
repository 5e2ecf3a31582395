"""What Redis knows of migrations, hosts and guests, as values. Pure; times are the server's, in seconds since 1970."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache
from statistics import fmean
from typing import Any

from tasks.planning.cluster import BANDWIDTH
from workers.guests.blocker import Blocker
from workers.pairing.contract import Side
from workers.wire import UNSAID

Fields = Mapping[bytes, bytes]

ENDED = frozenset({"completed", "failed", "cancelled"})


class Priority(IntEnum):
    """Who goes first where two want one slot: what somebody waits for before what nobody does."""

    BACKGROUND = 0
    #: A policy's tick asks for it, and asks again.
    SCHEDULED = 10
    REBALANCE = 20
    USER = 30
    #: A host is about to be taken down.
    EVACUATION = 40


@dataclass(frozen=True, slots=True)
class SideRecord:
    """One side of a migration. `progress` is a mover's Status (workers/attempt.py) as JSON."""

    host: str
    claimed: float | None
    lease: float | None
    outcome: str | None
    progress: Mapping[str, Any] | None
    #: The claim: who may speak for this side. Never shown.
    nonce: str | None = field(default=None, repr=False)

    @property
    def at_work(self) -> bool:
        """Claimed, and not finished."""
        return self.claimed is not None and self.outcome is None


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """One migration. `memory` in bytes; `epoch` is None until it is admitted."""

    migration: str
    guest: str
    state: str
    memory: int
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, int | str]
    source: SideRecord
    destination: SideRecord
    created: float
    epoch: int | None = None
    admitted: float | None = None
    priority: int = Priority.USER
    #: When it was let onto the links, and what it was given of them, in bytes/s; until then it only prepares.
    granted: float | None = None
    rate: int | None = None
    #: The shared links that this counts on, by their names.
    crosses: frozenset[str] = frozenset()
    #: When its doorbells were rung last.
    rung: float | None = None
    finished: float | None = None
    #: Why it is still queued, or prepared and not sending.
    waiting: str | None = None
    cancelling: bool = False
    #: Redis had lost it and a host wrote it back: a side that is missing may have ended before.
    restored: bool = False
    reason: str | None = None
    message: str | None = None
    #: The job that asked for it; None: somebody did by himself, or Redis had lost it.
    job: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the guest's fate is decided."""
        return self.state in ENDED

    @property
    def settled(self) -> bool:
        """Ended, and neither side still works on it."""
        return self.ended and not (self.source.at_work or self.destination.at_work)

    def side(self, side: Side) -> SideRecord:
        """That side."""
        return self.source if side is Side.SOURCE else self.destination

    def to_json(self) -> dict[str, Any]:
        """For `--json`: bytes, seconds, seconds since 1970."""
        return {
            "migration": self.migration,
            "guest": self.guest,
            "state": self.state,
            "epoch": self.epoch,
            "source": _side_json(self.source),
            "destination": _side_json(self.destination),
            "memory_bytes": self.memory,
            "capabilities": dict(self.capabilities),
            "parameters": dict(self.parameters),
            "created": self.created,
            "admitted": self.admitted,
            "granted": self.granted,
            "rate_bytes_per_second": self.rate,
            "priority": self.priority,
            "finished": self.finished,
            "queue_wait_seconds": None if self.admitted is None else self.admitted - self.created,
            "waiting": self.waiting,
            "cancelling": self.cancelling,
            "reason": self.reason,
            "message": self.message,
            "job": self.job,
        }


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What a host's workers say of it. `memory` is what guests may be promised, in bytes; `memlock` None: no limit."""

    host: str
    address: str
    version: str
    memory: int
    #: Promised already: to guests that are there, and to guests on their way.
    resident: int
    reserved: int
    memlock: int | None
    capabilities: frozenset[str]
    transports: tuple[str, ...]
    trackers: tuple[str, ...]
    #: Migrations that may send (receive) at once, and that do; and that are admitted, those that prepare and those that
    #: let go of memory included.
    slots: Mapping[Side, int]
    busy: Mapping[Side, int]
    admitted: Mapping[Side, int]
    #: Roles whose worker is alive.
    alive: frozenset[Side]
    #: Cores that guests may keep busy, 0: not said; bytes/s of its link, and of the shared one behind it ("": none).
    cpus: float = 0.0
    bandwidth: int = BANDWIDTH
    uplink: str = ""
    uplink_bandwidth: int = 0
    labels: frozenset[str] = frozenset()
    #: Migrations that may prepare while as many as there are slots send.
    ahead: int = 0
    #: Bytes/s that a stream from it or to it reached lately; 0: not known.
    measured: int = 0
    #: Seconds for which its last moves were on the links beside what they sent; 0: not known.
    overhead: float = 0.0
    #: Names of the processor models that its QEMU knows; empty: not known.
    cpu_models: frozenset[str] = frozenset()
    #: What its workers speak with other hosts (workers/wire.py).
    wire: int = UNSAID

    @property
    def free(self) -> int:
        """Bytes that may still be promised; below 0 when the host was set to offer less."""
        return self.memory - self.resident - self.reserved

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "host": self.host,
            "address": self.address,
            "version": self.version,
            "wire": self.wire,
            "memory_bytes": self.memory,
            "free_bytes": self.free,
            "memlock_bytes": self.memlock,
            "capabilities": sorted(self.capabilities),
            "transports": list(self.transports),
            "trackers": list(self.trackers),
            "slots": {str(side): self._slots_json(side) for side in Side},
            "prepared_ahead": self.ahead,
            "workers": sorted(self.alive),
            "cpus": self.cpus,
            "bandwidth_bytes_per_second": self.bandwidth,
            "measured_bytes_per_second": self.measured or None,
            "measured_overhead_seconds": self.overhead or None,
            "uplink": self.uplink or None,
            "labels": sorted(self.labels),
            "cpu_models": sorted(self.cpu_models),
        }

    def _slots_json(self, side: Side) -> dict[str, int]:
        return {"limit": self.slots[side], "taken": self.busy[side], "admitted": self.admitted[side]}


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """Where a guest is, and which migration has it (None: none)."""

    guest: str
    host: str
    memory: int
    epoch: int
    active: str | None
    #: Cores that it keeps busy, as its host saw last.
    load: float = 0.0
    anti_affinity: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    #: Bytes/s that it wrote when it was last moved; None: never seen.
    dirty_rate: float | None = None
    #: When it was moved last.
    moved: float | None = None
    #: "": none that can be compared.
    cpu_model: str = ""
    #: When its host named it last, or a move of it ended.
    seen: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "guest": self.guest,
            "host": self.host,
            "memory_bytes": self.memory,
            "epoch": self.epoch,
            "migration": self.active,
            "load_cores": self.load,
            "anti_affinity": sorted(self.anti_affinity),
            "needs": sorted(self.needs),
            "dirty_bytes_per_second": self.dirty_rate,
            "moved": self.moved,
            "cpu_model": self.cpu_model or None,
        }


class Kept(StrEnum):
    """What a pin keeps from moving."""

    GUEST = "guest"
    #: Nobody leaves this host, nobody comes.
    HOST = "host"
    #: Nobody comes to this host.
    CORDON = "cordon"


@dataclass(frozen=True, slots=True)
class Pin:
    """An operator's word that something stays where it is: QEMU's migrate_add_blocker, for a fleet."""

    kept: Kept
    name: str
    reason: str
    since: float
    #: None: until it is taken back.
    expires: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "kept": str(self.kept),
            "name": self.name,
            "reason": self.reason,
            "since": self.since,
            "expires": self.expires,
        }


@dataclass(frozen=True, slots=True)
class Fleet:
    """All hosts that a live worker speaks for, and all guests, by name; and what operators keep where it is."""

    hosts: Mapping[str, HostRecord] = field(default_factory=dict)
    guests: Mapping[str, GuestRecord] = field(default_factory=dict)
    pins: Mapping[tuple[Kept, str], Pin] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """A request, judged: everything that its record will say. `memory` in bytes, `expires` in seconds since 1970."""

    migration: str
    guest: str
    source: str
    destination: str
    memory: int
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, int | str]
    expires: float | None = None
    #: The job that asks; "": none.
    job: str = ""
    priority: Priority = Priority.USER


@dataclass(frozen=True, slots=True)
class LocalGuest:
    """A guest that a host owns by its journal. `memory` in bytes; `epoch` is the highest that the journal has seen.

    `load` in cores, None: not looked at.
    """

    name: str
    memory: int
    epoch: int
    load: float | None = None
    anti_affinity: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    #: By its name in QEMU; "": none that can be compared.
    cpu_model: str = ""


# --- from Redis -------------------------------------------------------------------------------------------------------


def read_migration(migration: str, fields: Fields) -> MigrationRecord:
    """The record in a hash as prelude.lua describes it."""
    return MigrationRecord(
        migration=migration,
        guest=_text(fields, "guest"),
        state=_text(fields, "state"),
        memory=int(fields[b"memory"]),
        capabilities=json.loads(fields[b"capabilities"]),
        parameters=json.loads(fields[b"parameters"]),
        source=_read_side(Side.SOURCE, fields),
        destination=_read_side(Side.DESTINATION, fields),
        created=int(fields[b"created"]) / 1000,
        epoch=int(fields[b"epoch"]) if b"epoch" in fields else None,
        admitted=_moment(fields, "admitted"),
        priority=int(fields.get(b"priority") or Priority.USER),
        granted=_moment(fields, "granted"),
        rate=int(fields[b"rate"]) if b"rate" in fields else None,
        crosses=_crossed(fields),
        rung=_moment(fields, "rung"),
        finished=_moment(fields, "finished"),
        waiting=_text(fields, "waiting") or None,
        cancelling=b"cancel" in fields,
        restored=b"restored" in fields,
        reason=_text(fields, "reason") or None,
        message=_text(fields, "message") or None,
        job=_text(fields, "job") or None,
    )


def _crossed(fields: Fields) -> frozenset[str]:
    """Names of link:L:WAY; none once its share of them was given back."""
    keys = [] if b"off_links" in fields else json.loads(fields.get(b"crosses", b"[]"))
    return frozenset(key.removeprefix("link:").rpartition(":")[0] for key in keys)


def _read_side(side: Side, fields: Fields) -> SideRecord:
    progress = fields.get(f"progress:{side}".encode())
    return SideRecord(
        host=_text(fields, side),
        claimed=_moment(fields, f"claimed:{side}"),
        lease=_moment(fields, f"lease:{side}"),
        outcome=_text(fields, f"outcome:{side}") or None,
        progress=json.loads(progress) if progress else None,
        nonce=_text(fields, f"claim:{side}") or None,
    )


def read_host(
    host: str,
    fields: Fields,
    now: float,
    resident: int,
    reserved: int,
    busy: Mapping[Side, int],
    admitted: Mapping[Side, int],
) -> HostRecord:
    """The host in a hash as tasks/host.py offers it, `measured` (bytes/s) and `overheads` (JSON, ms) beside it
    where they are known."""
    memlock = _text(fields, "memlock")
    return HostRecord(
        host=host,
        address=_text(fields, "address"),
        version=_text(fields, "version"),
        memory=int(fields[b"memory"]),
        resident=resident,
        reserved=reserved,
        memlock=int(memlock) if memlock else None,
        capabilities=frozenset(json.loads(fields[b"capabilities"])),
        transports=tuple(json.loads(fields[b"transports"])),
        trackers=tuple(json.loads(fields[b"trackers"])),
        slots={side: int(fields[f"slots:{side}".encode()]) for side in Side},
        busy=busy,
        admitted=admitted,
        ahead=int(fields.get(b"ahead", 0)),
        measured=int(fields.get(b"measured", 0)),
        overhead=_typical(json.loads(fields.get(b"overheads", b"[]"))) / 1000,
        alive=frozenset(side for side in Side if (_moment(fields, f"lease:{side}") or 0) >= now),
        cpus=float(fields.get(b"cpus", 0)),
        bandwidth=int(fields.get(b"bandwidth", BANDWIDTH)),
        uplink=_text(fields, "uplink"),
        uplink_bandwidth=int(fields.get(b"uplink_bandwidth", 0)),
        labels=frozenset(json.loads(fields.get(b"labels", b"[]"))),
        cpu_models=_models(fields.get(b"cpu_models", b"[]")),
        wire=int(fields.get(b"wire", UNSAID)),
    )


def read_guest(guest: str, fields: Fields) -> GuestRecord:
    """The guest in a hash as prelude.lua describes it."""
    rules = json.loads(fields.get(b"rules") or b"{}")
    return GuestRecord(
        guest,
        _text(fields, "host"),
        int(fields[b"bytes"]),
        int(fields[b"epoch"]),
        _text(fields, "active") or None,
        float(fields.get(b"load") or 0),
        frozenset(rules.get("anti_affinity", ())),
        frozenset(rules.get("needs", ())),
        float(fields[b"dirty"]) if b"dirty" in fields else None,
        _moment(fields, "moved"),
        rules.get("cpu_model", ""),
        _moment(fields, "seen"),
    )


def _typical(values: list[float]) -> float:
    """The mean without the extremes; 0 of none. Moves that had prepared and those that had not take times far apart, of
    which a median would tell only one; and one that waited for Redis would spoil a mean."""
    return fmean(sorted(values)[1:-1] if len(values) > 2 else values) if values else 0.0


@lru_cache(maxsize=64)
def _models(said: bytes) -> frozenset[str]:
    """Hundreds of hosts say the same hundred names: they are read, and kept, once."""
    return frozenset(json.loads(said))


def read_pin(subject: str, said: bytes | str) -> Pin:
    """The pin in a field of the hash `blockers` as prelude.lua describes it."""
    kept, _, name = subject.partition(":")
    document = json.loads(said)
    expires = document["expires"] / 1000 or None
    return Pin(Kept(kept), name, document["reason"], document["since"] / 1000, expires)


def _side_json(side: SideRecord) -> dict[str, Any]:
    return {
        "host": side.host,
        "claimed": side.claimed,
        "lease": side.lease,
        "outcome": side.outcome,
        "progress": None if side.progress is None else dict(side.progress),
    }


def _text(fields: Fields, name: str) -> str:
    return fields.get(name.encode(), b"").decode()


def _moment(fields: Fields, name: str) -> float | None:
    value = fields.get(name.encode())
    return int(value) / 1000 if value else None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A blocker, and who sees it: a side and its host, or the fleet's record (no side, no host)."""

    blocker: Blocker
    side: Side | None = None
    host: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"side": None if self.side is None else str(self.side), "host": self.host} | self.blocker.to_json()


@dataclass(frozen=True, slots=True)
class Checked:
    """What would keep a guest from moving; nothing, when `obstacles` is empty."""

    guest: str
    source: str
    destination: str
    obstacles: tuple[Obstacle, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = [each.to_json() for each in self.obstacles]
        ends = {"guest": self.guest, "source": self.source, "destination": self.destination}
        return ends | {"possible": not found, "blockers": found}


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What was judged of a policy by which guests are spread out. Moments in seconds since 1970."""

    #: The moment of its calendar that was judged last, and when that was; 0: none yet.
    due: float = 0.0
    judged: float = 0.0
    #: Ticks in a row above the threshold.
    over: int = 0
    imbalance: float = 0.0
    reason: str = ""
    #: The job that it began last, and when.
    job: str | None = None
    acted: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "due": self.due or None,
            "judged": self.judged or None,
            "over": self.over,
            "imbalance": self.imbalance if self.judged else None,
            "reason": self.reason,
            "job": self.job,
            "acted": self.acted,
        }


def read_policy(fields: Fields) -> PolicyRecord:
    """The hash of tasks/ledger/prelude.lua; an empty one was never judged."""
    if not fields:
        return PolicyRecord()
    job, acted = fields.get(b"job"), fields.get(b"acted")
    return PolicyRecord(
        int(fields[b"due"]) / 1000,
        int(fields[b"judged"]) / 1000,
        int(fields[b"over"]),
        float(fields[b"imbalance"]),
        fields[b"reason"].decode(),
        job.decode() if job else None,
        int(acted) / 1000 if acted else None,
    )
