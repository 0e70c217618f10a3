"""VQA-v2 and TextVQA: questions to be answered with a word or a phrase, each answered by ten people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.evaluate.sample import Problem, Sample
from apps.evaluate.source import (
    SHORT,
    Data,
    Notes,
    Source,
    find,
    folders_of,
    opened,
    public_files,
    rows_of,
    text_of,
)
from apps.evaluate.tables import Row, read_rows
from apps.evaluate.vqa_text import normalise_textvqa, normalise_vqa, soft_accuracy
from runtime.errors import ConfigError, InputError

Annotations = dict[tuple[str, str], Any]


def vqa_worth(answer: str, people: list[str]) -> float:
    """Soft accuracy with VQA-v2's normalisation."""
    return soft_accuracy(normalise_vqa(answer), [normalise_vqa(person) for person in people])


def textvqa_worth(answer: str, people: list[str]) -> float:
    """Soft accuracy with TextVQA's normalisation."""
    return soft_accuracy(normalise_textvqa(answer), [normalise_textvqa(person) for person in people])


class VqaV2(Source):
    """VQA-v2, and TextVQA with other names of columns."""

    names: tuple[str, ...] = ("vqav2", "vqa_v2")
    layouts = "validation-*.parquet (or .jsonl), or llava_vqav2*.jsonl with its pictures"
    known: tuple[str, ...] = ("answers", "question_type", "multiple_choice_answer", "image_id", "answer_type")
    splits = ("validation", "val", "testdev", "test-dev", "test")
    official: tuple[str, ...] = ("**/*vqav2*.jsonl",)
    truth = ("**/v2_mscoco_val2014_annotations.json",)
    places: tuple[str, ...] = ("test2015", "val2014", "vqav2/test2015", "vqav2/val2014")

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official question file."""
        folder = self.folder(data)
        files = public_files(folder, self.splits, data.split)
        asked = [] if data.split and not files else find(folder, *self.official)
        if not files and not asked:
            raise self.missing(data)
        places = folders_of(data, folder, *self.places)
        if files:
            required = ("question_id", "question", "image")
            rows = rows_of(files, required, self.known, notes, () if pictures else _embedded(files))
        else:
            required = ("question_id", "text", "image")
            rows = rows_of(asked, required, ("category",), notes)
        make = self.public if files else self.asked
        truths = {} if files else self.annotations(folder)
        for where, row in rows:
            try:
                yield row if isinstance(row, Problem) else make(row, data, places, pictures, truths)
            except (InputError, KeyError, TypeError, ValueError) as error:
                yield Problem(where, str(error))

    def annotations(self, folder: Path) -> Annotations:
        """Return the answers that lie in a file of their own, by question."""
        found: Annotations = {}
        for file in find(folder, *self.truth):
            for where, row in read_rows(file):
                try:
                    if isinstance(row, dict):
                        found[self.annotation_key(row)] = row["answers"]
                except KeyError as error:
                    raise ConfigError(f"{where} has no {error}", wanted="the annotations that are published") from None
        return found

    def annotation_key(self, row: Row) -> tuple[str, str]:
        """Under what an annotation is found: its id, and its question where ids are not enough."""
        return str(row["question_id"]), ""

    def question(self, row: Row, data: Data) -> str:
        """Return the prompt."""
        return f"{text_of(row, 'question')}\n{SHORT}"

    def public(self, row: Row, data: Data, places: list[Path], pictures: bool, truths: Annotations) -> Sample:
        """Make a sample of a row in the public schema."""
        key, image = str(row["question_id"]), opened(row.get("image"), places, pictures)
        people = _said(row.get("answers"))
        group = str(row.get("image_id") or key)
        tags = tuple(str(row[name]) for name in ("answer_type",) if row.get(name))
        return Sample(key, self.question(row, data), image, people, _shown(people), group, tags)

    def asked(self, row: Row, data: Data, places: list[Path], pictures: bool, truths: Annotations) -> Sample:
        """Make a sample of a line of the official question file."""
        key, text = str(row["question_id"]), text_of(row, "text")
        people = _said(truths.get(self.annotation_key({**row, "question": text.split("\n")[0], "image_id": key})))
        image = opened(row["image"], places, pictures)
        return Sample(self.asked_key(row), text, image, people, _shown(people), str(row["image"]))

    def asked_key(self, row: Row) -> str:
        """Return what tells a line of the question file from others."""
        return str(row["question_id"])


class TextVqa(VqaV2):
    """TextVQA. The official prompt names what an OCR program read in the picture, lmms-eval's does not."""

    names = ("textvqa",)
    layouts = (
        "validation-*.parquet (or .jsonl), or llava_textvqa_val*.jsonl with TextVQA_0.5.1_val.json and its pictures"
    )
    known = ("answers", "image_id", "question_tokens", "image_width", "image_height", "flickr_original_url",
             "flickr_300k_url", "image_classes", "set_name", "ocr_tokens", "image_name")  # fmt: skip
    official = ("**/*textvqa_val*.jsonl",)
    truth = ("**/TextVQA_*_val.json",)
    places = ("train_images", "train_val_images/train_images", "textvqa/train_images")

    def question(self, row: Row, data: Data) -> str:
        """Return the prompt; lmms-eval's capitalises the question."""
        question = text_of(row, "question")
        if data.prompts == "lmms-eval":
            return f"{question.capitalize()}\n{SHORT}"
        tokens = row.get("ocr_tokens")
        return question + (f"\nReference OCR token: {', '.join(tokens)}" if tokens else "") + f"\n{SHORT}"

    def annotation_key(self, row: Row) -> tuple[str, str]:
        """Questions are told apart by picture and text, as in the official script."""
        return str(row["image_id"]), str(row["question"]).lower()

    def asked_key(self, row: Row) -> str:
        """The official file's ids are those of pictures."""
        return f"{row['question_id']} {str(row['text']).split(chr(10))[0]}"


def _embedded(files: list[Path]) -> tuple[str, ...]:
    """Columns not worth reading where pictures are not wanted."""
    return ("image",) if all(file.suffix == ".parquet" for file in files) else ()


def _said(answers: Any) -> list[str] | None:
    """What people answered: texts, or objects with the text under "answer"; None where the data keeps it back."""
    if not answers:
        return None
    if not isinstance(answers, list):
        raise InputError(f"answers of type {type(answers).__name__}", wanted="a list")
    said = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
    if not all(isinstance(answer, str) for answer in said):
        raise InputError(f"answers are {said!r}"[:200], wanted="texts")
    return said


def _shown(people: list[str] | None) -> str:
    """The commonest answer."""
    return max(people, key=people.count) if people else ""
