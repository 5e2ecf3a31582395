"""What a doctor makes of facts: a sound host, and each thing that can be wrong with one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.doctor.facts import Certificate, Directory, Facts, Kernel, Memory, Ports, Qemu, Rdma, Redis, Release
from tasks.doctor.judge import Finding, State, judge
from workers.wire import WIRE

GIB = 1 << 30
NOW = datetime(2026, 12, 1, tzinfo=UTC)
DAY = timedelta(days=1)

CERTIFICATE = Certificate(
    purpose="tls",
    path="/etc/droveway/alpha.pem",
    names=("alpha", "10.0.0.1"),
    since=NOW - DAY,
    until=NOW + 300 * DAY,
    ca_until=NOW + 3000 * DAY,
)
SOUND = Facts(
    host="alpha",
    now=NOW,
    address_is_loopback=False,
    kernel=Kernel("6.12.0", {"pagemap-scan": "", "userfaultfd": "", "content": ""}, root=True, traces=True),
    rdma=Rdma({"mlx5_0 port 1": "ACTIVE"}, chosen="mlx5_0 port 1, GID 3 (::ffff:10.0.0.1)"),
    rdma_is_set=False,
    memory=Memory(total=64 * GIB, offered=57 * GIB, set_by_hand=False, lockable=None, cgroup=None),
    state=Directory("/var/lib/droveway", "ext4", 100 * GIB, 50 * GIB, synced=0.001),
    ram=Directory("/dev/shm/droveway", "tmpfs", 60 * GIB, 60 * GIB),
    ports=Ports("10.0.0.1", 49152, 49215, free=64, wanted=4),
    redis=Redis(
        url="rediss://droveway:***@redis.example:6379/0",
        tls=True,
        local=False,
        version="7.0.15",
        log=True,
        sync="always",
        eviction="noeviction",
        used=GIB // 64,
        limit=GIB // 2,
        round_trip=0.001,
    ),
    release=Release("0.1.0", WIRE, {"alpha": ("0.1.0", WIRE), "beta": ("0.1.0", WIRE)}, ("source", "destination")),
    certificates=(CERTIFICATE, replace(CERTIFICATE, purpose="redis")),
    qemu=Qemu("qemu-system-x86_64", installed=True, version="7.2.22"),
)


def changed(path: str, **changes: Any) -> Facts:
    """The sound host, but for these; `path` names the part, "" the whole."""
    if path == "certificate":
        return replace(SOUND, certificates=(replace(CERTIFICATE, **changes), SOUND.certificates[1]))
    part = replace(getattr(SOUND, path), **changes) if path else None
    return replace(SOUND, **{path: part}) if path else replace(SOUND, **changes)


def found(facts: Facts, check: str) -> Finding:
    (one,) = [each for each in judge(facts) if each.check == check]
    return one


def test_a_sound_host_has_nothing_to_be_told() -> None:
    findings = judge(SOUND)
    assert {each.state for each in findings} == {State.OK}, [each for each in findings if each.state is not State.OK]
    assert not any(each.todo for each in findings)
    assert len({each.check for each in findings}) == len(findings) == 17


@pytest.mark.parametrize(
    ("check", "facts", "state", "seen", "todo"),
    [
        (
            "dirty tracking",
            changed("kernel", trackers={"pagemap-scan": "no ioctl", "content": ""}),
            "warn",
            "not pagemap-scan: no ioctl",
            "6.7",
        ),
        ("dirty tracking", changed("kernel", trackers={"content": "broken"}), "fail", "nothing works", "6.7"),
        ("privileges", changed("kernel", root=False, traces=False), "warn", "neither", "as root"),
        ("privileges", changed("kernel", root=False), "ok", "CAP_SYS_PTRACE", ""),
        ("RDMA", changed("", rdma=Rdma()), "skip", "over tcp", ""),
        ("RDMA", changed("", rdma=Rdma(), rdma_is_set=True), "fail", "no device", "load its driver"),
        ("RDMA", changed("rdma", library_problem="pyverbs cannot be loaded"), "warn", "pyverbs", "python3-pyverbs"),
        (
            "RDMA",
            changed("rdma", problem="no RDMA port is active"),
            "warn",
            "ACTIVE; no RDMA port",
            "bring its link up",
        ),
        ("RDMA", replace(changed("rdma", problem="no mlx5_9"), rdma_is_set=True), "fail", "no mlx5_9", "[rdma]"),
        ("RDMA", SOUND, "ok", "transport=verbs only", ""),
        ("RDMA", changed("", certificates=()), "ok", "GID 3 (::ffff:10.0.0.1)", ""),
        ("QEMU", changed("qemu", installed=False), "skip", "neither start nor come", ""),
        ("QEMU", changed("qemu", problem="it cannot be asked"), "fail", "it cannot be asked", "reinstall"),
        ("QEMU", changed("qemu", lacks=("x-ignore-shared",)), "fail", "lacks x-ignore-shared", "install QEMU"),
        ("QEMU", changed("qemu", kvm_problem="/dev/kvm cannot be opened"), "warn", "no KVM", "kvm_intel"),
        ("memory lock", changed("memory", lockable=60 * GIB), "ok", "60.0 GiB", ""),
        ("memory lock", changed("memory", lockable=8 << 20), "warn", "RDMA goes through a window", "LimitMEMLOCK"),
        (
            "memory lock",
            replace(changed("memory", lockable=8 << 20), rdma=Rdma()),
            "warn",
            "rdma-pin-all is refused",
            "LimitMEMLOCK",
        ),
        ("memory lock", changed("memory", lockable=1 << 20), "fail", "at least", "LimitMEMLOCK"),
        ("memory lock", replace(changed("memory", lockable=1 << 20), rdma=Rdma()), "warn", "1.00 MiB", "LimitMEMLOCK"),
        ("memory", changed("memory", offered=0), "fail", "0 B", "host.memory"),
        ("memory", changed("memory", offered=65 * GIB), "warn", "65.0 GiB", "lower host.memory"),
        ("memory", changed("memory", cgroup=GIB), "warn", "1.00 GiB more", "MemoryMax"),
        ("RAM directory", changed("ram", problem="this user may not write"), "fail", "may not write", "host.ram_dir"),
        ("RAM directory", changed("ram", filesystem="ext4"), "fail", "ext4", "tmpfs"),
        ("RAM directory", changed("ram", size=32 * GIB), "warn", "32.0 GiB", "57.0 GiB are promised"),
        ("RAM directory", changed("ram", filesystem="hugetlbfs"), "ok", "hugetlbfs", ""),
        ("state directory", changed("state", problem="is no directory"), "fail", "is no directory", "host.state_dir"),
        ("state directory", changed("state", filesystem="tmpfs"), "fail", "tmpfs", "outlive a reboot"),
        ("state directory", changed("state", free=1 << 20), "fail", "1.00 MiB free", "make room"),
        ("state directory", changed("state", filesystem="nfs4"), "warn", "nfs4", "of this host"),
        ("state directory", changed("state", filesystem="overlay"), "warn", "overlay", "volume"),
        ("state directory", changed("state", synced=0.4), "warn", "400.0 ms", "faster disk"),
        (
            "ports",
            changed("ports", problem="this host does not have this address"),
            "fail",
            "does not have",
            "host.address",
        ),
        ("ports", changed("ports", free=0), "fail", "0 of 64", "host.ports"),
        ("ports", changed("ports", pages_taken=(9641,)), "fail", "9641", "metrics_source_port"),
        ("ports", changed("ports", free=3), "warn", "4 are needed", "widen"),
        ("ports", changed("", address_is_loopback=True), "warn", "only this machine", "host.address"),
        ("Redis", changed("redis", problem="cannot be reached."), "fail", "cannot be reached", "nothing new"),
        ("Redis", changed("redis", version="6.0.16"), "fail", "6.0.16", "6.2"),
        ("Redis", changed("redis", tls=False), "warn", "redis.example", "in the clear"),
        ("Redis", changed("redis", tls=False, local=True), "ok", "7.0.15", ""),
        ("Redis' durability", changed("redis", log=False), "fail", "appendonly no", "appendonly yes"),
        ("Redis' durability", changed("redis", sync="no"), "fail", "appendfsync no", "appendfsync always"),
        ("Redis' durability", changed("redis", eviction="allkeys-lru"), "fail", "allkeys-lru", "noeviction"),
        ("Redis' durability", changed("redis", log_failed=True), "fail", "failed", "repair its disk"),
        ("Redis' durability", changed("redis", used=GIB // 2 - 1), "warn", "512 MiB", "raise maxmemory"),
        ("Redis' durability", changed("redis", used=GIB, limit=0), "ok", "always", ""),
        ("Redis' durability", changed("redis", sync="everysec"), "warn", "everysec", "last second"),
        ("Redis' durability", changed("redis", sync=None), "skip", "not known", "config|get"),
        ("Redis' rights", changed("redis", lacking=("EVALSHA",)), "warn", "only read", "the user droveway"),
        ("Redis' rights", changed("redis", lacking=("HSET", "XADD")), "fail", "HSET, XADD", "droveway.acl"),
        ("clock", changed("redis", offset=2.0), "warn", "2.000 s behind", "set-ntp"),
        ("clock", changed("redis", offset=-2.0), "warn", "2.000 s ahead of", "set-ntp"),
        ("clock", changed("redis", offset=-400.0), "fail", "400.000 s", "set-ntp"),
        ("clock", changed("redis", offset=2.0, round_trip=3.0), "ok", "2.000 s", ""),
        ("clock", changed("redis", problem="away"), "skip", "no Redis", ""),
        ("certificate of tls", changed("", certificates=()), "warn", "in the clear", "droveway certs"),
        ("certificate of tls", changed("", certificates=(), address_is_loopback=True), "skip", "none", ""),
        (
            "certificate of tls",
            changed("certificate", problem="x.key is not its key"),
            "fail",
            "not its key",
            "right files",
        ),
        ("certificate of tls", changed("certificate", until=NOW - DAY), "fail", "ended on 2026-11-30", "--host alpha="),
        ("certificate of tls", changed("certificate", ca_until=NOW - DAY), "fail", "the authority of", "renew"),
        ("certificate of tls", changed("certificate", since=NOW + DAY), "fail", "begins only on 2026-12-02", "clock"),
        ("certificate of tls", changed("certificate", key_mode=0o640), "fail", "640", "chmod 600"),
        ("certificate of tls", changed("certificate", until=NOW + 29 * DAY), "warn", "ends on 2026-12-30", "--replace"),
        (
            "certificate of tls",
            changed("certificate", names=("gamma",)),
            "warn",
            "this host is alpha",
            "made for alpha",
        ),
        ("versions", changed("release", fleet=None), "skip", "not known", ""),
        ("versions", changed("release", fleet={}), "ok", "no other host", ""),
        ("versions", changed("release", fleet={"beta": ("0.0.9", WIRE - 1)}), "warn", f"beta {WIRE - 1}", "finish"),
        (
            "versions",
            changed("release", fleet={"beta": ("0.0.8", WIRE - 2)}),
            "fail",
            f"beta {WIRE - 2}",
            "upgrades.md",
        ),
        ("versions", changed("release", fleet={"beta": ("0.3", WIRE + 2)}), "fail", f"beta {WIRE + 2}", "upgrades.md"),
        ("workers", changed("release", running=()), "skip", "none runs here", "systemctl"),
        ("workers", changed("release", running=("source",)), "warn", "only the source", "systemctl"),
    ],
)
def test_each_check_says_what_was_seen_and_what_to_do(
    check: str, facts: Facts, state: str, seen: str, todo: str
) -> None:
    one = found(facts, check)
    assert one.state == state
    assert seen in one.seen
    assert todo in one.todo
    assert (one.state in (State.WARN, State.FAIL)) <= bool(one.todo), "who is warned is told what to do"


def test_what_is_wrong_in_one_place_is_said_in_one_place() -> None:
    others = [each for each in judge(changed("redis", log=False)) if each.check != "Redis' durability"]
    assert {each.state for each in others} == {State.OK}
