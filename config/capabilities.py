"""Capabilities and parameters of a migration: names, meanings, defaults, ranges. Pure.

Names, defaults and units are QEMU's where QEMU has them (qapi/migration.json, migration/options.c). Two tables say
everything: the members of `MigrationCapability` and the fields of `MigrationParameters`. A row more is a capability
more: parsing, checks, `droveway capabilities` and the docs are made from the rows. `read_options` is the one door for
what comes from outside, be it words of a command line or JSON of a message.

What QEMU knows and this program does not is refused when asked for, never quietly ignored: rows with `missing` will
come, names in `CAPABILITIES_ELSEWHERE` and `PARAMETERS_ELSEWHERE` will not, and their text says what to do instead.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

from config.errors import RequestError
from config.names import nearest
from config.units import BYTES, BYTES_PER_SECOND, COUNT, MILLISECONDS, SECONDS, Unit

LISTED = "`droveway capabilities` lists what there is"


# --- capabilities: on or off ------------------------------------------------------------------------------------------


class MigrationCapability(StrEnum):
    """One row a capability: name, default, QEMU version that brought it ("" for ours), meaning, what is missing yet."""

    default: bool
    since: str
    meaning: str
    missing: str

    def __new__(cls, name: str, default: bool, since: str, meaning: str, missing: str = "") -> Self:
        """A member that is its name and carries its row."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.default, member.since, member.meaning, member.missing = default, since, meaning, missing
        return member

    RDMA_PIN_ALL = (
        "rdma-pin-all",
        False,
        "2.0",
        "Lock and register all memory that holds data before the bulk round; else chunk by chunk, over tcp unlocked.",
    )
    ON_DEMAND_PAGING = (
        "on-demand-paging",
        False,
        "",
        "Let the RDMA devices fault memory in as they reach it, instead of locking it; both must be able to.",
    )
    XBZRLE = (
        "xbzrle",
        False,
        "1.2",
        "Send only what changed within a page that was sent before.",
        "pages are only sent whole so far",
    )
    AUTO_CONVERGE = (
        "auto-converge",
        False,
        "1.6",
        "Slow the guest's processors down while it writes faster than its memory can be moved.",
        "no guest can be slowed down so far; choose what to do by on-stall",
    )
    ZERO_PAGES = (
        "zero-pages",
        True,
        "",
        "Leave out pages of zeros: fresh memory has them already; neither sent, nor registered, nor stored.",
    )
    VERIFY_RAM = (
        "verify-ram",
        True,
        "",
        "Compare checksums of all memory on both hosts before the guest is given away.",
    )


#: The table, in the order in which it is shown.
CAPABILITIES: tuple[MigrationCapability, ...] = tuple(MigrationCapability)
CAPABILITY_ALIASES = {"x-rdma-pin-all": MigrationCapability.RDMA_PIN_ALL}  # its name in QEMU 1.6 and 1.7

#: QEMU's other capabilities. All are off in QEMU by default, so `off` is accepted; `on` gets this answer.
CAPABILITIES_ELSEWHERE: Mapping[str, str] = {
    "events": "every change of state is recorded always; leave it out",
    "return-path": "both sides talk to each other always; leave it out",
    "switchover-ack": "the source always waits for the destination's READY; leave it out",
    "late-block-activate": "the destination's device state is loaded before it owns the guest; leave it out",
    "multifd": "set the parameter channels instead",
    "pause-before-switchover": "the guest cannot be held before its handover; leave it out",
    "postcopy-ram": "all memory moves before the guest does; leave it out and choose on-stall=force if it must move",
    "postcopy-blocktime": "there is no postcopy; leave it out",
    "postcopy-preempt": "there is no postcopy; leave it out",
    "release-ram": "the source keeps its copy until the destination runs the guest; leave it out",
    "x-colo": "two running copies of a guest are what this program exists to prevent; leave it out",
    "dirty-bitmaps": "block dirty bitmaps are not moved; leave it out",
    "x-ignore-shared": "it is set where QEMU moves the device state, by the worker itself; leave it out",
    "validate-uuid": "the guest's name and epoch are checked always; leave it out",
    "background-snapshot": "it takes snapshots, which is another job; leave it out",
    "zero-copy-send": "memory is never copied to be sent; leave it out",
    "dirty-limit": "no guest can be slowed down so far; leave it out and choose what to do by on-stall",
    "mapped-ram": "it is for migration to a file, which is another job; leave it out",
}


