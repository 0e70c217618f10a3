"""Reading benchmarks: public schemas, the question files of the official scripts, and rows that are bad."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from apps.evaluate.sample import Sample, open_picture
from apps.evaluate.source import LETTER, SHORT, Data, Notes
from apps.evaluate.tasks import TASKS, Plan, plan, tasks_of
from runtime.errors import ConfigError
from tests.apps.evaluate.minis import MINIS, number_of, png, write_lines, write_parquet, write_public

LINES = {
    "vqav2": "validation.jsonl", "gqa": "testdev.jsonl", "scienceqa": "test.jsonl", "textvqa": "validation.jsonl",
    "pope": "test.jsonl", "mme": "test.jsonl", "mmbench": "en/dev.jsonl", "mmbench_cn": "cn/dev.jsonl",
}  # fmt: skip


def read(task: str, folder: Path, **options: Any) -> Plan:
    return plan(TASKS[task], Data(folder, **options))


def pictured(task: str, folder: Path, **options: Any) -> list[Sample]:
    rows = TASKS[task].source.read(Data(folder, **options), True, Notes())
    return [row for row in rows if isinstance(row, Sample)]


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


@pytest.mark.parametrize("task", MINIS)
def test_parquet_and_lines_are_the_same_questions(task: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows, _ = MINIS[task]()
    write_public(tmp_path / "parquet", task, rows)
    if task == "gqa":
        names = list(dict.fromkeys(row["imageId"] for row in rows))
        images(tmp_path / "lines" / task / "images", *(f"{name}.jpg" for name in names))
    write_lines(tmp_path / "lines" / task / LINES[task], rows, pictures=task != "gqa")
    found, same = (read(task, tmp_path / kind) for kind in ("parquet", "lines"))
    assert sorted(found.samples, key=lambda s: s.key) == sorted(same.samples, key=lambda s: s.key)
    assert len(found.samples) == len(rows) and not found.problems and not found.notes.unknown
    assert not any(sample.pictures for sample in found.samples)
    shown = {s.key: number_of(open_picture(s.pictures[0])) for s in pictured(task, tmp_path / "parquet")}
    if task == "gqa":  # in the order in which pictures are stored, each for its own questions
        assert list(shown.values()) == [1002, 1002, 1001, 1001, 1000, 1000]
        assert {f"2012{i}": 1000 + i // 2 for i in range(6)} == shown
    else:
        assert list(shown.values()) == list(range(len(rows)))
    assert len(pictured(task, tmp_path / "lines")) == len(rows)


def test_official_prompts(tmp_path: Path) -> None:
    for task, file in LINES.items():
        rows, _ = MINIS[task]()
        write_lines(tmp_path / task / file, rows[:2])
    asked = {task: read(task, tmp_path).samples[1].question for task in LINES if task != "gqa"}
    assert asked["vqav2"] == f"What is in picture 1?\n{SHORT}"
    assert asked["textvqa"] == f"what does the SIGN 1 say?\nReference OCR token: STOP, HERE\n{SHORT}"
    assert asked["pope"] == f"Is there a thing 1 in the image?\n{SHORT}"
    assert asked["mme"] == f"Is there a 1?\n{SHORT}"
    assert asked["scienceqa"].startswith("Context: Look closely.\nWhich is 1?\nA. choice 0 of 1\nB. ")
    assert asked["scienceqa"].endswith(f"D. choice 3 of 1\n{LETTER}")
    assert asked["mmbench"] == f"What is 0?\nA. dog\nB. horse\nC. cow\nD. cat\n{LETTER}"
    assert asked["mmbench_cn"].endswith("D. cat\n请直接回答选项字母。")


def test_question_files_of_vqav2(tmp_path: Path) -> None:
    images(tmp_path / "vqav2" / "test2015", "a.jpg", "b.jpg")
    text = f"What?\n{SHORT}"
    row = {"text": text, "category": "default"}
    asked = [{**row, "question_id": i, "image": f"{'ab'[i]}.jpg"} for i in (0, 1)]
    write_lines(tmp_path / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl", asked)
    found = read("vqav2", tmp_path)
    assert [(s.key, s.question, s.reference) for s in found.samples] == [("0", text, None), ("1", text, None)]
    truth = {"annotations": [{"question_id": 1, "answers": [{"answer": "x", "answer_id": 1}]}]}
    save(tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json", truth)
    assert [s.reference for s in read("vqav2", tmp_path).samples] == [None, ["x"]]
    assert [number_of(open_picture(s.pictures[0])) for s in pictured("vqav2", tmp_path)] == [0, 1]


def test_question_files_of_gqa(tmp_path: Path) -> None:
    images(tmp_path / "images" / "gqa" / "images", "n1.jpg")
    write_lines(tmp_path / "eval" / "gqa" / "llava_gqa_testdev_balanced.jsonl",
                [{"question_id": "7", "image": "n1.jpg", "text": f"Red?\n{SHORT}", "category": "default"}])  # fmt: skip
    save(tmp_path / "eval" / "gqa" / "testdev_balanced_questions.json", {"7": {"answer": "yes", "question": "Red?"}})
    assert [(s.key, s.reference, s.group) for s in read("gqa", tmp_path).samples] == [("7", "yes", "n1.jpg")]
    assert number_of(open_picture(pictured("gqa", tmp_path)[0].pictures[0])) == 0


def test_question_files_of_textvqa(tmp_path: Path) -> None:
    images(tmp_path / "pics", "i9.jpg")
    text = f"what is it?\nReference OCR token: A\n{SHORT}"
    save(tmp_path / "llava_textvqa_val_v051_ocr.jsonl",
         json.dumps({"question_id": "i9", "image": "i9.jpg", "text": text, "category": "default"}))  # fmt: skip
    row = {"image_id": "i9", "question": "What is it?", "question_id": 1, "answers": ["a"] * 10}
    save(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    (found,) = read("textvqa", tmp_path, images=tmp_path / "pics").samples
    assert (found.question, found.reference) == (text, ["a"] * 10)


def test_question_files_of_pope(tmp_path: Path) -> None:
    images(tmp_path / "pope" / "val2014", "a.jpg")
    row = {"image": "a.jpg", "category": "random"}
    asked = [{**row, "question_id": i, "text": f"Is it {i}?\n{SHORT}"} for i in range(3)]
    write_lines(tmp_path / "pope" / "llava_pope_test.jsonl", asked)
    labels = [{"text": f"Is it {i if i < 2 else 'so'}?", "label": ("yes", "no")[i % 2]} for i in range(3)]
    save(tmp_path / "pope" / "coco" / "coco_pope_random.json", "\n".join(map(json.dumps, labels)))
    found = read("pope", tmp_path)
    assert [(s.key, s.reference) for s in found.samples] == [("0", "yes"), ("1", "no")]
    assert "asks 'Is it so?'" in found.problems[0].what  # labels go by order, but not blindly


def test_question_files_of_mme(tmp_path: Path) -> None:
    release = tmp_path / "mme" / "MME_Benchmark_release_version"
    images(release, "OCR/1.jpg", "count/images/2.jpg")
    save(release / "OCR" / "1.txt", "Is it A? Please answer yes or no.\tYes\nIs it B? Please answer yes or no.\tNo\n")
    save(release / "count" / "questions_answers_YN" / "2.txt", "One? Please answer yes or no.\tNo\n")
    row = {"question_id": "OCR/1.jpg", "image": "OCR/1.jpg", "category": "OCR"}
    asked = [{**row, "text": f"Is it {letter}?\n{SHORT}"} for letter in "AB"]
    row = {"question_id": "count/2.jpg", "image": "count/images/2.jpg", "category": "count"}
    asked.append({**row, "text": f"One?\n{SHORT}"})
    write_lines(tmp_path / "mme" / "llava_mme.jsonl", asked)
    found = read("mme", tmp_path)
    assert [(s.group, s.reference) for s in found.samples] == [("OCR/1.jpg", "yes"), ("OCR/1.jpg", "no")]
    assert [p.what for p in found.problems] == ["1 of the picture's 2 questions"]


def test_question_files_of_scienceqa(tmp_path: Path) -> None:
    images(tmp_path / "scienceqa" / "images" / "test", "5/image.png")
    turns = [{"from": "human", "value": "<image>\nContext: N/A\nWhich?"}, {"from": "gpt", "value": "B"}]
    asked = [{"id": "5", "image": "5/image.png", "conversations": turns}, {"id": "6", "conversations": turns}]
    save(tmp_path / "scienceqa" / "llava_test_CQM-A.json", asked)
    save(tmp_path / "scienceqa" / "problems.json", {"5": {"choices": ["x", "y"], "answer": 1}, "6": {}})
    (found,) = read("scienceqa", tmp_path).samples  # the one without a picture is not of this benchmark
    assert (found.key, found.question, found.reference) == ("5", "Context: N/A\nWhich?", "B")


def test_question_files_of_mmbench(tmp_path: Path) -> None:
    picture = base64.b64encode(png(3)).decode()
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n"
    rows = f"8\tWhich?\t\tcat\tdog\t\t\tB\tocr\t{picture}\ts\tl\t\tdev\n"
    rows += "1000008\tWhich?\t\tdog\tcat\t\t\tA\tocr\t8\ts\tl\t\tdev\n"
    save(tmp_path / "mmbench" / "mmbench_dev_20230712.tsv", head + rows + "9\tshort\n")
    found = read("mmbench", tmp_path)
    assert [(s.key, s.group, s.reference["answer"]) for s in found.samples] == [("8", "8", "B"), ("1000008", "8", "A")]
    assert [p.what for p in found.problems] == ["fewer fields than the header"]
    assert [number_of(open_picture(s.pictures[0])) for s in pictured("mmbench", tmp_path)] == [3, 3]


def bad_rows() -> dict[str, tuple[str, dict[str, Any], str]]:
    return {
        "no question": ("vqav2", {"question": None}, "question is None"),
        "answers are no list": ("vqav2", {"answers": 5}, "answers of type int"),
        "no category": ("pope", {"category": "rare"}, "category 'rare'"),
        "neither yes nor no": ("pope", {"answer": "perhaps"}, "wanted: yes or no"),
        "another category": ("mme", {"category": "cooking"}, "category 'cooking'"),
        "answer out of range": ("scienceqa", {"answer": 7}, "whole number from 0 to 3"),
        "answer is no option": ("mmbench", {"answer": "E"}, "one of A, B, C, D"),
        "one option": ("mmbench", {"B": None, "C": None, "D": None}, "1 options"),
        "picture is no base64": ("textvqa", {"image": "?" * 2000}, "no picture"),
        "no such picture": ("textvqa", {"image": "gone.jpg"}, "no picture 'gone.jpg'"),
        "nothing": ("textvqa", {"image": ""}, "no picture"),
    }


@pytest.mark.parametrize("name", bad_rows())
def test_a_bad_row_is_listed_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    task, change, message = bad_rows()[name]
    rows, _ = MINIS[task]()
    write_lines(tmp_path / LINES[task], [{**rows[0], **change}, *rows[1:]])
    found = read(task, tmp_path)
    assert any(message in problem.what for problem in found.problems), found.problems
    lost = sum(s.group == rows[0].get("question_id") for s in found.samples) if task == "mme" else 0
    assert not lost and 0 < len(found.samples) < len(rows)
    if task in ("mme", "mmbench"):  # a group that is not whole cannot be judged
        assert not any(sample.group in found.broken for sample in found.samples)


def test_lines_that_are_no_rows_are_listed(tmp_path: Path) -> None:
    rows, _ = MINIS["vqav2"]()
    write_lines(tmp_path / "validation.jsonl", rows[:3])
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write('{"question_id": 5\n[1, 2]\n"text"\n\n')
        file.write(json.dumps({"question_id": 100, "question": "again", "image": "x", "answers": []}) + "\n")
    found = read("vqav2", tmp_path)
    assert len(found.samples) == 3 and len(found.problems) == 4
    assert [p.where for p in found.problems[:3]] == [f"validation.jsonl:{line}" for line in (4, 5, 6)]


def test_twice_the_same_question_is_no_two_questions(tmp_path: Path) -> None:
    rows, _ = MINIS["vqav2"]()
    write_lines(tmp_path / "validation.jsonl", [*rows, rows[0]])
    found = read("vqav2", tmp_path)
    assert len(found.samples) == len(rows) and [p.what for p in found.problems] == ["comes twice"]


def test_the_data_of_another_task_is_refused(tmp_path: Path) -> None:
    rows, _ = MINIS["mme"]()
    write_lines(tmp_path / "test.jsonl", rows)
    with pytest.raises(ConfigError, match=r"fits ScienceQA-IMG.*no choices"):
        read("scienceqa", tmp_path)
    with pytest.raises(ConfigError, match="no data for gqa"):
        read("gqa", tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        read("gqa", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"(?s)no data for mme.*split valid"):
        read("mme", tmp_path, split="valid")


def test_columns_nobody_expects_are_noted(tmp_path: Path) -> None:
    rows, _ = MINIS["pope"]()
    write_lines(tmp_path / "test.jsonl", [{**row, "mood": 1} for row in rows])
    assert read("pope", tmp_path).notes.unknown == {"mood": len(rows)}


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows, _ = MINIS["pope"]()
    write_parquet(tmp_path / "test-0.parquet", rows)
    content = (tmp_path / "test-0.parquet").read_bytes()
    (tmp_path / "test-0.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="cannot read"):
        read("pope", tmp_path)


def test_limits_count_what_stands_together(tmp_path: Path) -> None:
    for task in ("mme", "mmbench", "vqav2"):
        rows, _ = MINIS[task]()
        write_lines(tmp_path / task / LINES[task], rows)
    counts = {task: len(plan(TASKS[task], Data(tmp_path), 2).samples) for task in ("mme", "mmbench", "vqav2")}
    assert counts == {"mme": 4, "mmbench": 8, "vqav2": 2}


def test_names_of_tasks() -> None:
    assert [task.name for task in tasks_of("pope, MMBench-CN,pope")] == ["pope", "mmbench_cn"]
    with pytest.raises(ConfigError, match="vqav2, gqa"):
        tasks_of("popes")
