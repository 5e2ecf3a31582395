"""Reports of real moves in a real browser: nothing is loaded, nothing overflows, the figures are the record's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from config.settings import RedisSettings
from tasks.evacuate import begin
from tasks.ledger.ledger import Ledger
from tasks.one_machine.fleet import LocalFleet
from tasks.planning.evacuating import Evacuation
from tasks.steps import snapshot
from tests.chromium import chromium
from tests.redis_server import RedisServer
from tests.until import until
from workers.guests.memory_spec import MemoryGuestSpec

MIB = 1 << 20
#: Seconds by which the greeting may be off: half a round trip within one machine, a mover that waits for a processor.
_STATED = 0.1
#: The same of two claims: ways to Redis and back, what a worker did between a claim and its mover's start.
_CLAIMS = 0.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A move and an evacuation between real workers: for each its page and its JSON, both by the command."""
    folder, server = tmp_path_factory.mktemp("reports"), RedisServer()
    server.start()
    try:
        redis = RedisSettings.model_validate({"url": server.url})
        with LocalFleet(redis, ram_bytes=256 * MIB, overrides={"worker.lease": 6}) as fleet:
            for name in ("web", "db"):
                guest = fleet.hosts["alpha"].guests.start(MemoryGuestSpec(name, 48 * MIB, dirty_rate=20 * MIB))
                guest.wait_filled(30)
            fleet.start()
            with closing(Ledger(fleet.settings)) as ledger:
                until("both guests", lambda: len(ledger.fleet().guests) == 2, seconds=60)
                begin(ledger, Evacuation("e-report", frozenset({"alpha"})), "a <b>new</b> board")
                until("the end", lambda: snapshot(ledger, "e-report").ended, seconds=120)
                moves = list(snapshot(ledger, "e-report").moves)
            return {
                "job": _reported(server.url, "e-report", folder / "job.html"),
                "move": _reported(server.url, moves[0], folder / "move.html"),
            }
    finally:
        server.close()


def _reported(url: str, what: str, path: Path) -> tuple[Path, dict[str, Any]]:
    command = [shutil.which("droveway", path=str(Path(sys.executable).parent)) or "droveway"]
    environment = {"DROVEWAY_REDIS__URL": url, "DROVEWAY_CONFIG": "/dev/null", "PATH": "/usr/bin:/bin"}
    words = [*command, "report", what, "--html", str(path), "--json"]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    return path, json.loads(said)


def shown(browser: webdriver.Chrome, path: Path, width: int) -> None:
    browser.set_window_size(width, 1200)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    time.sleep(0.2)  # what it asked for by itself would have been asked for by now


@pytest.mark.parametrize("kind", ["move", "job"])
@pytest.mark.parametrize("width", [1280, 520])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits(
    browser: webdriver.Chrome, pages: dict[str, tuple[Path, dict[str, Any]]], kind: str, width: int
) -> None:
    path, _ = pages[kind]
    shown(browser, path, width)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if url not in (path.as_uri(), "data:,")] == []
    assert browser.get_log("browser") == []
    wide, visible = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= visible
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right >"
        " document.documentElement.clientWidth + 1).map(e => e.tagName)"
    )
    assert beyond == []


def test_a_moves_page_has_the_figures_of_its_record(
    browser: webdriver.Chrome, pages: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    path, said = pages["move"]
    shown(browser, path, 1280)
    assert browser.title == f"{said['guest']}: alpha → beta · Droveway"
    figures = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.figures div')].map(e => [e.querySelector('dt')"
        ".innerText, e.querySelector('.value').innerText]))"
    )
    assert figures["Rounds"] == str(len(said["rounds"]))
    value, unit = figures["Downtime"].split()
    assert float(value) == pytest.approx(said["seconds"]["downtime"] * (1000 if unit == "ms" else 1), rel=0.05)
    rows = browser.execute_script("return document.querySelectorAll('.rate.dirty').length")
    assert rows == len(said["rounds"])
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.track i')].map(e => e.getBoundingClientRect().width)"
    )
    assert len(widths) >= 8
    assert min(widths) >= 1, "a bar that nobody sees"


@pytest.mark.parametrize("width", [1280, 520])
def test_bars_lie_where_the_record_says_that_phases_were(
    browser: webdriver.Chrome, pages: dict[str, tuple[Path, dict[str, Any]]], width: int
) -> None:
    path, said = pages["move"]
    shown(browser, path, width)
    drawn = browser.execute_script(_BARS)
    whole = max(each["began"] + each["seconds"] for each in said["timeline"])
    assert len(drawn) == len(said["timeline"]) + 1, "and the wait for admission"
    assert drawn[0] == [
        "fleet",
        pytest.approx(0, abs=0.002),
        pytest.approx(said["seconds"]["queue"] / whole, abs=0.005),
    ]
    for side in ("source", "destination"):
        bars = sorted(left for row, left, _ in drawn if row == f"{side}, {said[side]['host']}")
        began = [each["began"] / whole for each in said["timeline"] if each["side"] == side]
        # Rounded to a pixel, and whole on the scale.
        assert bars == pytest.approx([min(each, 0.996) for each in began], abs=0.005)
    assert max(left + width for _, left, width in drawn) == pytest.approx(1, abs=0.006)


