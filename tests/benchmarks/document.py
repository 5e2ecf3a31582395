"""The form in which results are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def document(results: Mapping[str, Any]) -> str:
    """JSON with a measurement a line, so that the difference between two runs can be read."""
    parts = []
    for key, value in results.items():
        lines = [json.dumps(each) for each in value] if isinstance(value, list) else []
        parts.append(f'"{key}": ' + ("[\n  " + ",\n  ".join(lines) + "\n ]" if lines else json.dumps(value)))
    return "{\n " + ",\n ".join(parts) + "\n}\n"
