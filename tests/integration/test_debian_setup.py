"""ops/scripts/debian-setup, below a directory: what it puts where, that it can be run again, what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.requirements import missing

ROOT = Path(__file__).parents[2]


def setup(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    if not Path("/etc/debian_version").exists():
        missing("not a Debian")
    return subprocess.run(
        [ROOT / "ops" / "scripts" / "debian-setup", *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"DESTDIR": str(root)},
    )


def release_of(root: Path) -> str:
    """What it calls this checkout."""
    (line,) = [line for line in setup(root, "--check").stdout.splitlines() if line.endswith("in /opt/droveway")]
    return line.split()[4]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host that has the program already: installing that takes most of a minute."""
    there = tmp_path / "opt" / "droveway" / release_of(tmp_path)
    there.mkdir(parents=True)
    (there / ".complete").touch()
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_check_says_what_is_left_and_does_none_of_it(tmp_path: Path) -> None:
    done = setup(tmp_path, "--check", "--redis")
    assert done.returncode == 1
    assert "left to do: units: worker redis" in done.stdout
    assert "left to do: settings" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_each_file_is_where_the_units_look_for_it_and_running_it_again_changes_nothing(root: Path) -> None:
    done = setup(root, "--redis", "--beat", "--exporter")
    assert done.returncode == 0, done.stderr
    assert (root / "opt/droveway/current").readlink() == Path(release_of(root.parent / "other"))
    assert (root / "usr/local/bin/droveway").readlink() == Path("/opt/droveway/current/bin/droveway")
    for unit in ("worker", "redis", "beat", "exporter"):
        shipped = ROOT / "ops" / "systemd" / f"droveway-{unit}.service"
        assert (root / "etc/systemd/system" / shipped.name).read_bytes() == shipped.read_bytes()
    modes = {
        name: (root / "etc" / name).stat().st_mode & 0o777 for name in ("droveway.toml", "droveway/redis-passwords")
    }
    assert set(modes.values()) == {0o600}
    for unit in ("beat", "exporter"):  # which the unit's user reads: it is in the group
        assert (root / "etc/droveway" / f"{unit}.toml").stat().st_mode & 0o777 == 0o640
        assert f"/etc/droveway/{unit}.toml" in (ROOT / f"ops/systemd/droveway-{unit}.service").read_text()
        assert f"{unit}.key" in done.stdout
    before = files(root)
    again = setup(root, "--redis", "--beat", "--exporter")
    assert again.returncode == 0
    assert "Redis' settings and users" not in again.stdout
    assert files(root) == before
    check = setup(root, "--check", "--redis", "--beat", "--exporter")
    assert (check.returncode, "nothing is left to do" in check.stdout) == (0, True)


def test_what_an_operator_wrote_stays(root: Path) -> None:
    assert setup(root, "--redis").returncode == 0
    mine = {root / "etc/droveway.toml": "[host]\n", root / "etc/droveway/redis/droveway.acl": "user default off\n"}
    for path, text in mine.items():
        path.write_text(text)
    (root / "etc/systemd/system/droveway-worker.service").write_text("of the release before")
    assert setup(root, "--redis").returncode == 0
    assert {path: path.read_text() for path in mine} == mine
    assert "KillMode" in (root / "etc/systemd/system/droveway-worker.service").read_text(), "units are the release's"


def test_what_an_operator_set_of_redis_stays_and_what_he_did_not_is_the_releases(root: Path) -> None:
    assert setup(root, "--redis").returncode == 0
    etc, before = root / "etc/droveway/redis", root / "opt/droveway/0.0.9/share/ops/redis"
    before.mkdir(parents=True)
    for name, text in {"droveway.conf": "maxmemory 512mb\n", "tls.conf": "port 0\n"}.items():
        (before / name).write_text(text)
    (root / "opt/droveway/current").unlink()
    (root / "opt/droveway/current").symlink_to("0.0.9")
    (etc / "droveway.conf").write_text("maxmemory 4gb\n")
    (etc / "tls.conf").write_text("port 0\n")
    done = setup(root, "--redis")
    assert done.returncode == 0
    assert (etc / "droveway.conf").read_text() == "maxmemory 4gb\n"
    assert (etc / "tls.conf").read_text() == (ROOT / "ops/redis/tls.conf").read_text()
    assert "compare /etc/droveway/redis/droveway.conf" in done.stdout
    assert "compare /etc/droveway/redis/tls.conf" not in done.stdout
    assert setup(root, "--check", "--redis").returncode == 0


def test_a_checkout_of_somebody_elses_is_called_by_its_commit(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("only root gives files away")
    checkout = tmp_path / "check out"
    shutil.copytree(ROOT / "ops", checkout / "ops")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    git = ["git", "-C", checkout, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, 12345)
    environment = os.environ | {"DESTDIR": str(tmp_path / "root"), "HOME": str(tmp_path)}
    environment.pop("SUDO_UID", None)
    done = subprocess.run(
        [checkout / "ops/scripts/debian-setup", "--check"], check=False, capture_output=True, text=True, env=environment
    )
    assert f"-{commit.strip()} in /opt/droveway" in done.stdout, done.stderr


def test_an_older_release_stays_beside_a_newer_one(root: Path) -> None:
    old = root / "opt/droveway/0.0.9"
    (old / "bin").mkdir(parents=True)
    (root / "opt/droveway/current").symlink_to("0.0.9")
    assert setup(root).returncode == 0
    assert (root / "opt/droveway/current").readlink() != Path("0.0.9")
    assert old.exists()


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    done = setup(tmp_path, "--everything")
    assert done.returncode == 2
    assert "--redis" in done.stderr


@pytest.mark.parametrize("name", ["droveway.toml", "beat.toml", "exporter.toml"])
def test_the_settings_to_be_filled_in_name_keys_that_there_are(name: str) -> None:
    from config.settings import KEYS

    document = tomllib.loads((ROOT / "ops" / "examples" / name).read_text())
    assert {f"{concern}.{key}" for concern, table in document.items() for key in table} <= KEYS


@pytest.mark.thorough
def test_the_program_is_installed_by_hashes_and_runs_from_there(tmp_path: Path) -> None:
    done = setup(tmp_path)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "opt/droveway/current/bin/droveway"
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, cwd="/")
    assert said.stdout.startswith("droveway")
    where = "import workers.mover; print(workers.mover.__file__)"
    found = subprocess.run(
        [program.parent / "python", "-c", where], check=True, capture_output=True, text=True, cwd="/"
    )
    assert found.stdout.startswith(str(tmp_path / "opt/droveway"))
    assert not (ROOT / "build").exists()
