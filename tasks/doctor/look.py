"""Looking at this host: every fact that `judge` wants. Changes nothing; what cannot be looked at is a fact too."""

from __future__ import annotations

import errno
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import redis as client_library
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from config.errors import DrovewayError, HostError
from config.redis import coordination_client, reaching_redis
from config.settings import RedisSettings, Settings, memory_total
from tasks.certificates import names_in
from tasks.doctor.facts import Certificate, Directory, Facts, Kernel, Memory, Ports, Qemu, Rdma, Redis, Release
from tasks.ledger.ledger import Ledger
from workers.dirty.choose import TRACKERS
from workers.guests.qemu.blockers import NEEDED_CAPABILITIES
from workers.guests.qemu.guest import BINARY
from workers.guests.qemu.probing import accelerator_problem, probed
from workers.guests.qemu.queries import asked
from workers.pairing.contract import Side
from workers.registration.limits import capable, cgroup_headroom, lock_limit
from workers.transports.verbs.library import Verbs
from workers.transports.verbs.ports import all_ports, choose
from workers.wire import WIRE

_CAP_SYS_PTRACE = 19
#: Writes of which the median is taken.
_SYNCS = 5
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})


def look(settings: Settings) -> Facts:
    """All of it; takes seconds, most of them QEMU's and the trackers' trials."""
    found_redis = _redis(settings.redis)
    return Facts(
        host=settings.host.name,
        now=datetime.now(UTC),
        address_is_loopback=settings.host.address.is_loopback,
        kernel=_kernel(),
        rdma=_rdma(settings),
        rdma_is_set=any((settings.rdma.device, settings.rdma.port, settings.rdma.gid_index)),
        memory=Memory(
            total=(total := memory_total()),
            offered=settings.host.offered_memory(total),
            set_by_hand=settings.host.memory is not None,
            lockable=lock_limit(),
            cgroup=cgroup_headroom(),
        ),
        state=directory(settings.host.state_dir, synced=True),
        ram=directory(settings.host.ram_dir),
        ports=_ports(settings),
        redis=found_redis,
        release=_release(settings, reachable=not found_redis.problem),
        certificates=tuple(_certificates(settings)),
        qemu=_qemu(BINARY),
    )


def _said(look_at: Callable[[], object]) -> str:
    """Why it does not work; "" when it does."""
    try:
        look_at()
    except DrovewayError as error:
        return str(error).rstrip(".")
    return ""


# --- the kernel and its devices ---------------------------------------------------------------------------------------


def _kernel() -> Kernel:
    trackers = {tracker.kind: _said(tracker.self_test) for tracker in TRACKERS}
    return Kernel(platform.release(), trackers, root=os.geteuid() == 0, traces=capable(_CAP_SYS_PTRACE))


def _rdma(settings: Settings) -> Rdma:
    ports = all_ports()
    there = {str(port): port.state for port in ports}
    if not ports:
        return Rdma()
    wanted = settings.rdma
    try:
        choice = choose(
            ports,
            device=wanted.device,
            number=wanted.port,
            gid_index=wanted.gid_index,
            address=settings.host.advertised,
        )
    except DrovewayError as error:
        return Rdma(there, _said(Verbs), problem=str(error).rstrip("."))
    return Rdma(there, _said(Verbs), chosen=f"{choice.port}, GID {choice.gid.index} ({choice.gid.address})")


def _qemu(binary: str) -> Qemu:
    try:
        with probed(binary, "-accel", "tcg") as monitor:
            said = monitor.execute("query-version")["qemu"]
            capabilities = asked(monitor, "query-migrate-capabilities") or []
    except HostError as error:
        return Qemu(binary, installed="is not installed" not in str(error), problem=str(error))
    has = {each["capability"] for each in capabilities}
    lacks = tuple(name for name in NEEDED_CAPABILITIES if name not in has)
    number = f"{said['major']}.{said['minor']}.{said['micro']}"
    return Qemu(binary, True, number, kvm_problem=accelerator_problem("kvm").removeprefix("and "), lacks=lacks)


