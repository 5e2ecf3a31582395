"""A lab machine by hand: `python -m tests.lab` (or `make lab`)."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.lab.machine import REPOSITORY, Machine, why_no_lab
from tests.requirements import everything_is_required

# What `make lab` shows where nobody can type: the device, through the same pyverbs that the product uses.
_SMOKE = """
rdma link
.venv/bin/python - <<'PYTHON'
from pyverbs.device import Context, get_device_list
for device in get_device_list():
    with Context(name=device.name.decode()) as context:
        port = context.query_port(1)
        print(context.name, "active" if port.state == 4 else f"state {port.state}",
              f"path MTU {128 << port.active_mtu}", context.query_gid(1, 1))
PYTHON
"""


def main() -> int:
    """Boot, bring up RDMA, run or show; the exit code is the command's."""
    arguments = _arguments()
    if reason := why_no_lab():
        print(f"{reason}; nothing was run", file=sys.stderr)
        return 1 if everything_is_required() else 0
    command = arguments.run or (None if sys.stdin.isatty() else f"set -e\n{_SMOKE}")
    with Machine("lab", arguments.memory, arguments.cpus, terminal=command is None) as machine:
        machine.network(arguments.network)
        if command is None:
            return _shell(machine)
        result = machine.run(["bash", "-c", command], arguments.timeout, user=arguments.user)
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode if result.returncode >= 0 else 128 - result.returncode


def _shell(machine: Machine) -> int:
    print(f"A shell in the machine, in {REPOSITORY} (read-only); /run/share is {machine.share} of the host.\r")
    print("`tc`, `rdma` and `ip` work as root; `exit` ends the machine.\r")
    # The terminal belongs to the machine now, so that Ctrl-C goes there.
    terminal = subprocess.run(["stty", "-g"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    subprocess.run(["stty", "raw", "-echo"], check=True)
    try:
        # It leads a session of its own, so the first terminal that it opens becomes its controlling one.
        shell = machine.start(["sh", "-c", "exec bash -l <>/dev/ttyS0 >&0 2>&0"], env={"TERM": "linux"})
        return shell.wait(timeout=7 * 86400).returncode
    finally:
        subprocess.run(["stty", terminal], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Boots Debian's kernel under QEMU emulation (no KVM needed), with this host's files at their own "
        "paths, read-only, and a soft-RoCE device. At a terminal it gives a shell; with --run it runs a command; "
        "otherwise it shows the device and ends.",
        epilog='examples:  make lab    make lab RUN="rdma link"    '
        'python -m tests.lab --network wired --run "tc qdisc add dev veth1 root netem loss 1%%; rdma link"',
    )
    parser.add_argument("--run", metavar="COMMAND", help="what to run in the machine (bash), in place of a shell")
    parser.add_argument("--user", help="as whom to run it (default: root, which no memlock limit stops)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for COMMAND (default: 600)")
    parser.add_argument(
        "--network",
        choices=["loopback", "wired"],
        default="loopback",
        help="loopback: rxe0 on a dummy device; wired: rxe1 and rxe2 on a veth pair (default: loopback)",
    )
    parser.add_argument("--memory", default="3G", help="as QEMU's -m (default: 3G)")
    parser.add_argument("--cpus", type=int, default=1, help="virtual processors; 2 are slower (default: 1)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
