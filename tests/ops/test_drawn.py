"""Every panel as somebody sees it: drawn in Chromium by components of Grafana's front end, of guests that really moved.

Those components are wired to our files by hand (`drawn/app.jsx`); that Grafana itself shows them so is not tested.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ops.grafana.dashboards.all import written
from tests.ops.drawn.answers import answered
from tests.ops.drawn.drawing import Easel, easel
from tests.ops.watched_fleet import Watched

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

#: As wide as a small laptop's window, and as a screen.
LOOKS = ((1000, "dark"), (1600, "light"))


@dataclass(frozen=True)
class Drawn:
    """One dashboard in the browser: what was to be shown, what the page complained of, what is to be seen."""

    answered: dict[str, Any]
    complaints: list[str]
    seen: dict[str, Any]

    def panels(self, kind: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]]:
        """Of each panel of a kind: what the file says, its series, what is seen of it."""
        for panel in self.answered["board"]["panels"]:
            if panel["type"] == kind:
                yield panel, self.answered["series"][panel["id"]], self.seen[str(panel["id"])]


@pytest.fixture(scope="module")
def drawing() -> Iterator[Easel]:
    with easel() as made:
        yield made


@pytest.fixture(scope="module", params=[(name, *look) for name in written() for look in LOOKS], ids=str)
def drawn(request: pytest.FixtureRequest, drawing: Easel, seen: Watched) -> Drawn:
    name, width, theme = request.param
    asked = answered(seen.prometheus, json.loads(written()[name]), seen.began, time.time())
    complaints = drawing.draw(asked, width, theme)
    return Drawn(asked, complaints, drawing.browser.execute_script(_LOOK))


def test_the_page_complains_of_nothing(drawn: Drawn) -> None:
    assert drawn.complaints == []


def test_every_panel_is_there_with_its_whole_title(drawn: Drawn) -> None:
    wanted = {str(panel["id"]): panel["title"] for panel in drawn.answered["board"]["panels"] if panel["type"] != "row"}
    assert {number: panel["title"] for number, panel in drawn.seen.items()} == wanted


def test_nothing_overflows_its_panel(drawn: Drawn) -> None:
    assert {panel["title"]: panel["beyond"] for panel in drawn.seen.values() if panel["beyond"]} == {}


def test_every_series_can_be_seen_and_has_a_name(drawn: Drawn) -> None:
    for panel, series, seen in drawn.panels("timeseries"):
        if not series:
            assert seen["text"] == panel["fieldConfig"]["defaults"]["noValue"], panel["title"]
            continue
        assert sorted(seen["legend"]) == sorted(each["name"] for each in series), panel["title"]
        blank = [name for name, visible in zip(seen["legend"], seen["lines"], strict=True) if not visible]
        assert blank == [], panel["title"]


def test_every_figure_has_a_value_or_says_that_there_is_none(drawn: Drawn) -> None:
    for panel, series, seen in drawn.panels("stat"):
        known = [each for each in series if math.isfinite(float(each["values"][-1][1]))]
        without = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]["result"]["text"]
        assert (without in seen["text"]) == (not known), (panel["title"], seen["text"])
        assert seen["text"], panel["title"]
        assert not {"NaN", "No data", "undefined", "Infinity"} & set(seen["text"].split("\n")), panel["title"]


def test_every_text_can_be_read(drawn: Drawn) -> None:
    for panel, _, seen in drawn.panels("text"):
        assert len(seen["text"]) > len(panel["options"]["content"]) / 2, panel["title"]


#: Of each panel, by its number: what its head says ("" where it is cut off), what the rest of it says, the names in its
#: legend, of each line whether at one of its points the canvas has the colour of a line, and what lies beyond its panel
#: or is cut off.
_LOOK = """
const channels = (canvas => colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
})(document.createElement('canvas').getContext('2d', { willReadFrequently: true }));
const near = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]) < 100 && a[3] > 100;
const visible = (plot, line, colours) => [...plot.data[0].keys()].some(at => {
  const value = plot.data[line][at];
  if (value == null) return false;
  const [x, y] = [plot.valToPos(plot.data[0][at], 'x', true), plot.valToPos(value, plot.series[line].scale, true)];
  if (!Number.isFinite(x) || !Number.isFinite(y)) return false;
  const { data } = plot.ctx.getImageData(Math.round(x) - 1, Math.round(y) - 1, 3, 3);
  return [0, 4, 8, 12, 16, 20, 24, 28, 32].some(i => colours.some(colour => near(data.subarray(i, i + 4), colour)));
});
const look = box => {
  const [own, title] = [box.getBoundingClientRect(), box.querySelector('h2')];
  const content = box.querySelector('[data-testid="data-testid panel content"]');
  const legend = [...box.querySelectorAll('[data-testid^="data-testid VizLegend series "]')];
  const plot = plots[box.dataset.panel];
  const colours = plot ? plot.series.slice(1).map(line => channels(line._stroke)) : [];
  const style = part => getComputedStyle(part);
  const beyond = [...box.querySelectorAll('*')].filter(part => {
    const at = part.getBoundingClientRect();
    const out = [at.right - own.right, own.left - at.left, at.bottom - own.bottom, own.top - at.top].some(by => by > 1);
    return (out && at.width && at.height)
      || (part.scrollWidth > part.clientWidth + 1 && style(part).overflowX != 'visible')
      || (part.scrollHeight > part.clientHeight + 1 && style(part).overflowY != 'visible');
  });
  return {
    title: title && title.scrollWidth <= title.clientWidth ? title.innerText : '',
    text: content.innerText.trim(),
    legend: legend.map(each => each.innerText.trim()),
    lines: plot ? plot.series.slice(1).map((_, i) => visible(plot, i + 1, colours)) : [],
    beyond: beyond.map(part => `${part.tagName}: ${part.textContent.slice(0, 40)}`),
  };
};
return Object.fromEntries([...document.querySelectorAll('[data-panel]')].map(box => [box.dataset.panel, look(box)]));
"""
