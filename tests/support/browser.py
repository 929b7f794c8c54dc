"""A real Chromium that a test drives, and what it notes about a page: errors, requests, barriers, its width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MISSING = "Chromium is not installed: make system-packages"
BEYOND = """width => [...document.querySelectorAll("body, body *")]
  .filter((element) => element.getBoundingClientRect().right > width + 1)
  .map((element) => `${element.tagName}.${element.className}: ${element.textContent.slice(0, 40)}`)
  .concat(document.documentElement.scrollWidth > width ? ["the page scrolls sideways"] : [])"""
SEVERE = ("serious", "critical")  # of what axe-core finds


def chromium() -> str:
    """Return the path of the program. Without it a test is skipped, and fails in CI."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None and "CI" in os.environ:
        pytest.fail(MISSING)
    if found is None:
        pytest.skip(MISSING)
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window. It starts processes (subprocess)."""
    program = chromium()
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own does not work for root
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=program, args=[*sandbox, "--disable-dev-shm-usage"])
        yield started
        started.close()


class Visit:
    """A page that was opened, and all that its visit led to."""

    def __init__(self, opened: Any, address: str, own_clock: bool = False) -> None:
        """opened: of `browser()`. own_clock: timers of the page wait until the test lets time pass (page.clock)."""
        self.context = opened.new_context()
        if own_clock:
            self.context.clock.install()
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.hosts: set[str] = set()  # that were asked for anything
        self.paths: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("request", self._note_request)
        self.address = address
        self.page.goto(address)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(f"{kind}: {text}")

    def _note_request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        self.hosts.add(parts.netloc)
        self.paths.append(parts.path)

    def text(self, selector: str) -> str:
        """The text of an element as it is shown, in one line; "" where there is none."""
        found = self.page.query_selector(selector)
        return "" if found is None else " ".join(found.inner_text().split())

    def severe_barriers(self) -> list[str]:
        """What keeps people from reading or using the page, by axe-core."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in SEVERE]

    def overflow(self, width: int) -> list[str]:
        """What reaches beyond a screen of this width, in CSS pixels."""
        self.page.set_viewport_size({"width": width, "height": 900})
        return self.page.evaluate(BEYOND, width)
