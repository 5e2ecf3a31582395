"""What `droveway reconcile` found and did. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tasks.cli.quantities import NOTHING
from tasks.cli.rendering.tables import table
from tasks.reconcile import Action, Finding
from workers.attempt import Status
from workers.pairing.contract import Side

_DONE = {
    Action.NONE: "nothing to do",
    Action.RING: "rang again",
    Action.ABANDON: "given up",
    Action.ASK: "asked the host",
    Action.RELEASE: "slot taken back",
    Action.FREE: "shared link freed",
}


@dataclass(frozen=True, slots=True)
class Settled:
    """A dead mover's attempt on this host, finished as far as it goes now.

    `status.outcome` is None while another process is at it. `untold`: why the record does not know it yet.
    """

    migration: str
    guest: str
    side: Side
    peer: str
    status: Status
    untold: str | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "migration": self.migration,
            "guest": self.guest,
            "side": str(self.side),
            "peer": self.peer,
            "outcome": self.status.outcome,
            "reason": self.status.reason,
            "message": self.status.message,
            "untold": self.untold,
        }


def reconciled(settled: Sequence[Settled], findings: Sequence[Finding]) -> RenderableType:
    """One line for each attempt and each finding."""
    if not settled and not findings:
        return Text("nothing was cut off")
    made = table("GUEST", "MIGRATION", "SIDE", "HOST", "DONE", "WHY")
    for each in settled:
        why = "; ".join(filter(None, [each.status.message, each.untold and f"not recorded yet: {each.untold}"]))
        made.add_row(each.guest, each.migration, str(each.side), "here", each.status.outcome or "nothing", Text(why))
    for finding in findings:
        side = NOTHING if finding.side is None else str(finding.side)
        made.add_row(
            finding.guest, finding.migration, side, finding.host or NOTHING, _DONE[finding.action], Text(finding.reason)
        )
    return made
