"""A real browser on the page: Chromium with a camera that shows a scene of ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from apps.page.rooms import Rooms
from apps.page.server import page_app
from apps.web.bind import background

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

INSTALL = "pip install playwright axe-playwright-python, and apt-get install chromium"
DESKTOP, PHONE = (1280, 800), (360, 740)
# What Chromium itself writes while a server is away; the page can do nothing about it.
AWAY = ("WebSocket connection to", "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET")


def chromium() -> str:
    """Return where Chromium is, or skip the test."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip(f"there is no Chromium here: {INSTALL}")
    return found


def write_y4m(path: Path, image: np.ndarray) -> None:
    """Write a film of one picture, as Chromium's camera of files reads it."""
    height, width = image.shape[:2]
    frame = b"FRAME\n" + cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).tobytes()
    path.write_bytes(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode() + 5 * frame)


@contextmanager
def launched(film: Path) -> Iterator[Browser]:
    """Start Chromium with a camera that shows `film`, allowed to every page."""
    api = pytest.importorskip("playwright.sync_api", reason=INSTALL)
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", *camera, f"--use-file-for-fake-video-capture={film}"],
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A window on the page, with the words that tests use."""

    def __init__(self, browser: Browser, size: tuple[int, int] = DESKTOP, setup: str = "") -> None:
        view = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=view, locale="en", permissions=["camera"])
        self.context.set_default_timeout(60_000)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        if setup:
            self.page.add_init_script(setup)

    def open(self, address: str, *, camera: bool = True) -> None:
        """Open the page, and wait for its camera, which is on at once where it was allowed before."""
        self.page.goto(address)
        self.page.wait_for_selector("#connection[data-state=on]")
        if camera:
            self.until("document.getElementById('video').videoWidth > 0")

    def ask(self, text: str) -> str:
        """Type a question, press Enter, return the answer when it is whole."""
        before = self.page.locator(".turn").count()
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        self.page.locator(".turn").nth(before).wait_for()
        self.page.wait_for_selector("#ask:not([hidden])")
        return self.page.locator(".turn .answer").last.inner_text()

    def text(self, selector: str) -> str:
        """Return what is to be read there."""
        return self.page.inner_text(selector)

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until something there says `text`."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def until(self, expression: str) -> None:
        """Wait until JavaScript is true. Playwright's own way needs eval, which the page's policy forbids."""
        for _ in range(1200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it never was so: {expression}")

    def close(self, *, away: bool = False) -> None:
        """Close it; nothing may have gone wrong, but for a server that was `away`."""
        self.context.close()
        bad = [error for error in self.errors if not (away and any(word in error for word in AWAY))]
        assert not bad, bad

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)


@contextmanager
def serving(rooms: Rooms, port: int = 0) -> Iterator[str]:
    """Serve the page from this process; yields its address."""
    with background(page_app(rooms), port=port) as address:
        yield address
