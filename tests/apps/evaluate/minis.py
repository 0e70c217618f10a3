"""Miniature data sets in the public schemas, and a model that says what a test wants it to say.

Every picture is a plain colour that tells which row it belongs to, so that the model knows what it is asked about.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

Rows = list[dict[str, Any]]


def png(number: int) -> bytes:
    """A picture that tells a number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(picture: np.ndarray) -> int:
    """The number that a picture (BGR) tells."""
    blue, green, red = picture[0, 0].tolist()
    assert blue == 77
    return red + 256 * green


def ten(*answers: str) -> list[str]:
    """Ten people's answers, the last repeated."""
    return [*answers, *[answers[-1]] * (10 - len(answers))]


def vqav2() -> tuple[Rows, list[str]]:
    """Soft accuracy with 0, 1, 2, 3, 4 and 10 people agreeing, and everything that normalisation does."""
    cases = [
        (ten("yes"), "Yes"), (ten("no", "yes"), "no"), (ten("2", "two", "3"), "two"), (ten("a", "a", "a", "b"), "A"),
        (ten("red", "red", "red", "red", "blue"), "red."), (ten("blue", "red"), "green"), (ten("the dog"), "dog"),
        (ten("10,000"), "10000"), (ten("don't know"), "dont know"), (ten("t-shirt"), "t shirt"), (ten("none"), "zero"),
        (ten("u.s.a."), "usa"), (ten("3.5"), "3.5"), (ten("well - done"), "well done"), (ten("he's"), "hes"),
        (ten("yes\tit is"), "yes it is"), (ten("a/b"), "a b"), (ten("ten", "10", "nine"), "10"), (ten("?"), ""),
    ]  # fmt: skip
    rows = [
        {
            "question_id": 100 + i, "question": f"What is in picture {i}?", "image_id": 900 + i // 2,
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(people)],
            "answer_type": ("other", "number", "yes/no")[i % 3], "question_type": "what is",
            "multiple_choice_answer": people[0],
        }
        for i, (people, _) in enumerate(cases)
    ]  # fmt: skip
    return rows, [answer for _, answer in cases]


def textvqa() -> tuple[Rows, list[str]]:
    """As VQA-v2, where commas, question marks and "'s" are treated before."""
    cases = [
        (ten("coca-cola"), "Coca-Cola"), (ten("mcdonald's", "mcdonalds"), "McDonald's"), (ten("1,000"), "1000"),
        (ten("stop", "stop", "go"), "stop"), (ten("what?"), "what"), (ten("dog's bed"), "dog 's bed"),
        (ten("a", "b", "c", "d", "e", "f", "g", "h", "i", "a"), "a"), (ten("12:30"), "12:30"), (ten("exit"), "EXIT."),
    ]  # fmt: skip
    rows = [
        {
            "image_id": f"img{i // 2}", "question_id": 34_600 + i, "question": f"what does the SIGN {i} say?",
            "answers": people, "ocr_tokens": ["STOP", "HERE"] if i % 2 else [], "set_name": "val",
        }
        for i, (people, _) in enumerate(cases)
    ]  # fmt: skip
    return rows, [answer for _, answer in cases]


def gqa() -> tuple[Rows, list[str]]:
    """Exact match but for case and punctuation."""
    cases = [
        ("yes", "Yes"),
        ("no", "No."),
        ("t-shirt", "T-Shirt!"),
        ("left", "right"),
        ("red", "the red"),
        ("cat", "cat"),
    ]
    rows = [
        {
            "id": f"2012{i}", "imageId": f"n{i // 2}", "question": f"Is thing {i} there?", "answer": truth,
            "fullAnswer": f"It is {truth}.", "isBalanced": True,
        }
        for i, (truth, _) in enumerate(cases)
    ]  # fmt: skip
    return rows, [answer for _, answer in cases]


