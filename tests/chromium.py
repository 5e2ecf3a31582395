"""Debian's Chromium without a window, driven by its own driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.requirements import missing

#: Without these, Chromium asks for servers of its maker at every start, and needs a sandbox that root does not get.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """One that keeps what its pages say and ask for; it ends with the block. `profile`: a directory of its own."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing("no chromium with its driver (ops/scripts/browser-setup installs them)")
    options = Options()
    options.binary_location = program
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Out of the terminal's reach: a Ctrl-C is ours, and ends both in good order.
    made = webdriver.Chrome(options, Service(driver, popen_kw={"start_new_session": True}))
    try:
        yield made
    finally:
        made.quit()