# --- memory and disks -------------------------------------------------------------------------------------------------


def directory(path: Path, *, synced: bool = False) -> Directory:
    """Where it lies, or would: the nearest directory above it that is there. `synced`: try how fast its disk is."""
    there = next(each for each in (path, *path.parents) if each.exists())
    try:
        room = os.statvfs(there)
    except OSError as error:
        return Directory(str(path), "", 0, 0, error.strerror or "cannot be looked at")
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    found = Directory(str(path), _filesystem(there), total, free)
    problem = ""
    if not there.is_dir():
        problem = f"{there} is no directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"this user may not write in {there}"
    if problem:
        return Directory(found.path, found.filesystem, found.size, found.free, problem)
    try:
        took = _synced(there) if synced else None
    except OSError as error:
        return Directory(found.path, found.filesystem, found.size, found.free, f"cannot be written ({error.strerror})")
    return Directory(found.path, found.filesystem, found.size, found.free, synced=took)


def _synced(there: Path) -> float:
    """Median seconds of a small write that is on the disk afterwards; the file has no name."""
    took = []
    with tempfile.TemporaryFile(dir=there) as file:
        for _ in range(_SYNCS):
            begun = time.monotonic()
            file.write(b"x" * 200)
            file.flush()
            os.fsync(file.fileno())
            took.append(time.monotonic() - begun)
    return statistics.median(took)


def _filesystem(path: Path) -> str:
    """The type of what `path` lies on: the last mount whose point it is below (later ones hide earlier ones)."""
    resolved, found = path.resolve(), "unknown"
    depth = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if resolved.is_relative_to(point) and len(point.parts) >= depth:
            depth, found = len(point.parts), after.split()[0]
    return found


# --- network and Redis ------------------------------------------------------------------------------------------------


def _ports(settings: Settings) -> Ports:
    host = settings.host
    first, last = host.ports
    wanted = host.inbound_slots + host.outbound_slots + 2 * host.prepared_ahead
    free, problem = 0, ""
    for port in range(first, last + 1):
        why_not = _taken(str(host.address), port)
        free += why_not is None
        if why_not == errno.EADDRNOTAVAIL:
            problem = "this host does not have this address"
            break
    running = running_roles(host.state_dir)
    pages = {Side.SOURCE: host.metrics_source_port, Side.DESTINATION: host.metrics_destination_port}
    taken = tuple(
        port
        for side, port in pages.items()
        if port and side not in running and _taken(host.metrics_listen, port) == errno.EADDRINUSE
    )
    return Ports(str(host.address), first, last, free, wanted, taken, problem)