@dataclass(frozen=True, slots=True)
class MigrationCapabilityStatus:
    """QEMU's QAPI struct: one capability and whether it is on."""

    capability: MigrationCapability
    state: bool

    def to_json(self) -> dict[str, Any]:
        """As `query-migrate-capabilities` answers."""
        return {"capability": self.capability.value, "state": self.state}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The full set of a migration; `MigrationCapability.XBZRLE in capabilities` asks whether one is on."""

    enabled: frozenset[MigrationCapability] = frozenset(row for row in MigrationCapability if row.default)

    def __contains__(self, capability: MigrationCapability) -> bool:
        return capability in self.enabled

    def __iter__(self) -> Iterator[MigrationCapabilityStatus]:
        """Every capability with its state, in the table's order."""
        return (MigrationCapabilityStatus(row, row in self.enabled) for row in CAPABILITIES)

    def to_json(self) -> dict[str, bool]:
        """The canonical form: every capability's name and state, in the table's order."""
        return {status.capability.value: status.state for status in self}


#: What this version can do: what a side offers when the two agree.
SUPPORTED: frozenset[MigrationCapability] = frozenset(row for row in CAPABILITIES if not row.missing)
#: What there is all the same where QEMU moves the memory (engine=qemu).
SUPPORTED_BY_QEMU = frozenset({MigrationCapability.XBZRLE, MigrationCapability.AUTO_CONVERGE})


# --- parameters: a quantity or a choice -------------------------------------------------------------------------------


class OnStall(StrEnum):
    """What to do with a guest that writes faster than its memory can be moved."""

    THROTTLE = "throttle"
    FORCE = "force"  # switch over anyway, however long that pauses the guest
    GIVE_UP = "give-up"  # fail the migration; the guest goes on at the source


class TransportChoice(StrEnum):
    """What carries the memory."""

    AUTO = "auto"
    VERBS = "verbs"
    TCP = "tcp"


class EngineChoice(StrEnum):
    """Who moves the memory."""

    AUTO = "auto"
    DROVEWAY = "droveway"  # the workers, from outside of the guest's process
    QEMU = "qemu"  # QEMU itself, told by the workers what to do


class DirtyTrackerChoice(StrEnum):
    """How the guest's writes are seen."""

    AUTO = "auto"
    PAGEMAP_SCAN = "pagemap-scan"
    USERFAULTFD = "userfaultfd"
    CONTENT = "content"


class ParameterKind(Protocol):
    """What values a parameter takes. `read` raises ValueError with a sentence fragment."""

    @property
    def unit(self) -> str:
        """What a bare number counts; empty when there is nothing to say."""
        ...

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        ...

    def read(self, value: object) -> int | StrEnum:
        """The value from JSON or from a word, checked."""
        ...

    def format(self, value: Any) -> str:
        """The value as one would write it on a command line."""
        ...


