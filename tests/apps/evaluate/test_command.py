"""The whole command on stand-ins for bundles: scores, comparison, resuming, pages and submission files."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from apps.evaluate import short_answers, source
from apps.evaluate.__main__ import main, parser
from runtime.errors import InputError
from tests.apps.evaluate.minis import MINIS, Model, Session, model_for, write_lines

NO_PICTURE = base64.b64encode(b"hello" * 40).decode()
FILE = {"vqav2": "validation.jsonl", "pope": "test.jsonl", "mmbench": "en/dev.jsonl", "mme": "test.jsonl"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task, file in FILE.items():
        write_lines(tmp_path / "data" / task / file, MINIS[task]()[0])
    return tmp_path / "data"


def bundle(folder: Path, name: str = "one") -> str:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "manifest.json").write_text("{}")
    return str(folder / name)


def run(folder: Path, models: Sequence[Model], *options: str, task: str = "pope") -> tuple[int, list[dict[str, Any]]]:
    names = ["one", "two", "three"][: len(models)]
    by_name = dict(zip(names, models, strict=True))
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    command = [bundle(folder, name) for name in names] + ["--task", task, "--data", str(folder / "data")]
    command += ["--out", str(folder / "out"), "--json", str(out), "--batch", "2", *options]
    code = main(command, load=lambda path, *_, **__: by_name[path.name])  # type: ignore[arg-type,return-value]
    return code, json.loads(out.read_text()) if out.exists() else []


def test_a_score_beside_the_papers(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_for("pope", *MINIS["pope"]())
    code, (found,) = run(tmp_path, [model])
    assert code == 0 and found["questions"] == 12 and found["published"] == 83.2
    assert found["figures"]["accuracy"]["value"] == pytest.approx(4 / 12)
    assert found["figures"]["accuracy"]["low"] < 4 / 12 < found["figures"]["accuracy"]["high"]
    assert set(found["tags"]) == {"adversarial", "popular", "random"}
    assert found["run"]["questions"] == 12 and found["run"]["tokens"] > 12
    printed = capsys.readouterr().out
    assert "f1_official" in printed and "83.2" in printed


def test_two_bundles_are_compared_question_by_question(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, answers = MINIS["vqav2"]()
    better = [row["answers"][-1]["answer"] for row in rows]
    models = [model_for("vqav2", rows, answers), model_for("vqav2", rows, better)]
    code, found = run(tmp_path, models, "--inspect", "5", task="vqav2")
    assert code == 0 and [one["bundle"] for one in found] == ["one", "two"] and "difference" not in found[0]
    gap = found[1]["difference"]
    values = [one["figures"]["accuracy"]["value"] for one in found]
    assert gap["value"] == pytest.approx(values[1] - values[0]) and gap["low"] <= gap["value"] <= gap["high"]
    assert "difference" in capsys.readouterr().out
    shown = (tmp_path / "out" / "vqav2.html").read_text()
    assert shown.count("<article>") == 5 and "data:image/jpeg;base64," in shown and "http" not in shown


def test_a_page_shows_text_as_text(tmp_path: Path, data: Path) -> None:
    rows, answers = MINIS["pope"]()
    rows[0]["question"] = 'Is there a <script>alert(1)</script> & "more"?'
    write_lines(data / "pope" / "test.jsonl", rows)
    answers[0] = "<img src=x onerror=alert(2)>"
    code, _ = run(tmp_path, [model_for("pope", rows, answers)], "--inspect", "12")
    shown = (tmp_path / "out" / "pope.html").read_text()
    assert code == 0 and "<script" not in shown and "onerror=alert(2)&gt;" in shown and "<img src=x" not in shown
    assert shown.index('class="wrong"') < shown.index('class="right"')  # what is worth a look comes first


class Stopping(Session):
    """Is interrupted after so many answers."""

    def ask(self, question: str, images: Any, options: Any) -> Any:
        if len(self.model.asked) >= self.model.patience:  # type: ignore[attr-defined]
            raise self.model.end  # type: ignore[attr-defined]
        return super().ask(question, images, options)


class Impatient(Model):
    """Answers some questions, then something happens."""

    def __init__(self, answers: Any, patience: int, end: BaseException) -> None:
        super().__init__(answers)
        self.patience, self.end = patience, end

    def session(self) -> Session:
        return Stopping(self)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, answers = MINIS["vqav2"]()
    said = dict(enumerate(answers))
    code, whole = run(tmp_path, [Model(said)], "--out", str(tmp_path / "other"), task="vqav2")
    first = Impatient(said, 7, KeyboardInterrupt())
    assert run(tmp_path, [first], task="vqav2") == (130, [])
    assert "same command goes on" in capsys.readouterr().err
    kept = tmp_path / "out" / "one" / "vqav2.jsonl"
    lines = kept.read_text().splitlines()
    assert 1 < len(lines) < len(rows)
    kept.write_text("\n".join(lines) + '\n{"key": "1')  # and a line that a kill left half written
    second = Model(said)
    code, found = run(tmp_path, [second], task="vqav2")
    assert code == 0 and len(second.asked) == len(rows) - len(lines) + 1
    assert found[0]["figures"] == whole[0]["figures"] and found[0]["tags"] == whole[0]["tags"]
    third = Model(said)
    assert run(tmp_path, [third], task="vqav2")[0] == 0 and not third.asked


def test_answers_to_something_else_are_not_used(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, answers = MINIS["pope"]()
    assert run(tmp_path, [model_for("pope", rows, answers)])[0] == 0
    assert run(tmp_path, [model_for("pope", rows, answers)], "--max-tokens", "5")[0] == 1
    assert "was begun with max_tokens 128" in capsys.readouterr().err
    other = model_for("pope", rows, answers)
    other.manifest.fingerprint = "another"
    assert run(tmp_path, [other])[0] == 1
    rows[2]["question"] = "Is there something else?"
    write_lines(data / "pope" / "test.jsonl", rows)
    assert run(tmp_path, [model_for("pope", rows, answers)])[0] == 1
    assert "1 questions of POPE are others now" in capsys.readouterr().err
    assert run(tmp_path, [model_for("pope", rows, answers)], "--fresh")[0] == 0
    (tmp_path / "out" / "one" / "pope.jsonl").write_text("hello\n")
    assert run(tmp_path, [model_for("pope", rows, answers)])[0] == 1


def test_bad_rows_are_listed_and_too_many_refused(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, answers = MINIS["vqav2"]()
    write_lines(data / "vqav2" / "validation.jsonl", [{**rows[0], "image": NO_PICTURE}, *rows[1:]])  # no picture
    assert run(tmp_path, [model_for("vqav2", rows, answers)], task="vqav2") == (1, [])
    assert "1 of 19 rows of VQA-v2 are bad" in capsys.readouterr().err
    code, (found,) = run(tmp_path, [model_for("vqav2", rows, answers)], "--max-bad", "10", task="vqav2")
    assert code == 0 and found["questions"] == len(rows) - 1
    assert [p["where"] for p in found["problems"]] == ["question 100"]
    assert "1 rows are not scored" in capsys.readouterr().out


def test_a_pair_with_one_bad_picture_is_not_judged(tmp_path: Path, data: Path) -> None:
    rows, answers = MINIS["mme"]()
    write_lines(data / "mme" / "test.jsonl", [{**rows[0], "image": NO_PICTURE}, *rows[1:]])
    code, (found,) = run(tmp_path, [model_for("mme", rows, answers)], "--max-bad", "50", task="mme")
    assert code == 0 and found["questions"] == len(rows) - 2


def test_an_error_of_the_model_ends_the_run(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Impatient(dict(enumerate(MINIS["pope"]()[1])), 3, RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(tmp_path, [broken])
    refused = Impatient(dict(enumerate(MINIS["pope"]()[1])), 3, InputError("no such token"))
    assert run(tmp_path, [refused])[0] == 1
    assert "no such token" in capsys.readouterr().err


def test_files_for_the_servers(tmp_path: Path, data: Path) -> None:
    rows, answers = MINIS["mmbench"]()
    assert run(tmp_path, [model_for("mmbench", rows, answers)], "--submit", task="mmbench")[0] == 0
    with zipfile.ZipFile(tmp_path / "out" / "one" / "mmbench-submission.xlsx") as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    lines = [{c.get("r", "")[0]: "".join(c.itertext()) for c in row} for row in sheet.iter(f"{space}row")]
    assert list(lines[0].values()) == [
        "question", "A", "B", "C", "D", "prediction", "category", "l2-category", "split", "index",
    ]  # fmt: skip
    assert [line["F"] for line in lines[1:]] == answers and lines[-1]["J"] == str(rows[-1]["index"])


def test_a_test_split_without_answers(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, answers = MINIS["vqav2"]()
    write_lines(data / "vqav2" / "testdev.jsonl", [{k: v for k, v in row.items() if k != "answers"} for row in rows])
    options = ("--split", "testdev", "--submit")
    code, (found,) = run(tmp_path, [model_for("vqav2", rows, answers)], *options, task="vqav2")
    assert code == 0 and found["questions"] == 0 and found["unscored"] == len(rows) and found["figures"] == {}
    written = json.loads((tmp_path / "out" / "one" / "vqav2-submission.json").read_text())
    assert len(written) == len(rows) and written[2] == {"question_id": 102, "answer": "2"}
    assert "19 answers are not scored" in capsys.readouterr().out


def test_wrong_options(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = [model_for("pope", *MINIS["pope"]())]
    for options in (("--batch", "0"), ("--limit", "0"), ("--task", "nothing")):
        assert run(tmp_path, model, *options)[0] == 1
    assert main([bundle(tmp_path), "--task", "pope"]) == 1
    assert "no --data" in capsys.readouterr().err
    assert main([bundle(tmp_path), bundle(tmp_path), "--task", "demo"]) == 1
    assert "the same bundle twice" in capsys.readouterr().err
    assert main(["--task", "demo"]) == 1
    assert main([str(tmp_path / "none"), "--task", "demo"]) == 1
    assert main(["--list"]) == 0
    assert "mmbench_cn" in capsys.readouterr().out


def test_help_teaches() -> None:
    text = parser().format_help()
    assert "examples:" in text and "--list" in text and "Ctrl-C" not in text.split("examples:")[1]


def test_pictures_are_read_as_they_are_asked_about(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is never ahead of the answers by more than the questions under way."""
    rows = [{**MINIS["vqav2"]()[0][0], "question_id": n, "question": f"q{n}"} for n in range(60)]
    write_lines(data / "vqav2" / "validation.jsonl", rows)
    opened, ahead = list[int](), list[int]()

    def counting(value: Any, folders: Any, pictures: bool) -> Any:
        opened.extend([1] * pictures)
        return source.opened(value, folders, pictures)

    class Counting(Model):
        def says(self, number: int, question: str) -> str:
            ahead.append(len(opened) - len(ahead))
            return "yes"

    monkeypatch.setattr(short_answers, "opened", counting)
    assert run(tmp_path, [Counting({})], task="vqav2")[0] == 0
    assert len(ahead) == 60 and max(ahead) <= 2
