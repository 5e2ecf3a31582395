"""What hosts and guests may be called. Pure."""

import difflib
import re
from collections.abc import Iterable

from config.errors import RequestError

#: Names become parts of queue names, Redis keys, file names and socket paths: nothing here needs quoting in any of
#: them, `..` can only be part of a longer name, and 63 is what DNS allows a label.
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


def check_name(kind: str, value: object) -> str:
    """`value` when it may name a `kind` ("host", "guest"). Raises RequestError."""
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}…"
    raise RequestError(
        f"{shown} cannot name a {kind}: use 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit."
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence's tail that suggests the known name nearest to `name`, or an empty string when none is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
