"""Processes that end with the one that started them, even when that one is killed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def tied_to_us(command: Sequence[str], signal: str = "KILL") -> list[str]:
    """`command`, to be sent `signal` by the kernel when the *thread* that starts it ends; as it is without setpriv.

    setpriv (util-linux) becomes the command, so the process id stays the one that Popen gives.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal, *command] if setpriv else list(command)
