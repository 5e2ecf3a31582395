"""A mover that moves nothing: it says what a real one says, when the test lets it. `python scripted_mover.py DIR`.

Beside the movers' directory lie the test's wishes: `go` lets it end, `outcome` says how (default: completed), `starts`
collects one line for each start.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from workers.attempt import Attempt, Status


def main() -> None:
    attempt = Attempt(Path(sys.argv[1]))
    wishes = attempt.directory.parent.parent
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: cancelled.set())
    attempt.begin()
    with (wishes / "starts").open("a") as starts:
        starts.write(f"{attempt.directory.name}\n")
    attempt.report(Status(state="active", phase="bulk", bytes={"transferred": 4096}))
    while not (wishes / "go").exists():
        if cancelled.wait(0.02):
            attempt.report(Status(state="cancelled", phase="ended", outcome="cancelled", reason="cancelled"))
            return
    outcome = (wishes / "outcome").read_text() if (wishes / "outcome").exists() else "completed"
    if outcome != "silence":
        seconds = {"bulk": 1.0, "downtime": 0.01, "total": 2.0}
        attempt.report(Status(state=outcome, phase="ended", outcome=outcome, seconds=seconds, rounds=({"index": 0},)))


main()
