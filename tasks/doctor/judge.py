"""Facts about a host → what an operator should know of each, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from config.redis import OLDEST_SERVER
from tasks.cli.quantities import size
from tasks.doctor.facts import Certificate, Directory, Facts
from workers.registration.choose import LEAST_LOCKABLE

#: A clock's error in seconds that makes times hard to compare; that lets messages expire, or certificates.
_DRIFT, _WRONG_TIME = 1.0, 300.0
#: A journal that is slower to write is felt in the downtime, which has two such writes in it. Seconds.
_SLOW_DISK = 0.1
#: Bytes that journals and sockets must find.
_STATE_ROOM = 64 << 20
#: Certificates are renewed by hand: say so in time.
_RENEW = timedelta(days=30)
#: Of what a Redis may hold.
_NEARLY_FULL = 0.8
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_SHARED = frozenset({"nfs", "nfs4", "cifs", "ceph", "fuse.glusterfs", "9p"})


class State(StrEnum):
    """How it stands; only FAIL keeps guests from moving."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it stands, what was seen, what to do ("" where nothing is)."""

    check: str
    state: State
    seen: str
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        """For `--json`."""
        return {"check": self.check, "state": str(self.state), "seen": self.seen, "todo": self.todo}


def judge(facts: Facts) -> list[Finding]:
    """Every check there is, in the order in which one would repair them."""
    found: list[Finding] = []
    for check in _CHECKS:
        found += check(facts)
    return found


# --- the kernel and its devices ---------------------------------------------------------------------------------------


def _dirty_tracking(facts: Facts) -> Iterator[Finding]:
    kernel = facts.kernel
    works = [kind for kind, problem in kernel.trackers.items() if not problem]
    why_not = "; ".join(f"not {kind}: {problem}" for kind, problem in kernel.trackers.items() if problem)
    seen = f"Linux {kernel.release}: {', '.join(works) or 'nothing works'}{why_not and f' ({why_not})'}"
    if "pagemap-scan" in works:
        yield Finding("dirty tracking", State.OK, seen)
    elif works:
        todo = (
            "upgrade to Linux 6.7 or later: until then guests under KVM are compared as a whole while they are paused"
        )
        yield Finding("dirty tracking", State.WARN, seen, todo)
    else:
        yield Finding("dirty tracking", State.FAIL, seen, "upgrade to Linux 6.7 or later; what fails is said beside")


def _privileges(facts: Facts) -> Iterator[Finding]:
    kernel = facts.kernel
    if kernel.root:
        yield Finding("privileges", State.OK, "root")
    elif kernel.traces:
        yield Finding("privileges", State.OK, "CAP_SYS_PTRACE")
    else:
        todo = "run the worker as root (ops/systemd): virtual machines cannot be followed without CAP_SYS_PTRACE"
        yield Finding("privileges", State.WARN, "neither root nor CAP_SYS_PTRACE", todo)


def _rdma(facts: Facts) -> Iterator[Finding]:
    rdma, name = facts.rdma, "RDMA"
    there = ", ".join(f"{port} {state}" for port, state in rdma.ports.items())
    wanted = State.FAIL if facts.rdma_is_set else State.WARN
    if not rdma.ports:
        todo = "load its driver (`rdma link` lists devices), or remove [rdma]" if facts.rdma_is_set else ""
        state = State.FAIL if facts.rdma_is_set else State.SKIP
        yield Finding(name, state, "no device: memory goes over tcp", todo)
    elif rdma.library_problem:
        todo = "apt install python3-pyverbs rdma-core, then make setup (or ops/scripts/debian-setup) links it"
        yield Finding(name, wanted, f"{there}; {rdma.library_problem}", todo)
    elif rdma.problem:
        yield Finding(name, wanted, f"{there}; {rdma.problem}", "bring its link up, or name another in [rdma]")
    else:
        clear = any(each.purpose == "tls" for each in facts.certificates)
        only = "; taken by transport=verbs only, since [tls] is set and RDMA is not encrypted" if clear else ""
        yield Finding(name, State.OK, f"{rdma.chosen}{only}")


def _qemu(facts: Facts) -> Iterator[Finding]:
    qemu = facts.qemu
    if not qemu.installed:
        yield Finding("QEMU", State.SKIP, f"no {qemu.binary}: virtual machines can neither start nor come")
        return
    if qemu.problem:
        yield Finding("QEMU", State.FAIL, qemu.problem, f"reinstall it: {qemu.binary} must start")
        return
    seen = f"QEMU {qemu.version}"
    if qemu.lacks:
        todo = "install QEMU 4.2 or later (Debian: apt install qemu-system-x86)"
        yield Finding("QEMU", State.FAIL, f"{seen} lacks {', '.join(qemu.lacks)}", todo)
    elif qemu.kvm_problem:
        todo = "load kvm_intel or kvm_amd, or let this user open /dev/kvm; emulated guests move all the same"
        yield Finding("QEMU", State.WARN, f"{seen}, no KVM: {qemu.kvm_problem}", todo)
    else:
        yield Finding("QEMU", State.OK, f"{seen}, KVM")