def pope() -> tuple[Rows, list[str]]:
    """Right, wrong, and neither yes nor no."""
    said = ["yes", "No", "Yes, there is.", "no", "Yes", "yes", "There is no dog", "NO", "maybe", "yes", "no", "no."]
    truths = ["yes", "no", "yes", "yes", "no", "yes", "no", "no", "yes", "no", "yes", "no"]
    rows = [
        {
            "id": str(i), "question_id": str(i % 4 + 1), "question": f"Is there a thing {i} in the image?",
            "answer": truth, "image_source": f"COCO_{i // 2}", "category": ("adversarial", "popular", "random")[i // 4],
        }
        for i, truth in enumerate(truths)
    ]  # fmt: skip
    return rows, said


def mme() -> tuple[Rows, list[str]]:
    """Pairs with both, one and none right, in four categories."""
    said = ["Yes", "No", "yes.", "yes", "n", "y", "Not at all", "I say yes", "YES", "no, it is not", "other", "No"]
    categories = ["existence", "existence", "OCR", "code_reasoning", "commonsense_reasoning", "color"]
    rows = [
        {
            "question_id": f"{categories[i // 2]}/{i // 2:04}.png", "category": categories[i // 2],
            "question": f"Is there a {i}? Please answer yes or no.", "answer": ("Yes", "No")[i % 2],
        }
        for i in range(len(said))
    ]  # fmt: skip
    return rows, said


def scienceqa() -> tuple[Rows, list[str]]:
    """Letters, letters with a full stop, small letters, and other talk."""
    said = ["A", "b", "B. because", "The answer is A.", "C.", "a", " D ", "B)", "", "E"]
    right = [0, 1, 1, 0, 1, 0, 3, 1, 0, 4]
    rows = [
        {
            "question": f"Which is {i}?", "choices": [f"choice {c} of {i}" for c in range(5 if i == 9 else 4)],
            "answer": right[i], "hint": "Look closely." if i % 2 else "", "task": "closed choice", "grade": "grade2",
            "subject": ("natural science", "social science")[i % 2], "topic": "t", "category": "c", "skill": "s",
            "lecture": "", "solution": "",
        }
        for i in range(len(said))
    ]  # fmt: skip
    return rows, said


def mmbench() -> tuple[Rows, list[str]]:
    """Questions in two, three and four orders, answered in all the ways that letters can be given."""
    orders = [
        (0, ["B", "A.", "(D)", "The answer is C"]), (1, ["B", "A", "C: no", "D)"]), (2, ["B.", "A"]),
        (3, ["it is a dog", "dog"]), (4, ["nothing of the sort", "A"]), (5, ["I choose B", "A cat sits on a mat"]),
        (6, ["A or B", "B"]), (7, ["Answer: B.", "a"]), (8, ["B) dog", "(A)."]),
    ]  # fmt: skip
    names = ["cat", "dog", "horse", "cow"]
    rows, said = [], []
    for index, answers in orders:
        count = len(answers)
        for turn, answer in enumerate(answers):
            options = (names[:4] if count == 4 else names[:2] if index > 2 else names[:3])[:]
            options = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": index + 1_000_000 * turn, "question": f"What is {index}?",
                    "hint": "Think." if index % 2 else "nan", "answer": "ABCD"[options.index("dog")],
                    **{letter: options[i] if i < len(options) else None for i, letter in enumerate("ABCD")},
                    "category": ("identity_reasoning", "ocr")[index % 2], "source": "reddit", "split": "dev",
                    "L2-category": "attribute_reasoning", "comment": "nan",
                }
            )  # fmt: skip
            said.append(answer)
    return rows, said


def mmbench_cn() -> tuple[Rows, list[str]]:
    """The same questions; lmms-eval reads the text "nan" as a hint here, though not in English."""
    rows, said = mmbench()
    return [{**row, "hint": None if row["hint"] == "nan" else row["hint"]} for row in rows], said


