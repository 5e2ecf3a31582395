"""What a host and its workers are set to: one frozen class per concern, read and checked once.

Three layers, the later wins key by key: a TOML file (`--config`, DROVEWAY_CONFIG, else /etc/droveway.toml when it is
there), the environment (`DROVEWAY_REDIS__URL` is `redis.url`; empty means not set), and what a command line overrides.
An unknown key is an error in each of them, because a setting that is quietly not set is found out at the worst time.
"""

import os
import socket
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    IPvAnyAddress,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from config.calendar import Calendar, check_cron, read_window, read_zone
from config.errors import HostError, RequestError, SettingsError
from config.names import NAME, check_labels, check_name, nearest, validator
from config.units import BYTES, BYTES_PER_SECOND, SECONDS, Unit

DEFAULT_FILE = Path("/etc/droveway.toml")
ENVIRONMENT_PREFIX = "DROVEWAY_"
#: Variables with our prefix that are no settings: where the file is; which fault the fault tests inject; that the
#: tests must not skip what a machine lacks.
NOT_SETTINGS = frozenset({"DROVEWAY_CONFIG", "DROVEWAY_FAULT", "DROVEWAY_REQUIRE_ALL"})


# --- what values may look like ----------------------------------------------------------------------------------------


def _read_whole(unit: Unit) -> BeforeValidator:
    """The whole number of a word such as `64G` or `25Gbit/s`; anything but a word is left to pydantic."""
    return BeforeValidator(lambda value: unit.whole(value) if isinstance(value, str) else value)


def _read_seconds(value: object) -> object:
    """Seconds of `500ms`; anything but a word is left to pydantic."""
    return float(SECONDS.parse(value)) if isinstance(value, str) else value


def _read_ports(value: object) -> object:
    """First and last port of `49152-49215`; anything but a word is left to pydantic."""
    if not isinstance(value, str):
        return value
    first, _, last = value.partition("-")
    if not (first.strip().isdecimal() and last.strip().isdecimal()):
        raise ValueError(f"{value!r} is not understood; write FIRST-LAST")
    return int(first), int(last)


def _check_absolute(path: Path) -> Path:
    """A relative path means another file in a child process with another working directory."""
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return path


