"""Tables: of migrations, hosts, guests, what can be set, and one move in full. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from config.capabilities import CAPABILITIES, PARAMETERS
from config.settings import RebalanceSettings
from tasks.cli.quantities import NOTHING, bit_rate, byte_rate, instant, seconds, size
from tasks.cli.rendering.facts import Facts
from tasks.cli.rendering.lines import state_words
from tasks.cli.rendering.live import STYLES
from tasks.cli.rendering.timeline import MOMENTS, Phase, phases, rows
from tasks.records import Fleet, GuestRecord, HostRecord, Kept, Obstacle, Pin, PolicyRecord
from workers.guests.local import LocalGuest
from workers.metrics.document import shown_name
from workers.metrics.names import Metric
from workers.pairing.contract import Side

_LABELS = {
    "pairing": "setup",
    "links": "waited for the links",
    "survey": "survey",
    "registration": "waited for registration",
    "bulk": "bulk round",
    "rounds": "dirty rounds",
    "downtime": "downtime",
    "deregistration": "deregistration",
    "total": "total",
}


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in our style; a column that begins with '>' is one of numbers."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in rows:
        grid.add_row(name, Text(value))
    return grid


# --- migrations -------------------------------------------------------------------------------------------------------


def migrations(moves: Sequence[Facts]) -> RenderableType:
    """One line each."""
    made = table("MIGRATION", "GUEST", "FROM", "TO", "STATE", ">ROUNDS", ">SENT", ">DOWNTIME", ">TOTAL", "BEGUN")
    for facts in moves:
        record = facts.record
        made.add_row(
            record.migration,
            record.guest,
            record.source.host,
            record.destination.host,
            Text(state_words(facts), style=STYLES.get(record.state, "cyan")),
            str(len(facts.finished)),
            size(facts.transferred) if facts.finished else NOTHING,
            seconds(facts.seconds.get("downtime")),
            seconds(facts.seconds.get("total")),
            _moment(record.created),
        )
    return made


def summary(facts: Facts) -> RenderableType:
    """What a finished move took, and how it was done."""
    rows = [("waited for admission", seconds(facts.queue_wait))]
    rows += [(label, seconds(facts.seconds[name])) for name, label in _LABELS.items() if name in facts.seconds]
    if facts.finished:
        rows.append(("sent", f"{size(facts.transferred)} in {len(facts.finished)} rounds, {bit_rate(facts.rate)}"))
    rows += _choices(facts)
    head = Text.assemble((facts.way, "bold"), "  ", (state_words(facts), STYLES.get(facts.record.state, "cyan")))
    return Group(head, _pairs(rows))


def _choices(facts: Facts) -> list[tuple[str, str]]:
    chosen = facts.choices
    rows = []
    if "engine" in chosen:
        rows.append(("engine", f"{chosen['engine']}: {chosen.get('engine-reason', '')}"))
    if "transport" in chosen:
        sizes = f"{chosen.get('channels')} channels"
        if chosen.get("engine") != "qemu":  # which has chunks of its own
            sizes += f", chunks of {size(chosen.get('chunk-size'))}"
        rows.append(("transport", f"{chosen['transport']}, {sizes}"))
    if "policy" in chosen:
        rows.append(("registration", f"{chosen['policy']}: {chosen.get('policy-reason', '')}"))
    if "recommended" in chosen:
        rows.append(("recommended", str(chosen["recommended"])))
    if "tracker" in chosen:
        rows.append(("dirty tracker", f"{chosen['tracker']}: {chosen.get('tracker-reason', '')}"))
    if "drain" in chosen:
        pauses = ", which pauses the guest in each round" if chosen["drain"] == "stop" else ""
        rows.append(("block I/O", f"drained by {chosen['drain']}{pauses}"))
    return rows + [("instead", note) for note in facts.notes]


def full(facts: Facts) -> RenderableType:
    """Everything about one migration."""
    record = facts.record
    asked = [name for name, on in record.capabilities.items() if on]
    parts: list[RenderableType] = [
        summary(facts),
        _pairs(
            [
                ("migration", f"{record.migration}, epoch {NOTHING if record.epoch is None else record.epoch}"),
                *([("asked for by", record.job)] if record.job else []),
                ("memory", size(record.memory)),
                ("submitted", _moment(record.created)),
                ("admitted", _moment(record.admitted)),
                ("given of the links", NOTHING if record.rate is None else f"{byte_rate(record.rate)}"),
                ("ended", _moment(record.finished)),
                ("capabilities", ", ".join(asked) or "none"),
                ("parameters", _parameters(facts)),
            ]
        ),
    ]
    found = phases(record)
    if facts.finished:
        parts += [Text(), _rounds(facts, found)]
    if any(each.began is not None for each in found):
        parts += [Text(), _timeline(found)]
    return Group(*parts, Text(), _sides(facts))


def _parameters(facts: Facts) -> str:
    """Those that are not at their defaults."""
    return ", ".join(f"{name}={value}" for name, value in facts.parameters) or "all at their defaults"


def _rounds(facts: Facts, found: Sequence[Phase]) -> RenderableType:
    began = {each.round: each.began for each in found if each.round is not None}
    made = table("ROUND", ">AFTER", ">MEMORY", ">SENT", ">TIME", ">RATE", ">DIRTY SINCE", "VERDICT")
    for each in facts.finished:
        made.add_row(
            f"{each.index} {each.kind}",
            instant(began.get(each.index)),
            size(each.total),
            size(each.sent),
            seconds(each.seconds),
            bit_rate(each.rate),
            size(each.dirty),
            Text(f"{each.verdict}: {each.reason}" if each.verdict else ""),
        )
    return made


def _timeline(found: Sequence[Phase]) -> RenderableType:
    """Since the migration was asked for, both sides on one axis."""
    made = table("SIDE", "PHASE", ">AFTER", ">TOOK")
    for each in rows(found):
        took = NOTHING if each[0].name in MOMENTS else seconds(sum(one.seconds for one in each))
        made.add_row(str(each[0].side), each[0].words, instant(each[0].began), took)
    return made


def _sides(facts: Facts) -> RenderableType:
    made = table("SIDE", "HOST", "OUTCOME", "PHASE", ">TRANSFERRED", ">REGISTERED", ">TIME", "REASON")
    for name, side in facts.sides():
        said = side.progress or {}
        sizes = said.get("bytes", {})
        made.add_row(
            name,
            side.host,
            side.outcome or said.get("outcome") or ("at work" if side.at_work else "not begun"),
            said.get("phase") or NOTHING,
            size(sizes.get("transferred")),
            size(sizes.get("registered")),
            seconds(said.get("seconds", {}).get("total")),
            Text(said.get("message") or ""),
        )
    return made


# --- the fleet --------------------------------------------------------------------------------------------------------


def metrics(shown: Mapping[str, Iterable[Metric]]) -> RenderableType:
    """One line each, by who shows them."""
    made = table("METRIC", "KIND", "LABELS", "WHAT IT SAYS")
    for where, those in shown.items():
        made.add_section()
        made.add_row(Text(where, style="bold"), "", "", "")
        for metric in those:
            made.add_row(
                shown_name(metric), str(metric.kind), ", ".join(name for name, _ in metric.labels), metric.meaning
            )
    return made


def hosts(fleet: Fleet) -> RenderableType:
    """One line each."""
    made = table("HOST", "ADDRESS", "WORKERS", ">FREE", ">MEMORY", ">LEAVING", ">COMING", "GUESTS", "RELEASE")
    for record in fleet.hosts.values():
        slots = [_streams(record, side) for side in (Side.SOURCE, Side.DESTINATION)]
        made.add_row(
            record.host,
            record.address,
            ", ".join(sorted(record.alive)) or Text("none alive", style="bold red"),
            size(record.free),
            size(record.memory),
            *slots,
            _open_to_guests(record.host, fleet),
            record.version,
        )
    return made


def _streams(record: HostRecord, side: Side) -> str:
    """Those that send of those that may; and how many more are admitted, to prepare or to let go of memory."""
    sending, more = record.busy[side], record.admitted[side] - record.busy[side]
    return f"{sending}/{record.slots[side]}" + (f" +{more}" if more > 0 else "")


def _open_to_guests(host: str, fleet: Fleet) -> Text:
    for kept, words in ((Kept.HOST, "pinned"), (Kept.CORDON, "cordoned")):
        if pin := fleet.pins.get((kept, host)):
            return Text(f"{words}: {pin.reason}", style="yellow")
    return Text("leave and come")


def pins(found: Sequence[Pin]) -> RenderableType:
    """What operators keep where it is, one line each."""
    made = table("KEPT", "NAME", "SINCE", "UNTIL", "REASON")
    for each in found:
        kept = "takes no guests" if each.kept is Kept.CORDON else str(each.kept)
        made.add_row(kept, each.name, _moment(each.since), _moment(each.expires), Text(each.reason))
    return made


def policies(found: Mapping[str, RebalanceSettings], records: Mapping[str, PolicyRecord], now: float) -> RenderableType:
    """Those that spread guests out, one line each; times in this machine's time zone, as everywhere."""
    made = table("POLICY", "CRON", "NEXT DUE", "NOW", ">IMBALANCE", ">TICKS ABOVE", "JUDGED", "WHAT CAME OF IT")
    for name, terms in found.items():
        record, calendar = records[name], terms.calendar
        made.add_row(
            name,
            f"{terms.cron} {terms.timezone}",
            _moment(calendar.next(now)),
            "may act" if calendar.open(now) else Text("window closed", style="yellow"),
            f"{record.imbalance:.3f}" if record.judged else NOTHING,
            f"{record.over}/{terms.hold}",
            _moment(record.judged or None),
            Text(record.reason or "it was not looked at yet"),
        )
    return made


