"""The documentation: its commands and programs run, its messages exist, its site builds without a word."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest

from apps.cli import VERBS
from runtime.bundle import Bundle
from tests.docs.pages import DOCS, NEEDS, ROOT, Block, blocks, pages

SERVED = "127.0.0.1:8000"  # the server's usual address
ALL = [block for page in pages() for block in blocks(page)]
RUN = [page for page in pages() if any(b.language in ("bash", "python") and not b.title for b in blocks(page))]


def tree(folder: Path) -> dict[str, str]:
    """Lay out a folder that looks like the repository; returns the environment to run commands in."""
    for entry in ROOT.iterdir():
        if entry.name not in ("build", "dist") and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    (folder / "build").mkdir()
    (folder / "pictures").mkdir()
    capture = cv2.VideoCapture(str(ROOT / "apps" / "demo" / "sample.mp4"))
    for name in ("picture.png", "pictures/1.png", "pictures/2.png"):
        good, frame = capture.read()
        assert good
        cv2.imwrite(str(folder / name), frame)
    capture.release()
    tools = folder / ".tools"
    tools.mkdir()
    for name, words in (("python", ""), ("visualrwkv", " -m apps")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page: str, folder: Path, environment: dict[str, str], address: str = SERVED) -> str:
    """Run a page's commands one after the other, then its programs as one."""
    printed = ""
    for block in blocks(page):
        if block.language == "bash" and not block.title:
            text = block.text.replace(SERVED, address)
            printed += run(["bash", "-euo", "pipefail", "-c", text], folder, environment)
    program = "\n".join(b.text for b in blocks(page) if b.language == "python" and not b.title)
    program = program.replace(SERVED, address)
    return printed + (run([sys.executable, "-c", program], folder, environment) if program else "")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if page != "tutorial.md"])
def test_what_a_page_says_works(
    page: str, demo_bundle: Path, float_demo: Bundle, tmp_path: Path, server: Callable[[Path], str]
) -> None:
    if page == "server.md":
        for package in ("fastapi", "uvicorn", "openai"):
            pytest.importorskip(package, reason='pip install ".[serve]" openai')
    environment = tree(tmp_path)
    (tmp_path / "build" / "demo-int8-cpu").symlink_to(demo_bundle)
    text = (DOCS / page).read_text(encoding="utf-8")
    if "demo-fp32-cpu" in text:
        (tmp_path / "build" / "demo-fp32-cpu").symlink_to(float_demo.path)
    run_page(page, tmp_path, environment, server(demo_bundle) if SERVED in text else SERVED)


@pytest.fixture
def server() -> Iterator[Callable[[Path], str]]:
    """Serve a bundle on a free port; returns its address in the place of `SERVED`."""
    running: list[subprocess.Popen[str]] = []

    def start(bundle: Path) -> str:
        command = [sys.executable, "-m", "apps.serve", str(bundle), "--port", "0", "--threads", "1"]
        command += ["--name", "demo-int8-cpu"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if address := re.search(r"127\.0\.0\.1:\d+", line):
                return address[0]
        raise AssertionError("the server ended")

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_the_tutorial_from_nothing(tmp_path: Path) -> None:
    """As a new user follows it: nothing has been exported."""
    printed = run_page("tutorial.md", tmp_path, tree(tmp_path))
    assert "[yes ] fits" in printed
    assert "10 of 10 right" in printed
    assert "ms to the first token" in printed
    assert (tmp_path / "scene.state").is_file()


@pytest.mark.parametrize("block", ALL, ids=lambda b: f"{b.page}-{b.text[:20]!r}")
def test_blocks_say_what_they_are(block: Block) -> None:
    assert block.language in ("bash", "python", "json", "text"), f"{block.page} has a block in {block.language}"
    if block.title:
        assert NEEDS.fullmatch(block.title), f"{block.page}: {block.title}"
    else:
        assert ("sudo" not in block.text and "pip install" not in block.text) or block.language != "bash"


OURS = sorted({(b.page, *command) for b in ALL if b.language == "bash" for command in b.commands})


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_every_option_exists(command: tuple[str, ...]) -> None:
    """Also in the blocks that need what is not here."""
    page, program, *words = command
    if program == "visualrwkv":
        if words[0] in ("--help", "--version"):
            return
        assert words[0] in VERBS, f"{page} has a verb that does not exist"
        module, words = VERBS[words[0]].module, words[1:]
    else:
        module, words = words[1], words[2:]
    if module == "venv":
        return
    found = importlib.import_module(module)
    if not hasattr(found, "parser") and hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    if "--help" not in words and hasattr(found, "parser"):
        found.parser().parse_args(words)  # exits, and so fails, for an option that does not exist


def test_what_is_installed_is_offered() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r"pip install [^\n`]*\.\[([a-z,]+)\]", "\n".join(b.text for b in ALL if b.language == "bash"))
    assert named
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extras in named for extra in extras.split(","))


def sources() -> Iterator[str]:
    for package in ("apps", "export", "quant", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            yield re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # texts go on in the next line


def test_every_message_is_one_that_is_raised() -> None:
    everything = "\n".join(sources())
    messages = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        fragments = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
        assert re.search(r"[^\n]*\{[^\n]*".join(fragments), everything), f"nothing says {message!r}"


def test_every_verb_is_listed() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `python -m ([\w.]+)` \|", (DOCS / "commands.md").read_text(), re.MULTILINE)
    assert {verb: module.removesuffix(".__main__") for verb, module in rows} == {
        name: verb.module.removesuffix(".__main__") for name, verb in VERBS.items()
    }


def test_every_adapter_is_in_the_table_and_the_reference() -> None:
    from apps import robot

    guide, reference = ((DOCS / name).read_text(encoding="utf-8") for name in ("robots.md", "api/robot.md"))
    for name in ("v4l2", "rtsp", "csi", "gstreamer", "video", "folder", "arrays", "Pairs", "Mailbox"):
        assert f"`{name}(" in guide
    described = {entry.rpartition(".")[2] for entry in re.findall(r"^::: (\S+)$", reference, re.MULTILINE)}
    assert set(robot.__all__) - {"GStreamerSource"} <= described


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='pip install ".[docs]"')
    pytest.importorskip("material", reason='pip install ".[docs]"')
    pytest.importorskip("mkdocstrings", reason='pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) >= len(pages())
    for page in built:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?([^\"' >]+)", html)
        loaded += re.findall(r"<link[^>]* rel=[\"']?stylesheet[\"']? [^>]*href=[\"']?([^\"' >]+)", html)
        loaded += re.findall(r"<link[^>]* href=[\"']?([^\"' >]+)[^>]*rel=[\"']?(?:stylesheet|icon|preconnect)", html)
        away = [address for address in loaded if "//" in address and not address.startswith("data:")]
        assert away == [], page
    for style in tmp_path.rglob("*.css"):
        away = re.findall(r"url\([\"']?(?:https?:)?//[^)]+|@import [^;]+", style.read_text(encoding="utf-8"))
        assert away == [], style