def _read_words(value: object) -> object:
    """The words of `zone=eu-1,ssd=yes`; anything but a word is left to the check."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Rate = Annotated[int, _read_whole(BYTES_PER_SECOND), Field(ge=1 << 20)]
#: What is read first stands last: pydantic runs such validators from the right.
Labels = Annotated[tuple[str, ...], BeforeValidator(validator(check_labels)), BeforeValidator(_read_words)]
Bytes = Annotated[int, _read_whole(BYTES), Field(ge=0)]
#: From a millisecond to ten years, to the microsecond: such numbers are written as plain decimals, never as 1e-05.
Seconds = Annotated[
    float,
    BeforeValidator(_read_seconds),
    Field(ge=0.001, le=10 * 365 * 86_400),
    AfterValidator(lambda seconds: round(seconds, 6)),
]
Port = Annotated[int, Field(ge=0, le=65535)]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], Port], BeforeValidator(_read_ports)]
File = Annotated[FilePath, AfterValidator(_check_absolute)]
Directory = Annotated[Path, AfterValidator(_check_absolute)]


class _Concern(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: object) -> object:
        """No setting is a switch, and Python would take `true` for 1."""
        if isinstance(value, bool):
            raise ValueError("true and false mean nothing here")
        return value


# --- the concerns -----------------------------------------------------------------------------------------------------


class RedisSettings(_Concern):
    """Where Redis is, and how long to wait for it."""

    #: redis://[user:password@]host[:port][/db], rediss:// for TLS, or unix:///path/to/socket[?db=n].
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    #: Before every key, ours and Celery's, so that several fleets may share a server and one ACL pattern fits all.
    prefix: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,30}:$")] = "droveway:"
    #: Seconds for one answer. Blocking reads wait for up to 5 s, and must not end as an error when nothing comes.
    socket_timeout: Annotated[Seconds, Field(ge=6)] = 10
    connect_timeout: Seconds = 3
    #: For rediss:// only: who signed the server's certificate (default: the system's list), and this client's own.
    ca: File | None = None
    certificate: File | None = None
    key: File | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        """Refuse what redis-py and kombu would read differently. No message repeats the URL: it may hold a password."""
        try:
            parts = urlsplit(url.get_secret_value())
            host, _ = parts.hostname, parts.port  # reading the port checks it
        except ValueError:
            raise ValueError("it is not a URL; write special characters of a password as %XX") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme in ("redis", "rediss"):
            complete, database = bool(host), parts.path.removeprefix("/")
        elif parts.scheme == "unix":
            complete, database = not host and len(parts.path) > 1, options.pop("db", "")
        else:
            raise ValueError("it begins with none of redis://, rediss://, unix://")
        # kombu takes what follows a ';' for the URL of another server.
        strange = bool(parts.fragment) or ";" in url.get_secret_value()
        if strange or not complete or not (database.isdecimal() or not database):
            raise ValueError(
                "it is not understood; write redis://HOST:PORT/DB or unix:///PATH?db=DB, special characters as %XX"
            )
        if options:  # not named: what follows an unescaped '?' may be the rest of a password
            raise ValueError("it has options after '?'; set time-outs and certificates by keys of their own")
        return url

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both or none")
        if self.ca and not self.tls:
            raise ValueError("ca needs a url that begins with rediss://")
        return self

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url.get_secret_value()).scheme == "rediss"

    @property
    def shown_url(self) -> str:
        """The URL for people, without its password."""
        scheme, _, rest = self.url.get_secret_value().partition("://")
        credentials, at, place = rest.rpartition("@")
        user = credentials.partition(":")[0]
        return f"{scheme}://{user}:***@{place}" if at else f"{scheme}://{place}"


class HostSettings(_Concern):
    """This host: its name, where it is reached, and how much of it is offered to migrations."""

    name: str = Field(default_factory=lambda: socket.gethostname().lower())
    #: Where the data path and the metrics listen. Loopback by default: nothing opens to a network that was not named.
    address: IPvAnyAddress = IPv4Address("127.0.0.1")
    #: What peers are told to connect to, when it is not `address` (address translation, or listening on all).
    advertise: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")] | None = None
    #: Of the data path, both ends included: one port a migration. libvirt's range, which firewalls often let through.
    ports: Ports = (49152, 49215)
    #: The handover journal and the guests' sockets. Must survive a reboot: the journal says who owns a guest.
    state_dir: Directory = Path("/var/lib/droveway")
    #: The RAM files of guests: tmpfs or hugetlbfs.
    ram_dir: Directory = Path("/dev/shm/droveway")  # noqa: S108  # not a temporary file: guest RAM is shared memory
    #: What may be promised to guests; see `offered_memory` for the default.
    memory: Bytes | None = None
    #: Cores that guests may keep busy; default: all.
    cpus: Annotated[float, Field(ge=0.1, le=65536)] = Field(default_factory=lambda: float(os.cpu_count() or 1))
    #: Of the link that migrations take, in each direction: what a fleet's plans reckon with. It limits nothing by
    #: itself (the parameter max-bandwidth of a migration does).
    bandwidth: Rate = 1_250_000_000
    #: The shared link behind it, such as a rack's uplink: its name, the same on every host that is behind it, and rate.
    uplink: Annotated[str, Field(pattern=NAME.pattern)] | None = None
    uplink_bandwidth: Rate = 12_500_000_000
    #: What this host is, each "key=value": guests may need it.
    labels: Labels = ()
    #: Migrations at a time, each way. One: two streams share a link, so each needs twice the time to outrun its guest
    #: (KubeVirt's operator went from 2 to 1 for that); the ways are apart because links carry both at full rate.
    outbound_slots: Annotated[int, Field(ge=1, le=64)] = 1
    inbound_slots: Annotated[int, Field(ge=1, le=64)] = 1
    #: Migrations, each way, that may prepare while as many as there are slots send: pair, and start the twin. The next
    #: one can then send at once when the link falls idle; their memory is promised meanwhile.
    prepared_ahead: Annotated[int, Field(ge=0, le=64)] = 1
    #: Where /metrics listens, when it is not `address`.
    metrics_address: IPvAnyAddress | None = None
    #: One port a role, because each role is a process of its own; 0 switches the page off.
    metrics_source_port: Port = 9641
    metrics_destination_port: Port = 9642

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        try:
            return check_name("host", name)
        except RequestError as error:
            raise ValueError(str(error)) from None

    @field_validator("ports")
    @classmethod
    def _check_ports(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if ports[0] > ports[1]:
            raise ValueError(f"the first port, {ports[0]}, comes after the last, {ports[1]}")
        return ports

    @model_validator(mode="after")
    def _check_reachable(self) -> Self:
        if self.address.is_unspecified and not self.advertise:
            raise ValueError(f"nobody can connect to {self.address}: set advertise to the address that peers reach")
        return self

    @property
    def advertised(self) -> str:
        """What peers connect to."""
        return self.advertise or str(self.address)

    @property
    def metrics_listen(self) -> str:
        """Where /metrics listens."""
        return str(self.metrics_address or self.address)

    def offered_memory(self, total: int) -> int:
        """Bytes that guests may be promised on a host with `total` bytes of memory.

        A tenth, and at least 1 GiB, stays with the host unless `memory` says otherwise: page tables, QEMU's own
        overhead, and the page cache have no reservation of their own.
        """
        return self.memory if self.memory is not None else max(0, total - max(total // 10, 1 << 30))


class WorkerSettings(_Concern):
    """How the workers of this host work."""

    #: A claim that was not renewed for so long may be looked into by `reconcile`; renewed every third of it.
    lease: Annotated[Seconds, Field(ge=1)] = 30
    #: Between two looks at the record (has somebody cancelled?).
    poll_interval: Seconds = 1
    #: Between two looks for migrations whose message was lost or whose worker died.
    reconcile_interval: Annotated[Seconds, Field(ge=1)] = 30
    #: For the other side's worker to take its message, start its mover and offer; more for hosts under heavy load.
    pairing_timeout: Annotated[Seconds, Field(ge=5)] = 60
    #: `auto`: console on a terminal, JSON elsewhere.
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class TlsSettings(_Concern):
    """Certificates of the data path. All three encrypt it; none leaves it in the clear behind a one-time token."""

    certificate: File | None = None
    key: File | None = None
    ca: File | None = None

    @model_validator(mode="after")
    def _check_all_or_none(self) -> Self:
        files = (self.certificate, self.key, self.ca)
        if any(files) and not all(files):
            raise ValueError("certificate, key and ca go together: set all or none")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the data path is encrypted."""
        return self.certificate is not None


