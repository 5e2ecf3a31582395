"""Whether an empty `transaction` waits for all block I/O of a QEMU: tried, since no document promises it.

Another QEMU of the same binary, without a machine, copies between two invented disks that take their time; what was
under way when the transaction began must be done when it is answered. 0.3 s, and the guest notices nothing.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from config.errors import HostError
from workers.guests.qemu.monitor import Monitor

#: What one request of the invented disk takes, in ns: far longer than an answer (2 ms), far shorter than our patience.
_LATENCY = 200_000_000
_SIZE = 1 << 20
_START_SECONDS = 20.0


def drains(binary: Path, directory: Path) -> bool:
    """Try it with this binary; its socket lies in `directory` meanwhile. False also when there is any doubt."""
    path = directory / "probe"
    path.unlink(missing_ok=True)
    command = [str(binary), "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    command += ["-qmp", f"unix:{str(path).replace(',', ',,')},server=on,wait=off"]
    try:
        # The kernel ends it when we are killed: setpriv becomes QEMU, with the same process id.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return False
    try:
        _await(path, process)
        with Monitor("probe", path) as monitor:
            return _tried(monitor)
    except HostError:
        return False
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


def _await(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise HostError("a QEMU without a machine did not start")
        time.sleep(0.005)


def _tried(monitor: Monitor) -> bool:
    monitor.execute("blockdev-add", driver="null-co", node_name="slow", size=_SIZE, latency_ns=_LATENCY)
    monitor.execute("blockdev-add", driver="null-co", node_name="sink", size=_SIZE)
    monitor.execute("blockdev-backup", job_id="copy", device="slow", target="sink", sync="full")
    if not any(job["current-progress"] == 0 for job in monitor.execute("query-jobs")):
        return False  # too slow ourselves to have seen it under way
    monitor.execute("transaction", actions=[])
    return all(job["current-progress"] > 0 for job in monitor.execute("query-jobs"))  # a finished one is not listed
