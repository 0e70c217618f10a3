"""What the documentation tells people to type: every fenced block is parsed, every command in it checked."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import pytest

from apps.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
MODULES = (
    "export",
    "apps.chat",
    "apps.demo.evaluate",
    "apps.demo.watching",
    "apps.doctor",
    "apps.evaluate",
    "apps.evaluate.lmms",
    "apps.inspect",
    "apps.serve",
    "apps.webcam_qa",
    "plugins_trt",
    "runtime",
)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield document and content of its fenced blocks in `language` ("" for those without)."""
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for found, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if found == language:
                yield document, block


COMMANDS = sorted({(d, line) for d, block in blocks("bash") for line in block.splitlines() if line.strip()})


@lru_cache
def help_of(module: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_two_commands_come_first() -> None:
    _, first = next(blocks("bash"))
    assert first.split("\n")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("module", MODULES)
def test_help_teaches(module: str) -> None:
    assert f"python -m {module}" in help_of(module)
    assert "examples:" in help_of(module)


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_every_command_is_one_we_have(document: str, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        (target,) = [a for a in arguments if "=" not in a]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        assert arguments[0] == "install"
        extras = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", arguments[1])
        assert extras, "installs this project"
        declared = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{e} = \[", declared, re.MULTILINE) for e in (extras[1] or "dev").split(","))
    else:
        if program == "visualrwkv":
            module, options = VERBS[arguments[0]].module, arguments[1:]
        else:
            assert (program, arguments[0]) == ("python", "-m"), f"unknown command in {document}"
            module, options = arguments[1], arguments[2:]
            assert module in MODULES
        found = importlib.import_module(module)
        if not hasattr(found, "parser"):
            found = importlib.import_module(f"{module}.__main__")
        found.parser().parse_args(options)  # exits, and so fails, for an option that does not exist


def test_python_blocks_use_names_that_exist() -> None:
    import runtime

    snippets = [block for _, block in blocks("python")]
    assert snippets
    for snippet in snippets:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module == "runtime":
                assert {alias.name for alias in node.names} <= set(runtime.__all__)


@contextmanager
def serving(bundle: Path) -> Iterator[int]:
    """Serve a bundle as the README does, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "apps.serve", str(bundle), "--port", str(port), "--name", "demo-int8-cpu"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                break
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def test_the_quickstart_answers(demo_bundle: Path, tmp_path: Path) -> None:
    """Runs the README's Python blocks as they stand, with the demo bundle and a picture in their places."""
    import cv2

    capture = cv2.VideoCapture(str(ROOT / "apps" / "demo" / "sample.mp4"))
    good, frame = capture.read()
    capture.release()
    assert good
    cv2.imwrite(str(tmp_path / "picture.png"), frame)
    (tmp_path / "street.mp4").symlink_to(ROOT / "apps" / "demo" / "sample.mp4")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "demo-int8-cpu").symlink_to(demo_bundle)
    snippet = "\n".join(block for document, block in blocks("python") if document == "README.md")
    with serving(demo_bundle) as port:
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{snippet.replace('8000', str(port))}",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert result.returncode == 0, result.stderr
    assert "ttft_s=" in result.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_the_folders_of_the_house_exist() -> None:
    (house,) = [block for _, block in blocks("") if "plugins_trt/" in block]
    folders = re.findall(r"^(\w+)/", house, re.MULTILINE)
    house_of = {"export", "quant", "plugins_trt", "runtime", "apps", "tests", "benchmarks", "docs", "examples"}
    assert house_of == set(folders)
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_table_of_models_is_the_exporters() -> None:
    from export.variants import table

    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")
