"""How a call ends: one sentence, the code a script branches on, never a traceback that nobody asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from config.errors import (
    CancelledError,
    DrovewayError,
    HostError,
    MigrationFailedError,
    RefusedError,
    RequestError,
    SettingsError,
    UnreachableError,
    UnresolvedError,
)
from tasks.cli.endings import EXIT_CODES, EndedError, run
from tasks.cli.main import main

NOWHERE = "unix:///nonexistent/redis.sock"


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("x"), 2),
        (RefusedError("x", "busy"), 3),
        (HostError("x"), 4),
        (SettingsError("x"), 4),
        (UnreachableError("x"), 5),
        (MigrationFailedError("x"), 6),
        (CancelledError("x"), 7),
        (UnresolvedError("x"), 8),
        (DrovewayError("x"), 1),
        (ZeroDivisionError("x"), 1),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.exceptions.Exit(3), 3),
        (BrokenPipeError(), 0),
    ],
)
def test_every_ending_has_its_code(
    error: BaseException, code: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: None)  # a broken pipe: the test's own output stays
    assert run(raising(error), as_json=False, debug=lambda: False) == code
    assert code in {known for known, _ in EXIT_CODES}
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_is_one_sentence_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(
        raising(RefusedError("web is on beta already; choose another.", "same-host")),
        as_json=False,
        debug=lambda: False,
    )
    said = capsys.readouterr()
    assert said.err == "droveway: web is on beta already; choose another.\n"
    assert said.out == ""


def test_an_error_is_one_document_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(RefusedError("no", "busy")), as_json=True, debug=lambda: False)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": {"reason": "busy", "message": "no", "exit_code": 3}}
    assert said.err == ""


def test_what_was_measured_before_a_failure_stands_beside_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(EndedError("it stalled", "stalled", 6, {"migration": "m-1"})), as_json=True, debug=lambda: False)
    said = json.loads(capsys.readouterr().out)
    assert said["migration"] == "m-1"
    assert said["error"]["reason"] == "stalled"


def test_a_defect_shows_where_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(KeyError("x")), as_json=False, debug=lambda: True)
    assert "Traceback" in capsys.readouterr().err
    run(raising(KeyError("x")), as_json=False, debug=lambda: False)
    assert capsys.readouterr().err.startswith("droveway: a defect (KeyError")


@pytest.mark.parametrize(
    ("words", "code", "needle"),
    [
        (["nosuch"], 2, "nosuch"),
        (["migrate", "web"], 2, "(see `droveway migrate --help`)"),
        (["migrate", "web", "--to", "beta", "--capability", "rdma-pin-al=on"], 2, "did you mean rdma-pin-all"),
        (["migrate", "web", "--to", "beta", "--capability", "postcopy-ram=on"], 2, "QEMU"),
        (["migrate", "web", "--to", "beta", "--set", "downtime-limit=1h"], 2, "downtime-limit"),
        (["migrate", "web", "--to", "beta", "--set", "rdma-pin-all=on"], 2, "is a capability"),
        (["migrate", "web", "--to", "beta", "--set", "channels"], 2, "NAME=VALUE"),
        (["migrate", "Web!", "--to", "beta"], 2, "cannot name a guest"),
        (["migrate", "web", "--to", "../beta"], 2, "cannot name a host"),
        (["migrate", "web", "--to", "beta", "--redis", NOWHERE], 5, "cannot be reached"),
        (["status", "--redis", NOWHERE], 5, "cannot be reached"),
        (["--redis", NOWHERE, "status"], 5, "cannot be reached"),
        (["worker", "--redis", NOWHERE], 5, "cannot be reached"),
        (["reconcile", "--redis", NOWHERE], 5, "cannot be reached"),
        (["status", "--redis", "http://example"], 4, "redis.url"),
        (["status", "--config", "/nonexistent.toml"], 4, "/nonexistent.toml"),
        (["guest", "start", "web", "--memory", "1X"], 2, "1G"),
        (["guest", "start", "web", "--memory", "1000"], 2, "multiple of 4096"),
        (["guest", "start", "web", "--memory", "1M", "--used", "2"], 2, "used"),
        (["worker", "--role", "both"], 2, "both"),
    ],
)
def test_bad_input_gets_its_code_and_says_what_is_wrong(
    words: list[str], code: int, needle: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("--state-dir", str(tmp_path), *words) == code
    said = capsys.readouterr()
    assert said.err.startswith("droveway: ")
    assert said.err.count("\n") == 1
    assert needle in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("migrate", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    "command",
    ["demo", "worker", "guest start", "guest list", "guest stop", "guest check", "migrate", "status", "cancel", "list",
     "show", "hosts", "capabilities", "reconcile", "config show", "config check", "certs", "doctor"],
)  # fmt: skip
def test_every_help_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command.split(), "--help") == 0
    said = capsys.readouterr().out
    assert "Example" in said
    assert f"droveway {command.split(maxsplit=1)[0]}" in said.partition("Example")[2]


def test_help_needs_neither_settings_nor_redis(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", "/nonexistent.toml", "--help") == 0
    said = capsys.readouterr().out
    for code, _ in EXIT_CODES:
        assert f"\n  {code} " in said


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("droveway")


def test_capabilities_are_listed_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("capabilities", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    pinned = next(row for row in said["capabilities"] if row["name"] == "rdma-pin-all")
    assert pinned["default"] is False
    assert any(row["name"] == "downtime-limit" and row["default"] == 300 for row in said["parameters"])


def test_passwords_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "show", "--redis", "redis://me:secret@127.0.0.1/0") == 0
    assert "secret" not in capsys.readouterr().out