def _taken(address: str, port: int) -> int | None:
    """The error of listening there; None when one could."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError as error:
            return error.errno or errno.EIO
    return None


def running_roles(state_dir: Path) -> tuple[Side, ...]:
    """Roles whose worker runs on this host: by the kernel's table of locks, so that nobody's start is disturbed."""
    try:
        table = Path("/proc/locks").read_text().split()
    except OSError:
        return ()
    held = {word.rpartition(":")[2] for word in table if word.count(":") == 2}
    return tuple(side for side in Side if (inode := _inode(state_dir / f"{side}.lock")) and inode in held)


def _inode(path: Path) -> str | None:
    try:
        return str(path.stat().st_ino)
    except OSError:
        return None


def _redis(settings: RedisSettings) -> Redis:
    url = settings.shown_url
    host = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://").partition("/")[0]
    local = url.startswith("unix:") or host.rpartition(":")[0].strip("[]") in _LOCAL or host.strip("[]") in _LOCAL
    known: dict[str, Any] = {"url": url, "tls": settings.tls, "local": local}
    try:
        with coordination_client(settings, "droveway-doctor") as client, reaching_redis(settings):
            client.ping()
            known |= _clock(client) | _durability(client)
            known["lacking"] = _lacking(client, f"{settings.prefix}doctor:{os.getpid()}")
    except DrovewayError as error:
        known["problem"] = str(error)
    return Redis(**known)


def _clock(client: client_library.Redis) -> dict[str, float]:
    """Asked some times, the quickest answer counts."""
    answers = []
    for _ in range(_SYNCS):
        begun, now = time.monotonic(), time.time()
        seconds, microseconds = client.time()
        took = time.monotonic() - begun
        answers.append((took, seconds + microseconds / 1e6 - (now + took / 2)))
    round_trip, offset = min(answers)
    return {"round_trip": round_trip, "offset": offset}


def _durability(client: client_library.Redis) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        info = client.info()
        found |= {
            "version": str(info.get("redis_version", "")),
            "log": bool(info.get("aof_enabled")),
            "log_failed": info.get("aof_last_write_status", "ok") != "ok",
            "eviction": info.get("maxmemory_policy"),
            "used": int(info.get("used_memory", 0)),
            "limit": int(info.get("maxmemory", 0)),
        }
        found["sync"] = cast("dict[str, str]", client.config_get("appendfsync")).get("appendfsync")
    except client_library.exceptions.NoPermissionError:
        pass
    return found


def _lacking(client: client_library.Redis, key: str) -> tuple[str, ...]:
    """What our user may not do: commands, or anything with keys of our prefix. `key`: no one's, under that prefix."""
    source = Path(__file__).with_name("rights.lua").read_text()
    try:
        refused = cast("list[bytes]", client.register_script(source)(keys=[key]))
    except client_library.exceptions.NoPermissionError as error:
        return (f"touch {key.partition(':')[0]}:…",) if "key" in str(error) else ("EVALSHA",)
    return tuple(dict.fromkeys(name.decode() for name in refused))


def _release(settings: Settings, *, reachable: bool) -> Release:
    fleet = None
    if reachable:
        try:
            with closing(Ledger(settings)) as ledger:
                fleet = {name: (host.version, host.wire) for name, host in ledger.fleet().hosts.items()}
        except DrovewayError:
            fleet = None
    running = tuple(str(side) for side in running_roles(settings.host.state_dir))
    return Release(version("droveway"), WIRE, fleet, running)


# --- certificates -----------------------------------------------------------------------------------------------------


def _certificates(settings: Settings) -> Iterator[Certificate]:
    tls, redis = settings.tls, settings.redis
    if tls.certificate and tls.key:
        yield certificate("tls", tls.certificate, tls.key, tls.ca)
    if redis.certificate and redis.key:
        yield certificate("redis", redis.certificate, redis.key, redis.ca)


def certificate(purpose: str, path: Path, key: Path, ca: Path | None) -> Certificate:
    """One of ours, its key, and who vouches for it (None: the system's list, which is not looked through)."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        public = serialization.load_pem_private_key(key.read_bytes(), None).public_key()
        authorities = x509.load_pem_x509_certificates(ca.read_bytes()) if ca else []
        mode = key.stat().st_mode & 0o777
    except (OSError, ValueError, TypeError) as error:
        return Certificate(purpose, str(path), f"it, its key or its authority cannot be read ({error})")
    if found.public_key() != public:
        return Certificate(purpose, str(path), f"{key} is not its key")
    vouching = [each for each in authorities if _vouches(each, found)]
    if ca and not vouching:
        return Certificate(purpose, str(path), f"none of {ca} vouches for it")
    until = max((each.not_valid_after_utc for each in vouching), default=None)
    since = found.not_valid_before_utc
    return Certificate(purpose, str(path), "", names_in(found), since, found.not_valid_after_utc, until, mode)


def _vouches(authority: x509.Certificate, found: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001  # another name, or a signature that is not its: several classes
        return False
    return True