class RdmaSettings(_Concern):
    """Which RDMA port this host moves memory over. Left out: the first device with an active port, and that port."""

    #: As `rdma link` shows it: mlx5_0, rocep1s0f0, rxe0. At most 63 bytes (IBV_SYSFS_NAME_MAX).
    device: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")] | None = None
    port: Annotated[int, Field(ge=1, le=255)] | None = None
    #: Into the port's table of addresses. Left out: RoCE v2 over IPv4 before all others.
    gid_index: Annotated[int, Field(ge=0, le=255)] | None = None


class HistorySettings(_Concern):
    """What is remembered of migrations that ended."""

    retention: Seconds = 30 * 86_400


def _check_windows(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value) or len(value) > 50:
        raise RequestError('windows are a list of words, such as ["Sat,Sun 00:00-06:00", "22:00-05:00"]')
    for each in value:
        read_window(each)
    return tuple(value)


def _check_zone(value: object) -> str:
    if not isinstance(value, str):
        raise RequestError("a time zone is a word, such as Europe/Berlin")
    read_zone(value)
    return value


class RebalanceSettings(_Concern):
    """One policy by which guests are spread out: when it looks, when it may act, and how much."""

    #: Minute, hour, day of the month, month, weekday: when it looks whether guests should be moved.
    cron: Annotated[str, BeforeValidator(validator(check_cron))]
    #: When it may move them; none: always.
    windows: Annotated[tuple[str, ...], BeforeValidator(validator(_check_windows))] = ()
    #: Of both.
    timezone: Annotated[str, BeforeValidator(validator(_check_zone))] = "UTC"
    #: What follows is told at tasks.planning.rebalancing.Policy, which has the same defaults.
    threshold: Annotated[float, Field(gt=0, le=10)] = 0.10
    target: Annotated[float, Field(ge=0, le=10)] = 0.06
    hold: Annotated[int, Field(ge=1, le=10_000)] = 3
    least_gain: Annotated[float, Field(ge=0, le=10)] = 0.02
    most_moves: Annotated[int, Field(ge=1, le=10_000)] = 100
    cool_down: Seconds = 3600

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target >= self.threshold:
            raise ValueError(
                f"the target, {self.target:g}, is not below the threshold, {self.threshold:g}: the next small change"
                " would set it off again"
            )
        return self

    @property
    def calendar(self) -> Calendar:
        """When it is due and when it may act."""
        return Calendar(self.cron, tuple(read_window(each) for each in self.windows), read_zone(self.timezone))


