"""`droveway certs`: what openssl and Python's ssl think of its files, and what it refuses to overwrite."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from config.settings import TlsSettings
from tasks.cli.main import main
from tests.requirements import missing
from workers.guests.qemu.tls_credentials import calling_name, listening_name


def certs(directory: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["certs", str(directory), *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def verifies(directory: Path, name: str, *options: str) -> bool:
    if shutil.which("openssl") is None:
        missing("no openssl")
    words = ["openssl", "verify", "-x509_strict", "-CAfile", str(directory / "ca.pem"), *options]
    return subprocess.run([*words, str(directory / f"{name}.pem")], check=False, capture_output=True).returncode == 0


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_openssl_takes_them_for_what_they_are_for_and_for_nothing_else(tmp_path: Path) -> None:
    words = ["--host", "alpha=10.0.0.1,fd00::1", "--host", "beta", "--redis", "redis.example=10.0.0.9"]
    assert certs(tmp_path, *words) == 0
    for purpose in ("sslserver", "sslclient"):
        assert verifies(tmp_path, "alpha", "-purpose", purpose, "-verify_hostname", "alpha", "-verify_ip", "10.0.0.1")
    assert verifies(tmp_path, "alpha", "-verify_ip", "fd00::1")
    assert not verifies(tmp_path, "alpha", "-verify_hostname", "beta")
    assert not verifies(tmp_path, "alpha", "-verify_ip", "10.0.0.2")
    assert verifies(tmp_path, "redis", "-purpose", "sslserver", "-verify_hostname", "redis.example")
    assert not verifies(tmp_path, "redis", "-purpose", "sslclient"), "Redis calls nobody"
    assert not verifies(tmp_path, "alpha", "-purpose", "crlsign")


def test_qemu_is_told_the_name_of_the_host(tmp_path: Path) -> None:
    assert certs(tmp_path, "--host", "alpha=10.0.0.1") == 0
    tls = TlsSettings(certificate=tmp_path / "alpha.pem", key=tmp_path / "alpha.key", ca=tmp_path / "ca.pem")
    assert (listening_name(tls), calling_name(tls)) == ("alpha", "CN=alpha")


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert certs(tmp_path / "pki", "--host", "alpha") == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "pki").iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "alpha.pem": 0o644, "alpha.key": 0o600}
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700


def test_a_host_is_added_and_nothing_else_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path, "--host", "alpha=10.0.0.1") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert certs(tmp_path, "--host", "alpha=10.0.0.1", "--host", "beta=10.0.0.2", "--json") == 0
    said = json.loads(capsys.readouterr().out)["certificates"]
    assert [(each["file"], each["how"]) for each in said] == [("ca", "kept"), ("alpha", "kept"), ("beta", "made")]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert verifies(tmp_path, "beta")


def test_renewing_keeps_the_authority(tmp_path: Path) -> None:
    assert certs(tmp_path, "--host", "alpha=10.0.0.1", "--days", "10") == 0
    authority, old = (tmp_path / "ca.pem").read_bytes(), read(tmp_path / "alpha.pem")
    assert certs(tmp_path, "--host", "alpha=10.0.0.7", "--days", "20", "--replace") == 0
    new = read(tmp_path / "alpha.pem")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert new.public_key() != old.public_key()
    assert new.not_valid_after_utc - old.not_valid_after_utc >= datetime.timedelta(days=9)
    assert verifies(tmp_path, "alpha", "-verify_ip", "10.0.0.7")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--host", "alpha=10.0.0.7"], 2, "is for alpha, 10.0.0.1, and alpha, 10.0.0.7 was asked for: add --replace"),
        (["--host", "gamma", "--host", "alpha=10.0.0.7"], 2, "add --replace"),
        (["--host", "gamma", "--days", "5000"], 2, "ask for fewer --days"),
        (["--host", "gamma=10.0.0"], 2, "write NAME=ADDRESS"),
        (["--host", "gamma="], 2, "write NAME=ADDRESS"),
        (["--host", "../x"], 2, "cannot name a host"),
        (["--host", "ca"], 2, "cannot be called ca"),
        (["--host", "redis"], 2, "cannot be called redis"),
        (["--host", "gamma", "--host", "gamma=10.0.0.1"], 2, "once"),
        ([], 2, "name each host"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certs(tmp_path, "--host", "alpha=10.0.0.1") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert certs(tmp_path, *words) == code
    assert why in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda pki: (pki / "ca.key").unlink(), "ca.key is not"),
        (lambda pki: (pki / "ca.pem").write_text("torn"), "cannot be read"),
        (lambda pki: shutil.copy(pki / "alpha.key", pki / "ca.key"), "is not the key of"),
        (lambda pki: shutil.copy(pki / "ca.key", pki / "alpha.key"), "is not the key of"),
        (lambda pki: (pki / "alpha.key").unlink(), "alpha.key is not"),
        (lambda pki: (pki / "alpha.pem").unlink(), "alpha.pem is not"),
    ],
    ids=["no-ca-key", "torn-ca", "other-ca-key", "other-key", "no-key", "no-certificate"],
)
def test_files_that_do_not_belong_together_are_named(
    tmp_path: Path, harm: Callable[[Path], object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certs(tmp_path, "--host", "alpha") == 0
    harm(tmp_path)
    capsys.readouterr()
    assert certs(tmp_path, "--host", "alpha") == 4
    assert why in capsys.readouterr().err


def test_a_certificate_of_another_authority_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert certs(tmp_path / name, "--host", "alpha") == 0
    for end in ("pem", "key"):
        shutil.copy(tmp_path / "two" / f"alpha.{end}", tmp_path / "one" / f"alpha.{end}")
    assert certs(tmp_path / "one", "--host", "alpha") == 2
    assert "is not of the authority" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(Path("/proc/nowhere"), "--host", "alpha") == 4
    assert "/proc/nowhere cannot be written" in capsys.readouterr().err