@dataclass(frozen=True, slots=True)
class Quantity:
    """A whole number of `measure` in [low, high], or 0 when `zero` says what 0 means."""

    measure: Unit
    low: int
    high: int
    zero: str = ""
    power_of_two: bool = False

    @property
    def unit(self) -> str:
        """What a bare number counts."""
        return self.measure.name

    @property
    def allowed(self) -> str:
        """The range, in words."""
        power = "a power of two from " if self.power_of_two else ""
        either = f"0 ({self.zero}) or " if self.zero else ""
        return f"{either}{power}{self.measure.format(self.low)} to {self.measure.format(self.high)}"

    def read(self, value: object) -> int:
        """A number of the unit, or a word such as `100ms`."""
        if isinstance(value, str):
            exact = self.measure.parse(value)
            if exact.denominator != 1:
                raise ValueError(f"it is not a whole number of {self.measure.name}")
            value = exact.numerator
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("it is not a whole number")
        if value == 0 and self.zero:
            return 0
        if not self.low <= value <= self.high or (self.power_of_two and value & (value - 1)):
            raise ValueError("it is not in the allowed range")
        return value

    def format(self, value: int) -> str:
        """The value with the largest unit that divides it."""
        return self.measure.format(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the words of `words`; those in `missing` are known, but cannot be chosen yet, for the reason given."""

    words: type[StrEnum]
    missing: Mapping[StrEnum, str] = dataclasses.field(default_factory=dict)
    unit = ""

    @property
    def allowed(self) -> str:
        """The words that can be chosen."""
        return ", ".join(word.value for word in self.words if word not in self.missing)

    def read(self, value: object) -> StrEnum:
        """The word itself."""
        for word in self.words:
            if value == word:
                return word
        raise ValueError("there is no such choice")

    def format(self, value: StrEnum) -> str:
        """The word itself."""
        return value.value


@dataclass(frozen=True, slots=True)
class Parameter:
    """A row of the parameters' table. `since` is the QEMU version that brought it, "" for ours."""

    name: str
    default: int | StrEnum
    kind: ParameterKind
    since: str
    meaning: str
    missing: str = ""
    alias: str = ""

    def read(self, value: object) -> int | StrEnum:
        """`value` checked. Raises RequestError."""
        try:
            return self.kind.read(value)
        except ValueError as error:
            shown = value if isinstance(value, str | int | float) else type(value).__name__
            raise RequestError(f"{self.name}={shown!s:.60}: {error}; allowed: {self.kind.allowed}.") from None

    def refusal(self, value: object) -> str:
        """Why this value, sound as it is, cannot be had yet; empty when it can."""
        if self.missing and value != self.default:
            return self.missing
        return self.kind.missing.get(value, "") if isinstance(self.kind, Choice) and isinstance(value, StrEnum) else ""


def _parameter(
    name: str, default: int | StrEnum, kind: ParameterKind, since: str, meaning: str, missing: str = "", alias: str = ""
) -> Any:
    row = Parameter(name, default, kind, since, meaning, missing, alias)
    return dataclasses.field(default=default, metadata={"row": row})


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationParameters:
    """The full set of a migration. A field's name ends in its unit, unless it counts bytes, bytes/s or things."""

    max_bandwidth: int = _parameter(
        "max-bandwidth",
        0,
        # The floor catches `max-bandwidth=100` written in the belief that it counts MiB/s, as QEMU's monitor does.
        Quantity(BYTES_PER_SECOND, 1 << 20, 1 << 40, zero="no limit"),
        "2.8",
        "Most memory to send in a second. No limit by default: QEMU's 128MiB/s would leave an RDMA link idle.",
    )
    downtime_limit_ms: int = _parameter(
        "downtime-limit",
        300,
        Quantity(MILLISECONDS, 1, 2_000_000),
        "2.8",
        "Longest pause of the guest that the hand-over may be planned with.",
    )
    max_rounds: int = _parameter(
        "max-rounds",
        30,
        Quantity(COUNT, 1, 10_000),
        "",
        "Dirty rounds after which a guest that did not converge counts as stalled.",
    )
    xbzrle_cache_size: int = _parameter(
        "xbzrle-cache-size",
        64 << 20,
        Quantity(BYTES, 4 << 10, 1 << 40, power_of_two=True),
        "2.11",
        "Memory in which the source keeps sent pages to compare them with.",
        missing="it only serves xbzrle, which is not built yet",
    )
    chunk_size: int = _parameter(
        "chunk-size",
        1 << 20,
        Quantity(BYTES, 64 << 10, 1 << 30, power_of_two=True),
        "11.1",
        "Memory that is registered and written as one piece.",
        alias="x-rdma-chunk-size",
    )
    channels: int = _parameter(
        "channels",
        4,
        # Measured by others over TCP at 100 Gb/s: 1, 2, 4 streams carry 45, 76, 89; 128 is cloud-hypervisor's bound.
        Quantity(COUNT, 1, 128),
        "4.0",
        "Connections that carry memory side by side. QEMU's default is 2.",
        alias="multifd-channels",
    )
    pin_budget: int = _parameter(
        "pin-budget",
        0,
        Quantity(BYTES, 64 << 20, 1 << 46, zero="as much as is sent"),
        "",
        "Most memory to keep registered on each host at a time; over RDMA that is locked, over tcp it is not.",
    )
    completion_timeout_per_gib_s: int = _parameter(
        "completion-timeout-per-gib",
        150,  # KubeVirt's; it came down from 800, as a long wait only delays the decision
        Quantity(SECONDS, 1, 86_400, zero="no limit"),
        "",
        "Time for each GiB of guest memory after which the migration counts as stalled.",
    )
    progress_timeout_s: int = _parameter(
        "progress-timeout",
        150,  # KubeVirt's
        Quantity(SECONDS, 1, 86_400, zero="no limit"),
        "",
        "Time without a new lowest amount of remaining memory after which the migration counts as stalled.",
    )
    on_stall: OnStall = _parameter(  # noqa: RUF009  # makes a field(), as its neighbours do
        "on-stall",
        OnStall.GIVE_UP,
        Choice(OnStall, {OnStall.THROTTLE: "no guest can be slowed down so far; choose force or give-up"}),
        "",
        "What to do when it stalls: hand over anyway (force) or leave the guest where it is (give-up).",
    )
    transport: TransportChoice = _parameter(  # noqa: RUF009  # makes a field(), as its neighbours do
        "transport",
        TransportChoice.AUTO,
        Choice(TransportChoice),
        "",
        "What carries the memory; auto takes the best that both hosts have.",
    )
    engine: EngineChoice = _parameter(  # noqa: RUF009  # makes a field(), as its neighbours do
        "engine",
        EngineChoice.AUTO,
        Choice(EngineChoice),
        "",
        "Who moves the memory; auto leaves to QEMU only the guests whose memory cannot be moved from outside.",
    )
    dirty_tracker: DirtyTrackerChoice = _parameter(  # noqa: RUF009  # makes a field(), as its neighbours do
        "dirty-tracker",
        DirtyTrackerChoice.AUTO,
        Choice(DirtyTrackerChoice),
        "",
        "How the guest's writes are seen; auto takes the best that passes its self-test on the source host.",
    )

    def __post_init__(self) -> None:
        for field, row in _FIELDS.items():
            row.read(getattr(self, field))

    def to_json(self) -> dict[str, int | str]:
        """The canonical form: every parameter, numbers in the table's unit, in the table's order."""
        values = {row.name: getattr(self, field) for field, row in _FIELDS.items()}
        return {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}


_FIELDS: Mapping[str, Parameter] = {
    field.name: field.metadata["row"] for field in dataclasses.fields(MigrationParameters)
}
#: The table, in the order in which it is shown.
PARAMETERS: tuple[Parameter, ...] = tuple(_FIELDS.values())

#: QEMU's other parameters, and what to do instead.
PARAMETERS_ELSEWHERE: Mapping[str, str] = {
    "avail-switchover-bandwidth": "the link is measured in every round; leave it out",
    "max-postcopy-bandwidth": "there is no postcopy; leave it out",
    "multifd-compression": "memory is sent as it is; leave it out",
    "zero-page-detection": "set the capability zero-pages instead",
    "tls-creds": "set tls.certificate, tls.key and tls.ca in the settings of each host instead",
    "tls-hostname": "certificates are compared with what pairing announced; leave it out",
    "tls-authz": "certificates are compared with what pairing announced; leave it out",
    **dict.fromkeys(
        (
            "throttle-trigger-threshold",
            "cpu-throttle-initial",
            "cpu-throttle-increment",
            "cpu-throttle-tailslow",
            "max-cpu-throttle",
            "vcpu-dirty-limit",
            "x-vcpu-dirty-limit-period",
        ),
        "no guest can be slowed down so far; leave it out and choose what to do by on-stall",
    ),
}


# --- what excludes what -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Two names that cannot both be in force: a capability that is on, a parameter that is not at its default."""

    one: str
    other: str
    why: str


# QEMU's longest list of exclusions (xbzrle, multifd, postcopy with RDMA) comes from its RDMA code being a path of its
# own; here every transport takes the same ranges, so that only contradictions are left.
EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion("rdma-pin-all", "pin-budget", "one registers all memory at once, the other limits how much"),
    Exclusion("on-demand-paging", "rdma-pin-all", "one locks no memory, the other all of it"),
    Exclusion("on-demand-paging", "pin-budget", "it locks no memory, so there is nothing to limit"),
)


