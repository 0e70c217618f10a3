"""`python -m apps.serve`, as it is typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apps.serve.__main__ import main, parser, settings_of
from apps.serve.settings import Settings
from runtime.errors import ConfigError
from tests.apps.serve.conftest import Server

ROOT = Path(__file__).resolve().parents[3]
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom apps.serve.__main__ import main\n"
)


def settings(*argv: str) -> Settings:
    return settings_of(parser().parse_args(argv))


def test_arguments_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUALRWKV_KEY", raising=False)
    assert settings() == Settings()
    found = settings(
        "model", "--max-body", "2MiB", "--state-bytes", "1GB", "--max-tokens", "100", "--origin", "http://a"
    )
    assert (found.max_body, found.state_bytes, found.tokens, found.origins) == (2 << 20, 10**9, 100, ("http://a",))
    monkeypatch.setenv("VISUALRWKV_KEY", "from-the-environment")
    assert settings("--host", "0.0.0.0").key == "from-the-environment"
    assert settings("--key", "of-the-command-line").key == "of-the-command-line"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--host", "0.0.0.0"], "no token"),
        (["--host", "0.0.0.0", "--key", "short"], "can be guessed"),
        (["--key", ""], "empty"),
        (["--slots", "0"], "slots is 0"),
        (["--timeout", "0"], "answer_s is 0"),
        (["--max-body", "much"], "memory limit"),
        (["--memory-limit", "1MB"], "below --state-bytes"),
        (["nowhere"], "there is no bundle"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISUALRWKV_KEY", raising=False)
    assert main(argv) == 1
    assert says in capsys.readouterr().err
    with pytest.raises(ConfigError):
        Settings(max_pixels=0)


def test_help_loads_no_model() -> None:
    code = "import sys, apps.serve.__main__ as m, apps.chat.__main__ as c; m.parser(); c.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "cv2", "onnxruntime", "fastapi", "uvicorn", "rich"} & set(loaded.split())


def test_from_start_to_ctrl_c(demo_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VISUALRWKV_KEY": "the-key"}
    argv = [str(demo_bundle), "--port", "0", "--threads", "1", "--slots", "2", "--name", "model"]
    argv += ["--memory-limit", "300MB", "--state-bytes", "10MB"]
    with subprocess.Popen(
        [sys.executable, "-c", f"{START}raise SystemExit(main({argv!r}))"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "with the key" in line
            server = Server(line.split(" at ")[1].split("/v1")[0])
            assert server.chat("Hello")[0] == 401
            status, answer = server.chat("How many circles are there?", headers={"Authorization": "Bearer the-key"})
            assert status == 200 and answer["choices"][0]["message"]["content"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert "stopping" in process.stdout.read()
        finally:
            process.kill()
