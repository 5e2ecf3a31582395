"""`droveway migrate --engine`: a word of the parameter `engine`, and checked as early."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tasks.cli import migrate
from tasks.cli.migrate import request_for


def test_an_engine_that_does_not_exist_is_refused_before_anything_is_read() -> None:
    ended = CliRunner().invoke(migrate.command, ["g1", "--to", "beta", "--engine", "steam"])
    assert ended.exit_code == 2
    assert "steam" in ended.output


@pytest.mark.parametrize("words", [(), ("engine=qemu",)])
def test_a_request_says_which_engine(words: tuple[str, ...]) -> None:
    assert request_for("g1", "beta", (), words).parameters["engine"] == ("qemu" if words else "auto")