# --- from outside -----------------------------------------------------------------------------------------------------


def read_options(capabilities: object = None, parameters: object = None) -> tuple[Capabilities, MigrationParameters]:
    """What a migration is asked to be done with; whatever is not named keeps its default.

    Shapes: capabilities are words (`["xbzrle=on"]`), a mapping of names to booleans, or QEMU's list of
    `{"capability": name, "state": boolean}`; parameters are words (`["downtime-limit=100ms"]`) or a mapping of names
    to numbers in the table's unit or to words. Raises RequestError for anything unknown, out of range, contradictory,
    or not built yet.
    """
    asked = _read_capabilities(_pairs("capabilities", capabilities))
    chosen = _read_parameters(_pairs("parameters", parameters))
    _refuse_exclusions(asked, chosen)
    _refuse_missing(asked, chosen)
    return asked, chosen


def _pairs(what: str, asked: object) -> list[tuple[str, object]]:
    """Name and value of whichever form was used."""
    if asked is None:
        return []
    if isinstance(asked, Mapping):
        items = list(asked.items())
    elif isinstance(asked, Sequence) and not isinstance(asked, str | bytes):
        items = [_pair(what, item) for item in asked]
    else:
        raise RequestError(f"The {what} are neither a list nor a mapping; {LISTED}.")
    for name, _ in items:
        if not isinstance(name, str):
            raise RequestError(f"The {what} have a name that is not a word; {LISTED}.")
    return items


