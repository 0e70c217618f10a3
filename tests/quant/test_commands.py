"""`python -m quant` and tasks: what people type, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.demo.task import main as write_task
from quant.__main__ import main
from quant.task import answer_both, read_task
from runtime.bundle import Bundle
from runtime.errors import InputError


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    assert write_task([str(folder), "--scenes", "2"]) == 0
    return folder


def test_apply_and_report(float_demo: Bundle, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture, figures = tmp_path / "out", tmp_path / "drift.png", tmp_path / "figures.json"
    arguments = [str(float_demo.path), "--int4", "--calibrate", str(task), "--out", str(out), "--threads", "1"]
    assert main(["apply", *arguments, "--drift", "100", "--task", str(task)]) == 0
    text = capsys.readouterr()
    assert "100 tokens" in text.out and "same first choice" in text.out and "2 of 2 pictures" in text.err
    assert Bundle.open(out).manifest.precision == "int4"
    assert main(["report", str(out)]) == 0
    text = capsys.readouterr()
    assert "head.head" in text.out and "when it was made" in text.out and "100 tokens" in text.out
    arguments = [str(out), "--against", str(float_demo.path), "--drift", "60", "--plot", str(picture)]
    assert main(["report", *arguments, "--weights-only", "--threads", "1", "--json", str(figures)]) == 0
    assert "weights only" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = json.loads(figures.read_text())
    assert len(data["stages"]) == len(data["weights_only"]) == 2 and data["matrices"][0]["snr"] > 10


def test_errors_are_told_without_a_traceback(
    float_demo: Bundle, demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = str(float_demo.path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, expected in (
        (["report", exact], "wanted: a bundle in int8 or int4"),
        (["report", str(tmp_path)], "manifest.json"),
        (["apply", str(demo_bundle), "--int4", "--out", str(tmp_path / "out")], "wanted: a float bundle"),
        (["apply", exact, "--int4", "--out", str(tmp_path / "out"), "--calibrate", str(empty)], "no pictures"),
        (["apply", exact, "--recipe", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")], "none.json"),
        (["apply", exact, "--int8", "--out", str(tmp_path / "out"), "--task", str(empty)], "cannot read the task"),
        (["try", exact, "--loss", "-1"], "a loss of -1"),
    ):
        assert main(arguments) == 1, arguments
        text = capsys.readouterr().err
        assert expected in text and "Traceback" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_ctrl_c(float_demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quant.commands.gate", interrupt)
    assert main(["apply", str(float_demo.path), "--int8", "--out", str(tmp_path / "out"), "--threads", "1"]) == 130
    assert not list(tmp_path.iterdir())


def test_answers_are_counted(float_demo: Bundle, demo_bundle: Path, task: Path) -> None:
    items = read_task(task)[:8]
    result = answer_both(float_demo, Bundle.open(demo_bundle), items, threads=1)
    assert (result.asked, result.positions) >= (8, 8) and result.exact >= 6
    assert result.agreement > 0.9 and result.alike >= 7
    with_wrong = [*items[:4], *(type(item)(item.question, "no such answer", item.image) for item in items[4:])]
    assert answer_both(float_demo, float_demo, with_wrong, threads=1).exact <= 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("{", "line 1 is not JSON"),
        ('{"question": "a"}', "line 1 is"),
        ('{"question": "a", "answer": "b", "image": "none.png"}', "there is no picture"),
        ('{"question": "a", "answer": 3}', "line 1 is"),
        ('{"question": "a", "answer": "b"}\n[]', "line 2 is"),
    ],
)
def test_bad_tasks(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        read_task(tmp_path)
