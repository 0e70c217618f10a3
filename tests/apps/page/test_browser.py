"""The page in Chromium: asked, forked, watched, cut off, read by a screen reader's rules, and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from apps.latest import LatestFrame
from apps.page.cameras import RobotCamera, encode
from apps.page.rooms import Rooms
from apps.sources import open_source
from runtime import GenerateOptions, VisualRWKV
from tests.apps.page.browser import DESKTOP, INSTALL, PHONE, Visit, launched, serving, write_y4m
from tests.apps.page.conftest import SAMPLE

pytest.importorskip("playwright.sync_api", reason=INSTALL)

from playwright.sync_api import Browser

Scenes = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def browser(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    film = tmp_path_factory.mktemp("film") / "star.y4m"
    write_y4m(film, scenes["star"])
    with launched(film) as browser:
        yield browser


@pytest.fixture
def address(rooms: Rooms) -> Iterator[str]:
    with serving(rooms) as address:
        yield address


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser)
    visit.open(address)
    yield visit
    visit.close()


def test_it_answers_about_the_camera(visit: Visit) -> None:
    assert visit.ask("Where is the circle?") == "bottom left"
    assert "to the first token" in visit.text(".turn .meta")
    assert visit.page.evaluate("document.querySelector('.turn img').naturalWidth") > 100
    assert visit.page.text_content("#announce") == "Answer: bottom left"
    assert visit.text("#ttft").endswith("s")
    assert float(visit.text("#speed").replace(",", "")) > 0
    assert "MiB" in visit.text("#memory")
    visit.wait_for_text("#age-unit", "1 picture")
    assert int(visit.text("#age")) > 16


def test_forks_are_tabs_and_undo_takes_back(visit: Visit) -> None:
    page = visit.page
    visit.ask("Where is the circle?")
    page.wait_for_selector("#undo:enabled")
    page.click("#fork")
    visit.wait_for_text("[role=tab][aria-selected=true]", "Fork 1")
    assert page.locator(".turn").count() == 1, "a fork has heard what was said"
    assert page.is_disabled("#undo")
    assert visit.ask("What is at the bottom left?") == "yellow circle"
    page.wait_for_selector("#undo:enabled")
    page.click("#undo")
    page.locator(".turn").nth(1).wait_for(state="detached")
    page.focus("[role=tab][aria-selected=true]")
    page.keyboard.press("ArrowLeft")
    visit.wait_for_text("[role=tab][aria-selected=true]", "Main")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
    page.keyboard.press("ArrowRight")
    page.click("#close")
    visit.until("document.querySelectorAll('[role=tab]').length === 1")
    page.click("#reset")
    page.locator(".turn").first.wait_for(state="detached")


def test_watching_makes_the_state_older_and_is_answered(visit: Visit) -> None:
    page = visit.page
    page.click("#watch")
    page.wait_for_selector("#watch[aria-checked=true]")
    visit.until("Number(document.getElementById('age').textContent) >= 16")
    assert visit.page.is_visible("#watching-sign")
    assert visit.ask("Where is the circle?") == "bottom left"
    assert "leaves no trace" in visit.text("#watch-note")
    visit.wait_for_text(".turn .meta", "not kept in the state")
    visit.until("!document.getElementById('dropped-unit').textContent.includes('of 0 ')")
    page.click("#watch")
    page.wait_for_selector("#watch[aria-checked=false]")
    assert visit.ask("What is at the bottom left?") == "yellow circle"


def test_a_server_that_restarts_is_told_of_and_talked_to_again(browser: Browser, demo: VisualRWKV) -> None:
    visit = Visit(browser)
    with serving(Rooms(demo, GenerateOptions())) as address:
        visit.open(address)
        visit.ask("Where is the circle?")
        visit.page.click("#watch")
        visit.page.wait_for_selector("#watch[aria-checked=true]")
    visit.wait_for_text("#banner", "The connection to the server is lost")
    assert visit.page.is_disabled("#ask")
    assert visit.text(".turn .answer") == "bottom left", "what was said stays"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=INSTALL).Axe()
    found = axe.run(visit.page)
    assert found.violations_count == 0, found.generate_report()
    with serving(Rooms(demo, GenerateOptions()), urlsplit(address).port or 0):
        visit.wait_for_text("#banner", "The server was restarted")
        visit.wait_for_text(".turn.old .meta", "forgotten by the model")
        visit.page.wait_for_selector("#watch[aria-checked=true]")
        visit.until("Number(document.getElementById('age').textContent) >= 16")
        assert visit.ask("What is at the bottom left?") == "yellow circle"
        visit.page.reload()
        visit.wait_for_text(".turn .answer", "yellow circle")
        visit.close(away=True)


def test_a_conversation_is_saved_and_loaded(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.ask("Where is the circle?")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename.startswith("main-")
    download.value.save_as(tmp_path / "a.state")
    page.set_input_files("#state-file", tmp_path / "a.state")
    visit.wait_for_text("[role=tab][aria-selected=true]", "File 1")
    assert visit.text(".turn .answer") == "bottom left"
    data = bytearray((tmp_path / "a.state").read_bytes())
    data[-50] ^= 1
    (tmp_path / "bad.state").write_bytes(data)
    page.set_input_files("#state-file", tmp_path / "bad.state")
    visit.wait_for_text("#problem", "This file")
    # A refused upload is a failed request, which Chromium notes by itself.
    visit.errors = [error for error in visit.errors if "422" not in error]


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page, focused = visit.page, "document.activeElement.id || document.activeElement.className"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "question"
    page.keyboard.type("Where is the circle?")
    page.keyboard.press("Enter")
    visit.wait_for_text(".turn .answer", "bottom left")
    page.keyboard.press("Shift+Tab")  # into the history, to scroll it
    assert page.evaluate(focused) == "scroll"


def test_escape_stops_an_answer(browser: Browser, demo: VisualRWKV) -> None:
    visit = Visit(browser)
    with serving(Rooms(demo, GenerateOptions(max_tokens=1_000_000, ignore_stop=True))) as address:
        visit.open(address)
        visit.page.fill("#question", "Where is the circle?")
        visit.page.press("#question", "Enter")
        visit.page.wait_for_selector("#stop:not([hidden])")
        # The text is there while the answer streams: behind it come tokens without any, for ever.
        visit.until("document.querySelector('.turn.running .answer')?.textContent === 'bottom left'")
        visit.page.keyboard.press("Escape")
        visit.wait_for_text(".turn .meta", "stopped")
        visit.page.wait_for_selector("#undo:enabled")
        visit.close()


def test_the_robot_s_camera_is_shown_and_asked(browser: Browser, demo: VisualRWKV) -> None:
    visit = Visit(browser)
    reader = LatestFrame(open_source(str(SAMPLE), loop=True))
    with reader, serving(Rooms(demo, GenerateOptions(), robot=RobotCamera(reader))) as address:
        visit.open(address, camera=False)
        visit.until("document.getElementById('canvas').width === 512")
        assert visit.page.evaluate("document.getElementById('source').selectedOptions[0].text") == "Robot: sample.mp4"
        visit.page.click("#suggestions button")
        visit.page.wait_for_selector(".turn:not(.running) img")
        assert visit.text(".turn .answer").isdecimal(), "how many circles there are"
        visit.close()


def test_without_a_camera_the_page_says_what_to_do(browser: Browser, address: str, tmp_path: Path) -> None:
    visit = Visit(browser, setup="Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    visit.open(address, camera=False)
    visit.page.click("#start-camera")
    visit.wait_for_text("#no-camera", "ssh -L")
    picture = tmp_path / "blank.jpg"
    picture.write_bytes(encode(np.full((64, 64, 3), 90, np.uint8), 64, 90))
    visit.page.set_input_files("#picture-file", picture)
    visit.page.wait_for_selector("#canvas:not([hidden])")
    visit.ask("How many circles are there?")
    visit.page.wait_for_selector(".turn img")
    assert visit.page.is_hidden("#about"), "the conversation has the room"
    visit.page.click("#about-button")
    assert "drawn scenes only" in visit.text("#about")
    visit.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits(
    browser: Browser, address: str, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=INSTALL).Axe()
    visit = Visit(browser, size)
    page = visit.page
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")

    def look(name: str) -> None:
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        page.screenshot(path=tmp_path / f"{name}.png")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, "the page scrolls sideways"

    visit.open(address)
    look("begin")
    for question in ("Where is the circle?", "How many circles are there?", "What colour is the star?"):
        visit.ask(question)
    page.click("#fork")
    visit.wait_for_text("[role=tab][aria-selected=true]", "Fork 1")
    page.click("#watch")
    page.wait_for_selector("#watch[aria-checked=true]")
    visit.until("Number(document.getElementById('age').textContent) > 100")
    assert visit.ask("What is at the bottom left?") == "yellow circle"
    look("conversation")
    last = page.locator(".turn").last.bounding_box()
    form = page.locator("#form").bounding_box()
    assert last is not None
    assert form is not None
    assert last["y"] + last["height"] <= form["y"] + 1, "the last answer is in sight, above the question"
    visit.close()


def test_the_theme_can_be_chosen_and_is_kept(visit: Visit) -> None:
    page = visit.page
    page.emulate_media(color_scheme="light")
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.click("#theme")
    page.click("#theme")
    assert visit.text("#theme") == "Theme: dark"
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    assert visit.text("#theme") == "Theme: dark"
    assert page.evaluate(colour) == dark
