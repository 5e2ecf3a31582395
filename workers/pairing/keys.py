"""Every Redis key of Droveway, in one table: name, type, who writes it, when it goes.

All lie under one prefix (`droveway:` by default), which the Celery queues share. Nothing here is needed to keep a guest
safe: every key can be rebuilt from the hosts' journals and directories, but for what operators said (blockers).

    hosts                   set     every H that was heard of             H's workers; pruned by reconcile
    host:H                  hash    capacity, address, lease per role     H's workers; goes with the host's last lease
    residents:H             hash    G → bytes of the guests on H          H's workers, finish; with the guests
    guests                  set     every G                               as guest:G
    guest:G                 hash    host, epoch, bytes, active migration  H's workers, admission, finish; with the guest
    guest:G:gone            string  the host where it was just stopped    gone; after a lease
    guest:G:handover        hash    "EPOCH.FACT.M" → host                 movers and reconcile; goes with the guest
    migration:M             hash    the record: request, state, claims,   admission, claim, movers' offers, finish;
                                    offers, leases, progress, outcomes    expires `history.retention` after its end
    migration:M:events      stream  wakes whoever waits on the record     as the record
    migrations              zset    M by creation time: list and history  as the records
    open                    set     M not ended, or still holding a slot  submit … last finish; what reconcile looks at
    waiting                 zset    M not admitted yet, by creation time  admission
    slots:H:source|destination  set  the M that hold a slot               admission, finish
    streams:H:source|destination set the M of these that may send         admission, finish
    link:L:up|down          hash    M → bytes/s of the shared link L      admission, finish
    prepared                zset    M admitted that may not send yet      admission, finish
    measured                hash    H → bytes/s that a stream reached     finish; with the host
    overheads               hash    H → ms beside what its moves sent     finish; with the host
    served                  hash    H → its mark, by which sources share  admission
    looked                  string  somebody has just tried to admit      heartbeats; after a second
    check:C                 hash    side → what it sees in a guest's way  workers; 10 minutes after the last answer
    looked:over             string  somebody has just looked it all over  workers; after an interval
    reserved:H              hash    M → bytes held for incoming guests    admission, finish
    blockers                hash    "guest:G", "host:H", "cordon:H" →     operators, evacuations; each until its expiry,
                                    {reason, since, expires} (ms)         or until it is taken back
    jobs                    zset    J by creation time                    as the jobs
    jobs:open               set     J not ended                           begin … the step that ends it
    job:J                   hash    what was asked, and what it came to   `history.retention` after its end
    job:J:guests            hash    G → how it stands                     steps; as the job
    job:J:moves             hash    M that it asked for → G               submit; as the job
    job:J:turn              string  somebody has just taken a step of it  whoever takes steps; after seconds
    policy:P                hash    what was judged of a policy last      ticks; never (one small hash a policy)
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under `prefix` (which ends in a colon)."""

    prefix: str = "droveway:"

    def host(self, host: str) -> str:
        """What a host's workers say about it."""
        return f"{self.prefix}host:{host}"

    def hosts(self) -> str:
        """Every host that was heard of."""
        return f"{self.prefix}hosts"

    def residents(self, host: str) -> str:
        """The memory of each guest on a host."""
        return f"{self.prefix}residents:{host}"

    def guests(self) -> str:
        """Every guest."""
        return f"{self.prefix}guests"

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

    def open(self) -> str:
        """Records that have not ended, or still hold a slot."""
        return f"{self.prefix}open"

    def waiting(self) -> str:
        """Records that wait for admission."""
        return f"{self.prefix}waiting"

    def slots(self, host: str, role: str) -> str:
        """The migrations that hold one of a host's slots for this role."""
        return f"{self.prefix}slots:{host}:{role}"

    def streams(self, host: str, role: str) -> str:
        """The migrations that may send over a host's link, by its role."""
        return f"{self.prefix}streams:{host}:{role}"

    def measured(self) -> str:
        """What streams of each host reached lately."""
        return f"{self.prefix}measured"

    def overheads(self) -> str:
        """How long moves of each host took lately beside what they sent."""
        return f"{self.prefix}overheads"

    def prepared(self) -> str:
        """Records that are admitted and may not send yet."""
        return f"{self.prefix}prepared"

    def check(self, check: str) -> str:
        """The answers of both sides to one dry run."""
        return f"{self.prefix}check:{check}"

    def reserved(self, host: str) -> str:
        """Memory held on a host for guests that are on their way."""
        return f"{self.prefix}reserved:{host}"

    def blockers(self) -> str:
        """What operators keep where it is."""
        return f"{self.prefix}blockers"

    def jobs(self) -> str:
        """All jobs by creation time."""
        return f"{self.prefix}jobs"

    def open_jobs(self) -> str:
        """Jobs that have not ended."""
        return f"{self.prefix}jobs:open"

    def job(self, job: str) -> str:
        """What a job was asked, and what it came to."""
        return f"{self.prefix}job:{job}"

    def job_guests(self, job: str) -> str:
        """How each guest of a job stands."""
        return f"{self.prefix}job:{job}:guests"

    def job_moves(self, job: str) -> str:
        """Every migration that a job asked for."""
        return f"{self.prefix}job:{job}:moves"

    def policy(self, policy: str) -> str:
        """What was judged of a policy by which guests are spread out."""
        return f"{self.prefix}policy:{policy}"