def guests(local: Sequence[LocalGuest], known: dict[str, GuestRecord]) -> RenderableType:
    """The guests of this host: what its disk says, and what the record adds."""
    made = table("GUEST", "KIND", "STATUS", ">MEMORY", ">PID", "MIGRATION")
    for guest in local:
        made.add_row(
            guest.name,
            guest.kind,
            Text(guest.problem, style="bold red") if guest.status is None else str(guest.status),
            size(guest.memory),
            NOTHING if guest.pid is None else str(guest.pid),
            (known[guest.name].active if guest.name in known else None) or NOTHING,
        )
    return made


def obstacles(found: Sequence[Obstacle]) -> RenderableType:
    """What stands in a guest's way, who sees it, and what to do."""
    made = table("SEEN BY", "REASON", "WHAT", "WHAT TO DO")
    made.columns[1].no_wrap = True
    for each in found:
        who = f"{each.host} ({each.side})" if each.host else "the fleet's record"
        made.add_row(who, Text(each.blocker.reason, style="red"), Text(each.blocker.what), Text(each.blocker.remedy))
    return made


# --- what can be set --------------------------------------------------------------------------------------------------


def capabilities() -> RenderableType:
    """The tables of config/capabilities.py."""
    switches = table("CAPABILITY", "DEFAULT", "QEMU", "MEANING")
    for row in CAPABILITIES:
        switches.add_row(
            row.value, "on" if row.default else "off", row.since or NOTHING, _meaning(row.meaning, row.missing)
        )
    quantities = table("PARAMETER", "DEFAULT", "ALLOWED", "QEMU", "MEANING")
    for parameter in PARAMETERS:
        quantities.add_row(
            parameter.name,
            parameter.kind.format(parameter.default),
            parameter.kind.allowed,
            parameter.since or NOTHING,
            _meaning(parameter.meaning, parameter.missing),
        )
    switches.columns[0].min_width = max(len(row.value) for row in CAPABILITIES)  # a name cut short cannot be copied
    quantities.columns[0].min_width = max(len(row.name) for row in PARAMETERS)
    return Group(switches, quantities)


def _meaning(meaning: str, missing: str) -> Text:
    return Text.assemble(meaning, (f" Not yet: {missing}.", "yellow") if missing else "")


def oracle(name: str, said: dict[str, object]) -> RenderableType:
    """What a guest's own checks say."""
    corrupt = int(str(said["corrupt"]))
    rows = [
        ("pages checked", f"{said['pages_checked']}"),
        ("corrupt pages", str(corrupt)),
        ("longest gap", seconds(_number(said["longest_gap_seconds"]))),
        ("gap of the last move", seconds(_number(said["move_gap_seconds"]))),
        ("writes", byte_rate(_number(said["dirty_rate_actual"]))),
    ]
    full_check = said.get("full_check")
    if isinstance(full_check, dict):
        rows.append(("full check", f"{full_check['pages_checked']} pages, {full_check['corrupt']} corrupt"))
    verdict = Text.assemble((name, "bold"), "  ", ("CORRUPT", "bold red") if corrupt else ("sound", "bold green"))
    return Group(verdict, _pairs(rows))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _moment(value: float | None) -> str:
    """Seconds since 1970 in this machine's time zone."""
    return NOTHING if value is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
