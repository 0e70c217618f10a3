"""GQA: questions with one right answer, and pictures in files of their own."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.evaluate.sample import Picture, Problem, Sample
from apps.evaluate.source import SHORT, Data, Notes, Source, find, folders_of, rows_of, text_of
from apps.evaluate.tables import Row, open_parquet, picture_of, read_rows
from runtime.errors import InputError

_UNPUNCTUATED = str.maketrans("", "", string.punctuation)


def exact_worth(answer: str, truth: str) -> float:
    """1 where both are the same but for case and punctuation, as lmms-eval scores GQA."""
    return float(answer.strip().lower().translate(_UNPUNCTUATED) == truth.lower().translate(_UNPUNCTUATED))


def gqa_official_worth(answer: str, truth: str) -> float:
    """1 where both are the same but for case and a full stop at the end, as LLaVA prepares answers for GQA."""
    return float(answer.rstrip(".").lower() == truth)


class Gqa(Source):
    """GQA, balanced test-dev. Questions come in the order of their pictures, so that each is read once."""

    names = ("gqa",)
    layouts = (
        "testdev_balanced_instructions/*.parquet with testdev_balanced_images/*.parquet, testdev.jsonl, or "
        "llava_gqa_testdev_balanced.jsonl with testdev_balanced_questions.json and its pictures"
    )
    known = ("fullAnswer", "isBalanced", "groups", "entailed", "equivalent", "types", "annotations", "semantic",
             "semanticStr", "image")  # fmt: skip

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official question file."""
        folder, split = self.folder(data), data.split or "testdev"
        files = find(folder, f"**/*_instructions/{split}-*.parquet", f"**/{split}.jsonl", f"**/{split}.json")
        asked = find(folder, "**/llava_gqa*.jsonl")
        if not files and not asked:
            raise self.missing(data)
        places = folders_of(data, folder, "gqa/images")
        rows = (
            rows_of(files, ("id", "imageId", "question", "answer"), self.known, notes)
            if files
            else rows_of(asked, ("question_id", "text", "image"), ("category",), notes)
        )
        truths = {} if files else self._truths(folder)
        stored = _Stored(find(folder, f"**/*_images/{split}-*.parquet"), notes) if files else None
        good = list[tuple[tuple[int, ...], Sample]]()
        for where, row in rows:
            if isinstance(row, Problem):
                yield row
                continue
            try:
                sample, name = self._public(row) if files else self._asked(row, truths)
                good.append((stored.place(name) if stored else (), sample))
            except (InputError, KeyError, TypeError) as error:
                yield Problem(where, str(error))
        for place, sample in sorted(good, key=lambda pair: pair[0]):
            try:
                if not pictures and place:
                    yield sample
                    continue
                picture: Picture = stored.read(place) if place and stored else picture_of(_named(sample.group), places)
                yield _with(sample, picture if pictures else None)
            except InputError as error:
                yield Problem(f"question {sample.key}", str(error))

    def _truths(self, folder: Path) -> dict[str, str]:
        found = {}
        for file in find(folder, "**/testdev_balanced_questions.json"):
            for _, row in read_rows(file):
                if isinstance(row, dict) and "answer" in row:
                    found[str(row.get("id"))] = str(row["answer"])
        return found

    def _public(self, row: Row) -> tuple[Sample, str]:
        question, answer, name = text_of(row, "question"), text_of(row, "answer"), str(row["imageId"])
        return Sample(str(row["id"]), f"{question}\n{SHORT}", (), answer, answer, name), name

    def _asked(self, row: Row, truths: dict[str, str]) -> tuple[Sample, str]:
        key, name = str(row["question_id"]), text_of(row, "image")
        if truths and key not in truths:
            raise InputError(f"question {key} is not in testdev_balanced_questions.json")
        truth = truths.get(key)
        return Sample(key, text_of(row, "text"), (), truth, truth or "", name), name


class _Stored:
    """Pictures in Parquet files, found by their ids; one group of rows is in memory at a time."""

    def __init__(self, files: list[Path], notes: Notes) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}
        self._files = [open_parquet(file) for file in files]
        self._open, self._group = (-1, -1), list[Any]()
        for number, file in enumerate(self._files):
            notes.files.append(files[number].name)
            for group in range(file.num_row_groups):
                for row, name in enumerate(file.read_row_group(group, columns=["id"]).column("id").to_pylist()):
                    self._places[str(name)] = number, group, row

    def place(self, name: str) -> tuple[int, ...]:
        if not self._files:
            return ()
        if name not in self._places:
            raise InputError(f"no picture {name!r} among those of the data set")
        return self._places[name]

    def read(self, place: tuple[int, ...]) -> Picture:
        number, group, row = place
        if self._open != (number, group):
            self._group = self._files[number].read_row_group(group, columns=["image"]).column("image").to_pylist()
            self._open = number, group
        return picture_of(self._group[row], [])


def _named(name: str) -> str:
    return name if Path(name).suffix else f"{name}.jpg"


def _with(sample: Sample, picture: Picture | None) -> Sample:
    return replace(sample, pictures=(picture,)) if picture is not None else sample