def placed(said: dict[str, Any]) -> dict[tuple[str, str, int | None], tuple[float, float]]:
    """When each phase, round and moment began and ended, from the JSON."""
    return {
        (each["side"], each["phase"], each["round"]): (each["began"], each["began"] + each["seconds"])
        for each in said["timeline"]
    }


def test_phases_of_a_real_move_follow_each_other_and_the_handover_keeps_its_order(
    pages: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    _, said = pages["move"]
    at = placed(said)
    rounds = [(each["kind"], each["index"]) for each in said["rounds"]]
    dirty = [("source", "rounds", index) for kind, index in rounds if kind == "dirty"]
    sent = [("source", "bulk", 0), *dirty, ("source", "downtime", None), ("source", "deregistration", None)]
    paired = [("source", "start", None), ("source", "pairing", None), ("source", "survey", None)]
    links = [("source", "links", None)] if ("source", "links", None) in at else []
    received = [("destination", name, None) for name in ("start", "pairing", "twin", "rounds", "handover")]
    for chain in ([*paired[:2], *links, paired[2], *sent], [*received, ("destination", "deregistration", None)]):
        for before, after in pairwise(chain):
            assert at[before][1] <= at[after][0], (before, after)
    last, downtime = at["source", "downtime", len(rounds) - 1], at["source", "downtime", None]
    assert downtime[0] <= last[0] < last[1] <= downtime[1]
    ready, given, taken = (
        at[where][0]
        for where in (("destination", "ready", None), ("source", "given", None), ("destination", "taken", None))
    )
    assert last[1] <= ready + _STATED, "all was written when it was ready"
    assert downtime[0] < ready <= given <= taken <= downtime[1]
    assert at["destination", "handover", None][0] <= ready
    assert taken <= at["destination", "handover", None][1]


def test_the_greeting_alone_lays_both_clocks_beside_each_other_as_well_as_is_said(
    pages: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    """Both movers read one machine's clock here, and the handover's words bound how far theirs can be apart."""
    _, said = pages["move"]
    here, there = said["source"]["progress"], said["destination"]["progress"]
    apart = here["moments"]["greeted"] - there["moments"]["greeted"]
    heard = here["began"]["downtime"] + here["seconds"]["downtime"]
    assert apart >= here["moments"]["given"] - there["moments"]["taken"] - _STATED
    assert apart <= here["moments"]["given"] - there["moments"]["ready"] + _STATED
    assert apart <= heard - there["moments"]["taken"] + _STATED
    claims = [said[side]["claimed"] + said[side]["progress"]["seconds"]["start"] for side in ("source", "destination")]
    assert apart == pytest.approx(claims[1] - claims[0], abs=_CLAIMS), "two clocks that have nothing to do with it"


def test_a_jobs_page_shows_each_guest_and_what_was_written_stays_text(
    browser: webdriver.Chrome, pages: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    path, said = pages["job"]
    shown(browser, path, 1280)
    text = browser.execute_script("return document.body.innerText")
    assert "a <b>new</b> board: all 2 guests have left" in text
    assert browser.execute_script("return document.querySelectorAll('header b').length") == 0
    for guest in said["guests"]:
        assert guest in text
    assert text.count("alpha → beta, completed") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_in_light_and_in_dark(
    browser: webdriver.Chrome, pages: dict[str, tuple[Path, dict[str, Any]]], scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for path, _ in pages.values():
        shown(browser, path, 1280)
        worst = browser.execute_script(_WORST_CONTRAST)
        assert worst >= 4.5, "WCAG 2, level AA"


#: Of every bar: its row, and where it begins and how wide it is, in parts of its track.
_BARS = """
return [...document.querySelectorAll('.track i')].map(bar => {
  const [own, all] = [bar, bar.parentElement].map(each => each.getBoundingClientRect());
  return [bar.closest('tr').querySelector('th').innerText, (own.left - all.left) / all.width, own.width / all.width];
});
"""
#: Of every element with text of its own: its colour against the nearest background that is painted.
_WORST_CONTRAST = """
const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
return Math.min(...[...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 &&
  n.textContent.trim())).map(e => { const a = light(getComputedStyle(e).color), b = light(behind(e));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
"""
