"""A cluster as one JSON document, for programs: what `droveway inventory --json` prints, read back strictly. Pure.

    {"version": 1, "taken": 1700000000.0, "uplinks": {"rack1": 5000000000},
     "hosts": [{"name": "alpha", "memory": 68719476736, "labels": ["zone=1"], …}],
     "guests": [{"name": "web", "host": "alpha", "memory": 8589934592, …}]}

Fields, units and defaults are those of tasks/planning/cluster.py; what is not said has its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields
from types import GenericAlias
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model
from pydantic import Field as Checked

from config.errors import RequestError
from config.names import check_name, nearest
from tasks.inventory.file import joined
from tasks.planning.cluster import Cluster, Guest, Host

VERSION = 1
#: What a column of the planner holds; above, nothing is a size of anything.
_MOST = 1 << 60

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _amount(hint: Any) -> Any:
    """No figure of a cluster is below 0."""
    if hint in (int, float):
        return Annotated[hint, Checked(ge=0, le=_MOST)]
    if float in get_args(hint):
        return Annotated[float, Checked(ge=0, le=_MOST)] | None
    return hint


def _default(field: Field[Any]) -> Any:
    return ... if field.default is MISSING else field.default


def _shape(of: type[Host | Guest]) -> Any:
    """The dataclass's own fields, so that there is one list of them."""
    hints = get_type_hints(of)
    made: dict[str, Any] = {each.name: (_amount(hints[each.name]), _default(each)) for each in fields(of)}
    return create_model(of.__name__, __config__=_STRICT, **made)


_HOST, _GUEST = _shape(Host), _shape(Guest)
_FIELDS: dict[str, Any] = {
    "version": (Literal[1], ...),
    "taken": (_amount(float), 0.0),
    "uplinks": (GenericAlias(dict, (str, _amount(int))), {}),
    "hosts": (GenericAlias(list, (_HOST,)), ...),
    "guests": (GenericAlias(list, (_GUEST,)), ...),
}
_DOCUMENT: Any = create_model("Document", __config__=_STRICT, **_FIELDS)


def write(cluster: Cluster) -> str:
    """The document of which `read` makes the same cluster."""
    return json.dumps(
        {
            "version": VERSION,
            "taken": cluster.taken,
            "uplinks": dict(cluster.uplinks),
            "hosts": [_plain(asdict(host)) for _, host in sorted(cluster.hosts.items())],
            "guests": [_plain(asdict(guest)) for _, guest in sorted(cluster.guests.items())],
        }
    )


def read(text: str, name: str = "the cluster") -> Cluster:
    """The cluster that `text` describes. Raises RequestError naming `name`, the place, and what was expected there."""
    try:
        _check_version(text)
        found = _DOCUMENT.model_validate_json(text)
        hosts = [Host(**dict(each)) for each in found.hosts]
        guests = [Guest(**dict(each)) for each in found.guests]
        for kind, things in (("host", hosts), ("guest", guests)):
            for each in things:
                check_name(kind, each.name)
        return joined(hosts, guests, found.uplinks, found.taken)
    except ValidationError as error:
        raise RequestError(f"{name}: {_complaint(error)}.") from None
    except (ValueError, RecursionError, RequestError) as error:
        raise RequestError(f"{name}: {str(error).rstrip('.')}.") from None


def _check_version(text: str) -> None:
    said = json.loads(text)
    version = said.get("version") if isinstance(said, Mapping) else None
    if version is not None and version != VERSION:
        raise ValueError(
            f"it is of version {version!r:.20}, this release reads {VERSION}; use the release that wrote it"
        )


def _complaint(error: ValidationError) -> str:
    """The first complaint and where it is, without the value: it may be anything."""
    first = error.errors(include_url=False, include_input=False)[0]
    *place, last = first["loc"] or ("it",)
    where = ".".join(str(part) for part in first["loc"]) or "it"
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        return f"{where:.80}: {said:.200}"
    known = {"hosts": _HOST, "guests": _GUEST}.get(str(place[0]), _DOCUMENT) if place else _DOCUMENT
    names = known.model_fields
    return f"{where:.80} is not understood{nearest(str(last), names).rstrip('?')}; it may have {', '.join(names)}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
