"""Every Redis key of Droveway, in one table: name, type, who writes it, when it goes.

All lie under one prefix (`droveway:` by default), which the Celery queues share. Nothing here is needed to keep a guest
safe: every key can be rebuilt from the hosts' journals and directories.

    host:H                  hash    capacity, address, lease per role     H's workers; goes with the host's last lease
    guest:G                 hash    host, epoch, bytes, active migration  guest start, admission, finish; with the guest
    guest:G:handover        hash    "EPOCH.FACT" → host (facts.py)        movers and reconcile; goes with the guest
    migration:M             hash    the record: request, state, claims,   admission, claim, movers' offers, finish;
                                    offers, leases, progress, outcomes    expires `history.retention` after its end
    migration:M:events      stream  wakes whoever waits on the record     as the record
    migrations              zset    M by creation time: list and history  as the records
    waiting                 zset    M not admitted yet, by creation time  admission
    slots:H:source|destination  set  the M that hold a slot               admission, finish
    reserved:H              hash    M → bytes held for incoming guests    admission, finish
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under `prefix` (which ends in a colon)."""

    prefix: str = "droveway:"

    def host(self, host: str) -> str:
        """What a host's workers say about it."""
        return f"{self.prefix}host:{host}"

    def guest(self, guest: str) -> str:
        """Where a guest is and under which epoch."""
        return f"{self.prefix}guest:{guest}"

    def handover(self, guest: str) -> str:
        """The handover facts of a guest, all epochs."""
        return f"{self.prefix}guest:{guest}:handover"

    def migration(self, migration: str) -> str:
        """The record of one migration."""
        return f"{self.prefix}migration:{migration}"

    def events(self, migration: str) -> str:
        """The stream that wakes those who wait on a record."""
        return f"{self.prefix}migration:{migration}:events"

    def migrations(self) -> str:
        """All records by creation time."""
        return f"{self.prefix}migrations"

    def waiting(self) -> str:
        """Records that wait for admission."""
        return f"{self.prefix}waiting"

    def slots(self, host: str, role: str) -> str:
        """The migrations that hold one of a host's slots for this role."""
        return f"{self.prefix}slots:{host}:{role}"

    def reserved(self, host: str) -> str:
        """Memory held on a host for guests that are on their way."""
        return f"{self.prefix}reserved:{host}"
