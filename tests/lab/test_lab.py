"""The lab itself: what every test in a machine relies on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.lab.machine import HOST_IN_GUEST, REPOSITORY, SHARE_IN_GUEST, Machine, MachineError, why_no_lab
from tests.requirements import missing

pytestmark = pytest.mark.lab

WRITE = [".venv/bin/python", "tests/lab/rdma_write.py"]


def shell(machine: Machine, command: str) -> str:
    result = machine.run(["bash", "-c", command], timeout=60)
    assert result.returncode == 0, result
    return result.stdout


def sent_bytes(machine: Machine, interface: str) -> int:
    return int(shell(machine, f"cat /sys/class/net/{interface}/statistics/tx_bytes"))


def written(output: str) -> int:
    """How many MiB rdma_write.py has reported so far."""
    return output.count(" MiB\n")


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def test_a_command_gives_back_its_output_and_its_exit_code(one_machine):
    result = one_machine.run(["bash", "-c", 'echo "$A $PWD"; echo oh >&2; exit 7'], timeout=30, env={"A": "b"})
    assert (result.returncode, result.stdout, result.stderr) == (7, f"b {REPOSITORY}\n", "oh\n")
    assert one_machine.run(["bash", "-c", "kill -9 $$"], timeout=30).returncode == -signal.SIGKILL


def test_a_command_that_cannot_be_started_says_why(one_machine):
    result = one_machine.run(["droveway-nonesuch"], timeout=30)
    assert result.returncode == 127
    assert "No such file" in result.stderr
    result = one_machine.run(["true"], timeout=30, user="droveway-nobody")
    assert result.returncode == 127
    assert "droveway-nobody" in result.stderr


def test_a_user_has_no_rights_of_roots(one_machine):
    assert one_machine.run(["id", "-un"], timeout=30, user="nobody").stdout == "nobody\n"
    assert one_machine.run(["id", "-Gn"], timeout=30, user="nobody").stdout == "nogroup\n"


def test_processes_go_on_side_by_side_and_can_be_watched_and_signalled(one_machine):
    listening, sleeping = (
        one_machine.start(["bash", "-c", "trap 'echo got it; exit 5' TERM; echo up; while :; do sleep 0.1; done"]),
        one_machine.start(["sleep", "1000"]),
    )
    wait_for(lambda: listening.stdout == "up\n", 30, "output of a running process")
    assert (listening.poll(), sleeping.poll()) == (None, None)
    assert shell(one_machine, f"cat /proc/{sleeping.pid}/comm") == "sleep\n"
    listening.signal(signal.SIGTERM)
    assert listening.wait(30).returncode == 5
    assert listening.stdout == "up\ngot it\n"
    with pytest.raises(TimeoutError, match="still ran after"):
        sleeping.wait(0.2)
    assert sleeping.wait(30).returncode == -signal.SIGKILL


def test_a_round_trip_is_short(one_machine):
    """Tests run dozens of commands. 0.08 s on a quiet machine; the bound tells a polling agent from one that sleeps."""
    durations = []
    for _ in range(5):
        start = time.monotonic()
        one_machine.run(["true"], timeout=30)
        durations.append(time.monotonic() - start)
    assert min(durations) < 0.5, durations


def test_the_share_is_written_on_both_sides_and_the_rest_of_the_host_on_none(one_machine):
    (one_machine.share / "from-host").write_text("down")
    assert shell(one_machine, f"cat {SHARE_IN_GUEST}/from-host; echo -n up >{SHARE_IN_GUEST}/from-guest") == "down"
    assert (one_machine.share / "from-guest").read_text() == "up"
    assert one_machine.run(["touch", str(REPOSITORY / "touched")], timeout=30).returncode != 0
    shell(one_machine, "for place in /dev/shm /run /tmp /var/tmp /var/lib; do touch $place/droveway-lab-was-here; done")
    for place in ("/dev/shm", "/run", "/tmp", "/var/tmp", "/var/lib"):
        assert not Path(place, "droveway-lab-was-here").exists()


def test_one_machine_has_an_active_device_with_a_path_mtu_of_4096(one_machine):
    assert "link rxe0/1 state ACTIVE" in shell(one_machine, "rdma link")
    output = one_machine.run([*WRITE, "rxe0", "rxe0", "8"], timeout=60)
    assert output.returncode == 0, output
    assert written(output.stdout) == 8


def test_what_the_wired_machine_sends_really_travels_between_its_two_devices(wired_machine):
    before = sent_bytes(wired_machine, "veth1")
    output = wired_machine.run([*WRITE, "rxe1", "rxe2", "8"], timeout=60)
    assert output.returncode == 0, output
    assert 8 << 20 < sent_bytes(wired_machine, "veth1") - before < 10 << 20


def test_loss_on_the_wire_holds_a_transfer_up_and_its_end_lets_it_go_on(wired_machine):
    # Slow enough to be met in the middle: 128 MiB take 5 s or more.
    shell(wired_machine, "tc qdisc add dev veth1 root netem rate 200mbit")
    transfer = wired_machine.start([*WRITE, "rxe1", "rxe2", "128"])
    try:
        wait_for(lambda: written(transfer.stdout) > 2, 60, "the first writes")
        shell(wired_machine, "tc qdisc replace dev veth1 root netem loss 100%")
        held_at = written(transfer.stdout)
        time.sleep(1.5)
        assert written(transfer.stdout) - held_at <= 1, transfer.report()  # one may have been complete, not yet polled
        assert transfer.poll() is None
        shell(wired_machine, "tc qdisc del dev veth1 root")
        result = transfer.wait(120)
        assert result.returncode == 0, transfer.report()
        assert written(result.stdout) == 128
    finally:
        wired_machine.run(["tc", "qdisc", "del", "dev", "veth1", "root"], timeout=30)


def test_two_machines_reach_each_other_with_full_frames(two_machines):
    for machine, other in zip(two_machines, ("10.7.0.2", "10.7.0.1"), strict=True):
        assert "link rxe0/1 state ACTIVE" in shell(machine, "rdma link")
        shell(machine, f"busybox ping -c 1 -W 10 -s 8900 {other}")


def test_a_machine_reaches_a_port_on_the_hosts_loopback(two_machines):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        for machine in two_machines:
            client = machine.start(["busybox", "nc", HOST_IN_GUEST, str(server.getsockname()[1])])
            connection, _ = server.accept()
            with connection:
                connection.sendall(machine.name.encode())
            assert client.wait(30).stdout == machine.name


@pytest.fixture
def lab() -> None:
    if reason := why_no_lab():
        missing(reason)


def test_a_machine_that_panics_is_an_error_with_its_console_and_leaves_nothing(lab):
    with Machine("panicking", memory="512M") as machine:
        directory = machine.share.parent
        sleeping = machine.start(["sleep", "1000"])
        machine.start(["bash", "-c", "echo c >/proc/sysrq-trigger"])
        with pytest.raises(MachineError, match=r"the machine panicking is gone(.|\n)*Kernel panic"):
            sleeping.wait(60)
        with pytest.raises(MachineError):
            machine.run(["true"], timeout=60)
    assert not directory.exists()


def test_a_machine_that_dies_while_it_boots_is_an_error_at_once(lab):
    with Machine("mortal", memory="512M") as machine:
        threading.Timer(0.5, machine.kill).start()
        with pytest.raises(MachineError, match="the machine mortal is gone"):
            machine.run(["true"], timeout=60)


def test_a_machine_that_qemu_refuses_says_why(lab):
    with Machine("refused", memory="lots") as machine, pytest.raises(MachineError, match=r"is gone(.|\n)*lots"):
        machine.run(["true"], timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_stays_of_a_machine_whose_test_run_ends_early(lab, number):
    holder = "\n".join(
        (
            "import time",
            "from tests.lab.machine import Machine",
            "with Machine('orphan', memory='512M') as machine:",
            "    print(machine.share.parent, machine.qemu_pid, flush=True)",
            "    time.sleep(1000)",
        )
    )
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        directory, pid = run.stdout.readline().split()
        assert Path(directory).exists()
        os.kill(int(pid), 0)
        run.send_signal(number)
    wait_for(lambda: not Path(directory).exists(), 30, "the directory goes")
    wait_for(lambda: not Path("/proc", pid).exists(), 30, "QEMU goes")