class ExporterSettings(_Concern):
    """The fleet's metrics (`droveway exporter`)."""

    #: Where it listens. Loopback by default, as everything.
    address: IPvAnyAddress = IPv4Address("127.0.0.1")
    port: Annotated[int, Field(ge=1, le=65535)] = 9643
    #: Redis is read at most once in so long, however many scrape.
    interval: Seconds = 5


class Settings(_Concern):
    """Everything that is set."""

    redis: RedisSettings = Field(default_factory=RedisSettings)
    host: HostSettings = Field(default_factory=HostSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    tls: TlsSettings = Field(default_factory=TlsSettings)
    rdma: RdmaSettings = Field(default_factory=RdmaSettings)
    history: HistorySettings = Field(default_factory=HistorySettings)
    exporter: ExporterSettings = Field(default_factory=ExporterSettings)
    #: Policies by name, from the file alone: `droveway beat` tells the workers what they say.
    rebalance: Mapping[str, RebalanceSettings] = Field(default_factory=dict)

    def shown(self) -> dict[str, dict[str, Any]]:
        """Everything as JSON for people: the Redis password is left out."""
        shown: dict[str, dict[str, Any]] = self.model_dump(mode="json")
        shown["redis"]["url"] = self.redis.shown_url
        return shown

    def environment(self) -> dict[str, str]:
        """The variables that make a child process read these very settings. Holds the Redis password: never log it."""
        # An empty file: what stands in /etc/droveway.toml must not fill in what is unset here.
        variables = {"DROVEWAY_CONFIG": os.devnull}
        for concern in Settings.model_fields.keys() - {"rebalance"}:
            # Defaults are left out: another release may not know the key. Each concern by itself: as a whole, its
            # default would be made, and a machine without a name of its own has none.
            values = getattr(self, concern).model_dump(mode="json", exclude_defaults=True)
            for key, value in values.items():
                if value is not None:
                    variables[_variable(f"{concern}.{key}")] = _written(value)
        variables[_variable("redis.url")] = self.redis.url.get_secret_value()
        return variables


#: Every key there is, as `concern.key`; those of a policy are `rebalance.NAME.key`, and stand in the file only.
KEYS: frozenset[str] = frozenset(
    f"{concern}.{key}"
    for concern, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    for key in field.annotation.model_fields
)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """One value, the name under which it was given, and where."""

    value: object
    name: str
    origin: str


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """The settings of this process; `overrides` are by `concern.key`, and None means not given.

    Raises SettingsError for a file that cannot be read, an unknown key, or a value out of range.
    """
    variables = os.environ if environment is None else environment
    chosen = file or (Path(variables["DROVEWAY_CONFIG"]) if variables.get("DROVEWAY_CONFIG") else None)
    given = _from_file(chosen or DEFAULT_FILE, required=chosen is not None)
    given |= _from_environment(variables)
    given |= _from_overrides(overrides or {})
    return _build(given)


def memory_total() -> int:
    """MemTotal of this host, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise HostError("/proc/meminfo has no MemTotal: set host.memory to what may be offered to guests.")


def _from_file(path: Path, *, required: bool) -> dict[str, _Given]:
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if required:
            raise SettingsError(f"There is no settings file {path}: create it, or name another by --config.") from None
        return {}
    except OSError as error:
        raise SettingsError(
            f"The settings file {path} cannot be read ({error.strerror}): check its permissions."
        ) from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from None
    origin = f"the file {path}"
    given: dict[str, _Given] = {}
    for concern, table in tables.items():
        if concern not in Settings.model_fields:
            raise _unknown(concern, origin, nearest(concern, [*Settings.model_fields, *KEYS]))
        if not isinstance(table, dict):
            raise SettingsError(
                f"Setting {concern}, from {origin}: it is a table; write [{concern}] and its keys below."
            )
        given |= _policies(table, origin) if concern == "rebalance" else _keys(concern, table, KEYS, origin)
    return given


def _policies(tables: Mapping[str, object], origin: str) -> dict[str, _Given]:
    """A table for each policy."""
    given: dict[str, _Given] = {}
    for policy, table in tables.items():
        name = f"rebalance.{policy}"
        if not isinstance(table, dict):
            raise SettingsError(
                f"Setting {name}, from {origin}: policies have names; write [rebalance.NAME] and the keys below."
            )
        try:
            check_name("policy", policy)
        except RequestError as error:
            raise SettingsError(f"Setting {name}, from {origin}: {error}") from None
        known = {f"{name}.{key}" for key in RebalanceSettings.model_fields}
        given |= _keys(name, table, known, origin) or {name: _Given({}, name, origin)}
    return given


def _keys(table_name: str, table: Mapping[str, object], known: Set[str], origin: str) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for key, value in table.items():
        name = f"{table_name}.{key}"
        if name not in known:
            raise _unknown(name, origin, nearest(name, known))
        given[name] = _Given(value, name, origin)
    return given


def _from_environment(variables: Mapping[str, str]) -> dict[str, _Given]:
    keys = {_variable(key): key for key in KEYS}
    given: dict[str, _Given] = {}
    for variable, value in variables.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_SETTINGS:
            continue
        if variable not in keys:
            raise _unknown(variable, "the environment", nearest(variable, [*keys, *NOT_SETTINGS]))
        if value:
            given[keys[variable]] = _Given(value, variable, "the environment")
    return given


def _from_overrides(overrides: Mapping[str, object]) -> dict[str, _Given]:
    for name in overrides:
        if name not in KEYS:
            raise _unknown(name, "the command line", nearest(name, KEYS))
    return {name: _Given(value, name, "the command line") for name, value in overrides.items() if value is not None}


def _build(given: Mapping[str, _Given]) -> Settings:
    tables: dict[str, Any] = {concern: {} for concern in Settings.model_fields}
    for name, one in given.items():
        table, _, key = name.rpartition(".")
        concern, _, policy = table.partition(".")
        (tables[concern].setdefault(policy, {}) if policy else tables[concern])[key] = one.value
    try:
        return Settings.model_validate(tables)
    except ValidationError as error:
        raise _invalid(error, given) from None


def _invalid(error: ValidationError, given: Mapping[str, _Given]) -> SettingsError:
    """The first complaint, with the name and place of what caused it. Values are left out: one is a password."""
    first = error.errors(include_input=False, include_url=False)[0]
    depth = 3 if first["loc"][0] == "rebalance" else 2
    name = ".".join(str(part) for part in first["loc"][:depth])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    one = given.get(name)
    where = f"{one.name}, from {one.origin}" if one else f"{name}, which is not set in any file or variable"
    origins = sorted({one.origin for key, one in given.items() if key.startswith(f"{name}.")})
    if origins or "." not in name:  # a complaint about a table as a whole
        where = f"[{name}], from {' and '.join(origins) or 'the defaults'}"
    return SettingsError(f"Setting {where}: {message}.")


def _written(value: object) -> str:
    """A value of the settings' JSON as a variable holds it."""
    if not isinstance(value, list):
        return str(value)
    return ",".join(value) if value and isinstance(value[0], str) else "-".join(str(port) for port in value)


def _variable(key: str) -> str:
    """The environment variable of `concern.key`."""
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()


def _unknown(name: str, origin: str, hint: str) -> SettingsError:
    return SettingsError(
        f"There is no setting {name!r}, found in {origin}{hint or '.'} Remove it, or correct its name."
    )
