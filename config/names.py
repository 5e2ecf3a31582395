"""What hosts and guests may be called. Pure."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from config.errors import RequestError

_T = TypeVar("_T")

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


def validator(check: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """`check` as pydantic takes it: what is refused is a ValueError, and the sentence goes on behind it."""

    def checked(value: Any) -> _T:
        try:
            return check(value)
        except RequestError as error:
            raise ValueError(str(error).rstrip(".")) from None

    return checked


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence's tail that suggests the known name nearest to `name`, or an empty string when none is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


#: Such as zone=eu-1: what a host is, and what a guest may need of it.
LABEL = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}=[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
#: Labels of one host, or words of one kind beside one guest.
MOST_WORDS = 32


def check_labels(value: object) -> tuple[str, ...]:
    """`value` when it is a list of labels, each "key=value", sorted. Raises RequestError."""
    return _checked(value, LABEL, "a label: write it like zone=eu-1")


def check_groups(value: object) -> tuple[str, ...]:
    """`value` when it is a list of names of groups, sorted. Raises RequestError."""
    return _checked(value, NAME, "a group: use 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit")


def _checked(value: object, form: re.Pattern[str], wanted: str) -> tuple[str, ...]:
    words = sorted(set(value)) if isinstance(value, list | tuple) and all(isinstance(w, str) for w in value) else None
    if words is None or len(words) > MOST_WORDS:
        raise RequestError(f"{value!r:.80} is no list of at most {MOST_WORDS} words.")
    for word in words:
        if not form.fullmatch(word):
            raise RequestError(f"{word!r:.80} cannot be {wanted}.")
    return tuple(words)