MINIS = {
    "vqav2": vqav2, "gqa": gqa, "scienceqa": scienceqa, "textvqa": textvqa, "pope": pope, "mme": mme,
    "mmbench": mmbench, "mmbench_cn": mmbench_cn,
}  # fmt: skip
FILES = {
    "vqav2": "data/validation-00000-of-00001", "scienceqa": "ScienceQA-IMG/test-00000-of-00001",
    "textvqa": "data/validation-00000-of-00001", "pope": "data/test-00000-of-00001",
    "mme": "data/test-00000-of-00001", "mmbench": "en/dev-00000-of-00001", "mmbench_cn": "cn/dev-00000-of-00001",
    "gqa": "testdev_balanced_instructions/testdev-00000-of-00001",
}  # fmt: skip
GQA_IMAGES = "testdev_balanced_images/testdev-00000-of-00001.parquet"


def write_parquet(path: Path, rows: Rows, *, row_group_size: int = 4) -> None:
    """Write rows as the `datasets` library does, its note of what the columns are included where all are text."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    if all(isinstance(value, str) for name, value in rows[0].items() if name != "image"):
        text = {"dtype": "string", "_type": "Value"}
        features = {name: {"_type": "Image"} if name == "image" else text for name in table.schema.names}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=row_group_size)


def write_public(folder: Path, task: str, rows: Rows) -> None:
    """Write a data set in its public schema: Parquet, with pictures in it."""
    pictured = [{**row, "image": {"bytes": png(i), "path": f"{i}.png"}} for i, row in enumerate(rows)]
    if task == "gqa":  # its pictures are apart, and told by the first question about each
        names = list(dict.fromkeys(row["imageId"] for row in rows))
        images = [{"id": name, "image": {"bytes": png(1000 + n), "path": f"{n}.png"}} for n, name in enumerate(names)]
        write_parquet(folder / task / GQA_IMAGES, images[::-1], row_group_size=2)
        pictured = rows
    write_parquet(folder / task / f"{FILES[task]}.parquet", pictured)


def write_lines(path: Path, rows: Rows, *, pictures: bool = True) -> None:
    """Write a data set in its public schema as JSON lines, with pictures in base64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            image = {"image": base64.b64encode(png(i)).decode()} if pictures and "image" not in row else {}
            file.write(json.dumps({**row, **image}, ensure_ascii=False) + "\n")


class Session:
    """Says what its model was told to say, letter by letter."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def reset(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def ask(self, question: str, images: Sequence[np.ndarray], options: Any) -> Iterator[Any]:
        number = number_of(images[0]) if images else -1
        self.model.asked.append((number, question))
        text = self.model.says(number, question)
        stats = SimpleNamespace(generated_tokens=len(text) + 1, prompt_tokens=10, image_tokens=16)
        for letter in text:
            yield SimpleNamespace(text=letter, finish_reason=None, stats=None)
        yield SimpleNamespace(text="", finish_reason="stop", stats=stats)


class Model:
    """A bundle's stand-in. It is told answers by picture number, or by question text where that is a key."""

    def __init__(self, answers: Mapping[int | str, str], *, name: str = "stub") -> None:
        self.answers, self.asked = answers, list[tuple[int, str]]()
        self.manifest = SimpleNamespace(fingerprint=f"print of {name}", family="rwkv6 6.00", width=2048)
        self.manifest.vision, self.manifest.prompt = SimpleNamespace(scan="bidirectional"), None
        self.engine = SimpleNamespace(backend=SimpleNamespace(name="stub"))

    def says(self, number: int, question: str) -> str:
        key = next((key for key in self.answers if isinstance(key, str) and key in question), number)
        return self.answers[key]

    def session(self) -> Session:
        return Session(self)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def model_for(task: str, rows: Rows, answers: list[str]) -> Model:
    """A model that gives these answers to these rows."""
    if task == "gqa":
        return Model({row["question"]: answer for row, answer in zip(rows, answers, strict=True)})
    return Model(dict(enumerate(answers)))