# --- memory and disks -------------------------------------------------------------------------------------------------


def _memory_lock(facts: Facts) -> Iterator[Finding]:
    memory, over_rdma = facts.memory, bool(facts.rdma.ports)
    if memory.lockable is None:
        yield Finding("memory lock", State.OK, "no limit")
        return
    seen, todo = f"{size(memory.lockable)} may be locked", "set LimitMEMLOCK=infinity (ops/systemd), or ulimit -l"
    if memory.lockable >= memory.offered:
        yield Finding("memory lock", State.OK, seen)
    elif over_rdma and memory.lockable < LEAST_LOCKABLE:
        yield Finding("memory lock", State.FAIL, f"{seen}, RDMA takes {size(LEAST_LOCKABLE)} at least", todo)
    else:
        less = f"{seen}, {size(memory.offered)} are offered to guests: rdma-pin-all is refused for larger ones"
        yield Finding("memory lock", State.WARN, less + (", RDMA goes through a window" if over_rdma else ""), todo)


def _memory(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    seen = f"{size(memory.total)}, {size(memory.offered)} of them offered to guests"
    if not memory.offered:
        yield Finding("memory", State.FAIL, seen, "set host.memory: nothing would be left for guests")
    elif memory.offered > memory.total:
        yield Finding("memory", State.WARN, seen, "lower host.memory: more is promised than there is")
    elif memory.cgroup is not None and memory.cgroup < memory.offered:
        less = f"{seen}; this process's cgroup may take {size(memory.cgroup)} more"
        yield Finding("memory", State.WARN, less, "raise MemoryMax of the service (memory.max), or lower host.memory")
    else:
        yield Finding("memory", State.OK, seen)


def _ram_directory(facts: Facts) -> Iterator[Finding]:
    ram, offered = facts.ram, facts.memory.offered
    seen = f"{ram.path} on {ram.filesystem}, {size(ram.free)} of {size(ram.size)} free"
    if ram.problem:
        yield Finding("RAM directory", State.FAIL, f"{ram.path}: {ram.problem}", "correct host.ram_dir, or make it")
    elif ram.filesystem not in _IN_MEMORY:
        todo = "mount a tmpfs (or hugetlbfs) there, or name another host.ram_dir: guests would run from a disk"
        yield Finding("RAM directory", State.FAIL, seen, todo)
    elif ram.size < offered:
        todo = f"enlarge it (mount -o remount,size=…), or set host.memory: {size(offered)} are promised to guests"
        yield Finding("RAM directory", State.WARN, seen, todo)
    else:
        yield Finding("RAM directory", State.OK, seen)


def _state_directory(facts: Facts) -> Iterator[Finding]:
    state = facts.state
    disk = f", {state.synced * 1000:.1f} ms a synced write" if state.synced is not None else ""
    seen = f"{state.path} on {state.filesystem}, {size(state.free)} free{disk}"
    name, (trouble, how_bad, todo) = "state directory", _state_trouble(state)
    if state.problem:
        seen = f"{state.path}: {state.problem}"
    yield Finding(name, how_bad if trouble else State.OK, seen, todo if trouble else "")


def _state_trouble(state: Directory) -> tuple[bool, State, str]:
    """Whether there is any, how bad it is, what to do; the worst that applies."""
    for applies, how_bad, todo in (
        (bool(state.problem), State.FAIL, "give this user host.state_dir, or name another"),
        (
            state.filesystem in _IN_MEMORY,
            State.FAIL,
            "name a host.state_dir on a disk: the journal says who owns a guest, and must outlive a reboot",
        ),
        (state.free < _STATE_ROOM, State.FAIL, f"make room: journals need {size(_STATE_ROOM)}"),
        (
            state.filesystem in _SHARED,
            State.WARN,
            "name a host.state_dir on a disk of this host: what is synced to a server may be another's tomorrow",
        ),
        (
            state.filesystem == "overlay",
            State.WARN,
            "mount a volume there: a container's own layer goes with the container, and the journals with it",
        ),
        (
            state.synced is not None and state.synced > _SLOW_DISK,
            State.WARN,
            "move it to a faster disk: two such writes are part of every downtime",
        ),
    ):
        if applies:
            return True, how_bad, todo
    return False, State.OK, ""


# --- network and Redis ------------------------------------------------------------------------------------------------


def _ports(facts: Facts) -> Iterator[Finding]:
    ports = facts.ports
    seen = f"{ports.address}:{ports.first}-{ports.last}, {ports.free} of {ports.last - ports.first + 1} free"
    if ports.problem:
        yield Finding("ports", State.FAIL, f"{ports.address}: {ports.problem}", "correct host.address")
    elif not ports.free:
        yield Finding("ports", State.FAIL, seen, "name others in host.ports, and open them in the firewall")
    elif ports.pages_taken:
        taken = ", ".join(str(port) for port in ports.pages_taken)
        todo = "give the pages other ports (host.metrics_source_port, host.metrics_destination_port), or 0"
        yield Finding("ports", State.FAIL, f"{seen}; another program has {taken}, where /metrics should be", todo)
    elif ports.free < ports.wanted:
        todo = "widen host.ports: one is needed for each migration that may be under way"
        yield Finding("ports", State.WARN, f"{seen}, {ports.wanted} are needed", todo)
    elif facts.address_is_loopback:
        todo = "set host.address to where other hosts reach this one, if it is to have any"
        yield Finding("ports", State.WARN, f"{seen}; only this machine reaches {ports.address}", todo)
    else:
        yield Finding("ports", State.OK, seen)


def _redis(facts: Facts) -> Iterator[Finding]:
    redis = facts.redis
    if redis.problem:
        yield Finding("Redis", State.FAIL, redis.problem.rstrip("."), "until then nothing new is moved")
        return
    seen = f"{redis.url}, Redis {redis.version}, answers in {redis.round_trip * 1000:.1f} ms"
    if tuple(int(part) for part in redis.version.split(".")[:2] if part.isdecimal()) < OLDEST_SERVER:
        yield Finding("Redis", State.FAIL, seen, "upgrade it: Celery needs 6.2")
    elif not (redis.tls or redis.local):
        todo = "use rediss:// (ops/redis/tls.conf, droveway certs): passwords and tokens cross the network in the clear"
        yield Finding("Redis", State.WARN, seen, todo)
    else:
        yield Finding("Redis", State.OK, seen)
    yield from _durability(facts)
    yield from _rights(facts)


def _durability(facts: Facts) -> Iterator[Finding]:
    redis, name = facts.redis, "Redis' durability"
    log = {True: "appendonly yes", False: "appendonly no", None: "appendonly not known"}[redis.log]
    seen = f"{log}, appendfsync {redis.sync or 'not known'}, maxmemory-policy {redis.eviction or 'not known'}"
    where = "(ops/redis/droveway.conf)"
    if redis.log is False or redis.sync == "no":
        yield Finding(
            name, State.FAIL, seen, f"set appendonly yes and appendfsync always {where}: a restart forgets claims"
        )
    elif redis.eviction not in (None, "noeviction"):
        yield Finding(name, State.FAIL, seen, f"set maxmemory-policy noeviction {where}: it drops keys when it is full")
    elif redis.log_failed:
        yield Finding(
            name, State.FAIL, f"{seen}; its last write to disk failed", "repair its disk: it refuses to write"
        )
    elif redis.limit and redis.used > _NEARLY_FULL * redis.limit:
        full = f"{seen}; {size(redis.used)} of {size(redis.limit)} used"
        yield Finding(name, State.WARN, full, "raise maxmemory, or lower history.retention: a full one refuses writes")
    elif redis.sync == "everysec":
        todo = f"set appendfsync always {where}: a power cut loses the last second of what was answered"
        yield Finding(name, State.WARN, seen, todo)
    elif redis.sync is None or redis.log is None:
        todo = "give our user +info and +config|get (ops/redis/droveway.acl), or look: redis-cli CONFIG GET append*"
        yield Finding(name, State.SKIP, seen, todo)
    else:
        yield Finding(name, State.OK, seen)


def _rights(facts: Facts) -> Iterator[Finding]:
    lacking = facts.redis.lacking
    if not lacking:
        yield Finding("Redis' rights", State.OK, "our user may give every command that a worker gives")
    elif lacking == ("EVALSHA",):
        seen = "our user may only read: enough for an exporter, not for a worker"
        yield Finding("Redis' rights", State.WARN, seen, "on a host with guests, use the user droveway in redis.url")
    else:
        todo = "give our user the rights in ops/redis/droveway.acl, for the prefix in redis.prefix"
        yield Finding("Redis' rights", State.FAIL, f"our user may not {', '.join(lacking)}", todo)


def _clock(facts: Facts) -> Iterator[Finding]:
    redis = facts.redis
    if redis.problem:
        yield Finding("clock", State.SKIP, "there is no Redis to compare it with")
        return
    off = abs(redis.offset)
    # The question may have spent all of its way on one leg of it.
    known = max(0.0, off - redis.round_trip / 2)
    ahead = "behind" if redis.offset > 0 else "ahead of"
    seen = f"{off:.3f} s {ahead} Redis' clock"
    if known > _WRONG_TIME:
        yield Finding(
            "clock", State.FAIL, seen, "set it (timedatectl set-ntp true): messages expire, certificates fail"
        )
    elif known > _DRIFT:
        yield Finding("clock", State.WARN, seen, "set it (timedatectl set-ntp true): logs of hosts cannot be compared")
    else:
        yield Finding("clock", State.OK, seen)


def _versions(facts: Facts) -> Iterator[Finding]:
    ours, name = facts.release, "versions"
    seen = f"release {ours.version}, wire version {ours.wire}"
    if ours.fleet is None:
        yield Finding(name, State.SKIP, f"{seen}; the fleet's are not known")
        return
    others = {host: said for host, said in ours.fleet.items() if host != facts.host}
    apart = sorted(host for host, (_, wire) in others.items() if abs(wire - ours.wire) > 1)
    unlike = sorted(host for host, (_, wire) in others.items() if wire != ours.wire)
    if apart:
        said = ", ".join(f"{host} {others[host][1]}" for host in apart)
        todo = "upgrade the older ones, release by release (ops/upgrades.md): no guest moves between them and this host"
        yield Finding(name, State.FAIL, f"{seen}; {said}", todo)
    elif unlike:
        said = ", ".join(f"{host} {others[host][1]}" for host in unlike)
        yield Finding(
            name, State.WARN, f"{seen}; {said}", "finish the upgrade (ops/upgrades.md); guests move meanwhile"
        )
    else:
        yield Finding(name, State.OK, f"{seen}, as {len(others)} other hosts" if others else f"{seen}, no other host")


def _workers(facts: Facts) -> Iterator[Finding]:
    running = facts.release.running
    if len(running) == 2:
        yield Finding("workers", State.OK, "one of each role runs here")
    else:
        seen = f"only the {running[0]} worker runs here" if running else "none runs here"
        yield Finding(
            "workers", State.WARN if running else State.SKIP, seen, "systemctl start droveway-worker (ops/systemd)"
        )


# --- certificates -----------------------------------------------------------------------------------------------------


def _certificates(facts: Facts) -> Iterator[Finding]:
    if not any(each.purpose == "tls" for each in facts.certificates):
        if facts.address_is_loopback:
            yield Finding("certificate of tls", State.SKIP, "none, and nothing leaves this machine")
        else:
            todo = "make certificates (droveway certs) and name them in [tls], on all hosts"
            yield Finding("certificate of tls", State.WARN, "none: guests' memory travels in the clear", todo)
    for each in facts.certificates:
        yield _certificate(each, facts)


def _certificate(found: Certificate, facts: Facts) -> Finding:
    name, path = f"certificate of {found.purpose}", found.path
    if found.problem or found.since is None or found.until is None:
        return Finding(name, State.FAIL, f"{path}: {found.problem}", "put the right files there")
    renew = f"renew it: droveway certs DIRECTORY --host {facts.host}=ADDRESS --replace"
    ends = min(found.until, found.ca_until or found.until)
    who = path if ends == found.until else f"the authority of {path}"
    seen = f"{path} for {', '.join(found.names) or 'nobody'}, until {found.until:%Y-%m-%d}"
    for applies, state, what, todo in (
        (ends <= facts.now, State.FAIL, f"{who} ended on {ends:%Y-%m-%d}", renew),
        (
            found.since > facts.now,
            State.FAIL,
            f"{path} begins only on {found.since:%Y-%m-%d %H:%M} UTC",
            "set this host's clock, or the one of whoever made it",
        ),
        (
            bool(found.key_mode & 0o077),
            State.FAIL,
            f"others may read the key of {path} (mode {found.key_mode:o})",
            "chmod 600: whoever reads it can pose as this host",
        ),
        (ends - facts.now < _RENEW, State.WARN, f"{who} ends on {ends:%Y-%m-%d}", renew),
        (
            facts.host not in found.names,
            State.WARN,
            f"{seen}; this host is {facts.host}",
            f"have it made for {facts.host}, by which other hosts' QEMU know it",
        ),
    ):
        if applies:
            return Finding(name, state, what, todo)
    return Finding(name, State.OK, seen)


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _dirty_tracking,
    _privileges,
    _rdma,
    _qemu,
    _memory_lock,
    _memory,
    _ram_directory,
    _state_directory,
    _ports,
    _redis,
    _clock,
    _certificates,
    _versions,
    _workers,
)
