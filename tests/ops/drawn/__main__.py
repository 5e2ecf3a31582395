"""Every dashboard as a picture, of a fleet that really moved guests: `python -m tests.ops.drawn` (or `make drawn`).

Components of Grafana's front end draw them, wired to our files by hand. It is not Grafana itself.
"""

from __future__ import annotations

import json
import sys
import time

import pytest

from ops.grafana.dashboards.all import written
from tests.ops.drawn.answers import answered
from tests.ops.drawn.components import FOLDER
from tests.ops.drawn.drawing import Easel, easel
from tests.ops.watched_fleet import Watched, watched

WIDTHS, THEMES = (1600, 1000), ("dark", "light")


def main() -> int:
    """Draw them into `.drawn`; the exit code."""
    try:
        with easel() as drawing:
            print("three hosts move guests for a minute or two, and a Prometheus watches", flush=True)
            with watched() as seen:
                _pictures(drawing, seen)
    except (pytest.skip.Exception, pytest.fail.Exception) as lacking:
        print(f"{lacking}; nothing was drawn", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _pictures(drawing: Easel, seen: Watched) -> None:
    end = time.time()
    for name, text in written().items():
        board = answered(seen.prometheus, json.loads(text), seen.began, end)
        for width in WIDTHS:
            for theme in THEMES:
                complaints = drawing.draw(board, width, theme)
                path = FOLDER / f"{name.removesuffix('.json')}-{width}-{theme}.png"
                drawing.photograph(path)
                print(path.relative_to(FOLDER.parent), *complaints, sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
