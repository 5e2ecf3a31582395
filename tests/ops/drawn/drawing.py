"""A dashboard drawn in Chromium by components of Grafana's front end, to be looked at or to be photographed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium import webdriver

from tests.chromium import chromium
from tests.ops.drawn.components import page

#: Until nothing in the page has changed for half a second: components measure themselves and draw again.
_UNTIL_QUIET = """
const done = arguments[arguments.length - 1]; let timer;
const again = () => { clearTimeout(timer); timer = setTimeout(done, 500); };
new MutationObserver(again).observe(document, { subtree: true, childList: true, attributes: true });
again();
"""
_SIZE = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"


class Easel:
    """A browser with the components in its page."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self._address = address

    def draw(self, answered: dict[str, Any], width: int, theme: str) -> list[str]:
        """Draw what `answers` made, so many pixels wide, "dark" or "light"; what the page complains of."""
        screen = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.browser.get_log("browser")
        self.browser.get(self._address)
        self.browser.execute_script("return draw(...arguments)", answered, theme)
        self.browser.execute_async_script(_UNTIL_QUIET)
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def photograph(self, path: Path) -> None:
        """All of the page, as a PNG."""
        wide, high = self.browser.execute_script(_SIZE)
        clip = {"x": 0, "y": 0, "width": wide, "height": high, "scale": 1}
        taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def easel() -> Iterator[Easel]:
    """One for any number of drawings. The page is a file, and so are the icons that it asks for."""
    address = page().as_uri()
    with (
        TemporaryDirectory(prefix="droveway-browser-") as profile,
        chromium(Path(profile), "--allow-file-access-from-files", "--hide-scrollbars") as browser,
    ):
        browser.set_script_timeout(120)
        yield Easel(browser, address)
