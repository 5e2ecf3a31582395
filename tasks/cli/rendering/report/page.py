"""A report's content → one HTML file that needs nothing else: no network, no script, no font.

Every word in it may come from somebody else (names, reasons of peers), so the template escapes all of them, and the
page forbids itself to load or run anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.cli.quantities import instant, seconds

_TEMPLATES = Environment(
    loader=PackageLoader("tasks.cli.rendering.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"duration": seconds, "instant": instant}


def html(content: Mapping[str, Any]) -> str:
    """The page for what migration.page_of or job.page_of made."""
    return _TEMPLATES.get_template("page.html.j2").render(content, release=version("droveway"))