def _pair(what: str, item: object) -> tuple[object, object]:
    if isinstance(item, str):
        name, equals, value = item.partition("=")
        if not equals:
            raise RequestError(f"{item!r:.60} lacks its value: write NAME=VALUE; {LISTED}.")
        return name.strip(), value.strip()
    if isinstance(item, Mapping) and set(item) == {"capability", "state"}:
        return item["capability"], item["state"]
    raise RequestError(f"The {what} hold something that is neither NAME=VALUE nor a capability with its state.")


def _read_capabilities(pairs: list[tuple[str, object]]) -> Capabilities:
    rows = {row.value: row for row in CAPABILITIES} | CAPABILITY_ALIASES
    states = {row: row.default for row in CAPABILITIES}
    seen: set[str] = set()
    for name, value in pairs:
        state = _state(name, value)
        row = rows.get(name)
        if row is None and name in CAPABILITIES_ELSEWHERE:
            if state:
                raise RequestError(
                    f"{name} is a capability of QEMU's, not of Droveway's: {CAPABILITIES_ELSEWHERE[name]}."
                )
            continue
        if row is None:
            raise _unknown("capability", name, [*rows, *CAPABILITIES_ELSEWHERE], {row.name for row in PARAMETERS})
        _once(row.value, seen)
        states[row] = state
    return Capabilities(frozenset(row for row, state in states.items() if state))


def _state(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return value == "on"
    raise RequestError(f"The capability {name!r:.60} is neither on nor off: write {name:.60}=on or {name:.60}=off.")


def _read_parameters(pairs: list[tuple[str, object]]) -> MigrationParameters:
    fields = {row.name: field for field, row in _FIELDS.items()}
    aliases = {row.alias: field for field, row in _FIELDS.items() if row.alias}
    known = fields | aliases
    values: dict[str, Any] = {}
    seen: set[str] = set()
    for name, value in pairs:
        if name in PARAMETERS_ELSEWHERE:
            raise RequestError(f"{name} is a parameter of QEMU's, not of Droveway's: {PARAMETERS_ELSEWHERE[name]}.")
        if name not in known:
            raise _unknown("parameter", name, known, {row.value for row in CAPABILITIES})
        field = known[name]
        _once(_FIELDS[field].name, seen)
        values[field] = _FIELDS[field].read(value)
    return MigrationParameters(**values)


def _unknown(what: str, name: str, known: Iterable[str], others: set[str]) -> RequestError:
    if name in others:
        other = "parameter" if what == "capability" else "capability"
        return RequestError(f"{name} is a {other}, not a {what}: give it with the other {other} settings.")
    return RequestError(f"There is no {what} {name!r:.60}{nearest(name, known)} ({LISTED}).")


def _once(name: str, seen: set[str]) -> None:
    if name in seen:
        raise RequestError(f"{name} is set more than once: keep one of them.")
    seen.add(name)


def _refuse_exclusions(capabilities: Capabilities, parameters: MigrationParameters) -> None:
    in_force = {status.capability.value for status in capabilities if status.state}
    in_force |= {row.name for field, row in _FIELDS.items() if getattr(parameters, field) != row.default}
    for rule in EXCLUSIONS:
        if {rule.one, rule.other} <= in_force:
            raise RequestError(f"{rule.one} and {rule.other} exclude each other: {rule.why}; leave one of them out.")


def _refuse_missing(capabilities: Capabilities, parameters: MigrationParameters) -> None:
    by_qemu = parameters.engine is EngineChoice.QEMU
    for status in capabilities:
        if status.state and status.capability.missing and not (by_qemu and status.capability in SUPPORTED_BY_QEMU):
            raise RequestError(
                f"{status.capability}=on is not possible yet: {status.capability.missing}{_unless(status.capability)}."
            )
    for field, row in _FIELDS.items():
        value = getattr(parameters, field)
        refusal = row.refusal(value)
        if refusal and not (by_qemu and row.name == "xbzrle-cache-size"):
            raise RequestError(f"{row.name}={row.kind.format(value)} is not possible yet: {refusal}.")


def _unless(capability: MigrationCapability) -> str:
    return ", unless by engine=qemu" if capability in SUPPORTED_BY_QEMU else ""
