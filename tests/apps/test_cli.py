"""`visualrwkv`: verbs that exist, help without weight, exit codes, suggestions."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from apps import cli
from apps.cli import ALIASES, VERBS, Verb, main
from runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "cv2", "PIL", "onnxruntime", "torch", "onnx", "rich", "fastapi", "starlette", "matplotlib", "runtime")


def put(monkeypatch: pytest.MonkeyPatch, run: object) -> list[list[str]]:
    """Make `visualrwkv doctor` call `run`; returns what it was called with."""
    calls: list[list[str]] = []

    def called(argv: Sequence[str]) -> object:
        calls.append(list(argv))
        return run(argv)  # type: ignore[operator]

    module = types.ModuleType("pretended")
    module.main = called  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretended", module)
    monkeypatch.setitem(VERBS, "doctor", Verb("pretended", "", "serve"))
    return calls


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_has_a_module_with_a_main(verb: Verb) -> None:
    spec = find_spec(verb.module)
    assert spec is not None and spec.origin is not None
    assert re.search(r"^def main\(", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["help"], ["exprot"], []], ids=str)
def test_help_and_mistakes_import_next_to_nothing(argv: list[str]) -> None:
    code = (
        "import sys; before = set(sys.modules); from apps.cli import main; status = main(sys.argv[1:])\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], len(set(sys.modules) - before), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded, count, status = re.fullmatch(r"(\[.*\]) (\d+) (\d)", done.stdout.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert loaded == "[]"
    most = 200 if argv == ["--version"] else 100  # importlib.metadata brings the email parser
    assert int(count) < most, "modules imported: the time to start is theirs"
    assert int(status) == (2 if argv in (["exprot"], []) else 0)


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+) +\S", text.split("verbs:")[1].split("examples:")[0], re.MULTILINE) == list(VERBS)
    assert set(re.findall(r"^  visualrwkv (\w+)", text, re.MULTILINE)) <= set(VERBS)
    assert main([]) == 2
    assert "verbs:" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("visualrwkv-edge ")


@pytest.mark.parametrize(
    ("typed", "meant"), [("exprot", "export"), ("docter", "doctor"), ("Webcam", "webcam"), *ALIASES.items()]
)
def test_a_misspelt_verb_is_told_its_name(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_a_word_like_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyz"]) == 2
    assert "`visualrwkv --help` lists the verbs" in capsys.readouterr().err


def test_the_rest_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = put(monkeypatch, lambda argv: 1 if argv else None)
    assert main(["doctor", "a", "--b"]) == 1
    assert main(["doctor"]) == 0
    assert main(["help", "doctor"]) == 1
    assert calls == [["a", "--b"], [], ["--help"]]


def test_a_wrong_option_is_the_verbs_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--no-such-option"])
    assert stopped.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_errors_and_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> object:
        def run(argv: Sequence[str]) -> int:
            raise error

        return run

    put(monkeypatch, failing(ConfigError("three threads", wanted="two")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "visualrwkv doctor: three threads\n  wanted: two\n"
    put(monkeypatch, failing(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\n"
    put(monkeypatch, failing(ModuleNotFoundError("No module named 'fastapi'", name="fastapi.routing")))
    assert main(["doctor"]) == 1
    assert 'pip install "visualrwkv-edge[serve]"' in capsys.readouterr().err
    put(monkeypatch, failing(ModuleNotFoundError("No module named 'runtime.nothing'", name="runtime.nothing")))
    with pytest.raises(ModuleNotFoundError):
        main(["doctor"])
    put(monkeypatch, failing(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["doctor"])


def test_a_reader_that_has_seen_enough() -> None:
    """As in `visualrwkv … | head -1`."""
    code = (
        "import os, sys, types\nfrom apps import cli\nmodule = types.ModuleType('loud')\n"
        "def run(argv):\n    for _ in range(100000):\n        print('line after line')\n    return 0\n"
        "module.main = run\nsys.modules['loud'] = module\ncli.VERBS['loud'] = cli.Verb('loud', '')\n"
        "sys.exit(cli.main(['loud']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line after line\n"
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("module", ["apps", "apps.cli"])
def test_it_runs_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.strip() == cli.usage()


def test_inspect_tells_what_a_bundle_is(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    inspect = import_module("apps.inspect")
    assert inspect.main([str(demo_bundle)]) == 0
    text = capsys.readouterr().out
    assert "int8" in text and "made from             demo.safetensors" in text
    assert inspect.main([str(demo_bundle), "--json", "--sessions", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "int8" and told["memory"]["sessions"] == 3
    assert told["memory"]["total"] > told["memory"]["state"] * 3
    assert "float32" in told["weights"] and any(name.startswith("int8") for name in told["weights"])
    assert inspect.main([str(demo_bundle / "manifest.json"), "--json"]) == 1
    assert inspect.main(["nowhere"]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_inspect_hands_checkpoints_to_the_exporter(capsys: pytest.CaptureFixture[str]) -> None:
    inspect = import_module("apps.inspect")
    assert inspect.main([str(ROOT / "README.md")]) == 1
    assert capsys.readouterr().err.startswith("export: ")
