"""POPE and MME: questions to be answered with yes or no."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from apps.evaluate.judges import COGNITION, PERCEPTION
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
from runtime.errors import InputError

POPE_CATEGORIES = ("adversarial", "popular", "random")
ASKS_YES_NO = "Please answer yes or no."


class Pope(Source):
    """POPE, all three categories."""

    names = ("pope",)
    layouts = "test-*.parquet (or .jsonl), or llava_pope_test.jsonl with coco/coco_pope_*.json and its pictures"

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official question file with the labels of POPE's own files."""
        folder = self.folder(data)
        files = public_files(folder, ("test",), data.split)
        asked = find(folder, "**/llava_pope*.jsonl")
        if files:
            yield from self._public(files, pictures, notes)
        elif asked and not data.split:
            yield from self._asked(asked, folder, data, pictures, notes)
        else:
            raise self.missing(data)

    def _public(self, files: Sequence[Path], pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        required, known = ("question_id", "question", "answer", "image", "category"), ("id", "image_source")
        without = () if pictures or files[0].suffix != ".parquet" else ("image",)
        places = [files[0].parent, files[0].parent / "images"]
        for where, row in rows_of(files, required, known, notes, without):
            try:
                if isinstance(row, Problem):
                    yield row
                    continue
                category, truth = str(row["category"]), _truth(row["answer"])
                key = f"{category}/{row['question_id']}"
                question = f"{text_of(row, 'question').strip()}\n{SHORT}"
                image = opened(row.get("image"), places, pictures)
                group = str(row.get("image_source") or key)
                yield Sample(key, question, image, truth, truth, group, (_category(category),))
            except InputError as error:
                yield Problem(where, str(error))

    def _asked(
        self, files: Sequence[Path], folder: Path, data: Data, pictures: bool, notes: Notes
    ) -> Iterator[Sample | Problem]:
        """Labels are matched in order, as the official script does; but here the question must be the same, too."""
        labels = {category: iter(_labels(folder, category)) for category in POPE_CATEGORIES}
        places = folders_of(data, folder, "val2014", "pope/val2014")
        for where, row in rows_of(files, ("question_id", "text", "image", "category"), (), notes):
            try:
                if isinstance(row, Problem):
                    yield row
                    continue
                category, text = _category(str(row["category"])), text_of(row, "text")
                label = next(labels[category], None)
                if label is None or str(label.get("text", "")).strip() != text.split("\n")[0].strip():
                    said = label.get("text") if label else "nothing"
                    raise InputError(f"coco_pope_{category}.json asks {said!r} where the question is {text!r}")
                truth = _truth(label.get("label"))
                image = opened(row["image"], places, pictures)
                yield Sample(str(row["question_id"]), text, image, truth, truth, str(row["image"]), (category,))
            except InputError as error:
                yield Problem(where, str(error))


class Mme(Source):
    """MME: pairs of questions about one picture."""

    names = ("mme",)
    layouts = "test-*.parquet (or .jsonl), or llava_mme.jsonl with MME_Benchmark_release_version"

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official question file with the answers of MME's own files."""
        folder = self.folder(data)
        files = public_files(folder, ("test",), data.split)
        if not files:
            files = [] if data.split else find(folder, "**/llava_mme*.jsonl")
            if not files:
                raise self.missing(data)
        official = files[0].name.startswith("llava_")
        required = ("question_id", "text", "image", "category") if official else ("question_id", "question", "answer",
                                                                                  "category", "image")  # fmt: skip
        without = ("image",) if files[0].suffix == ".parquet" and not pictures else ()
        places = folders_of(data, folder, "MME_Benchmark_release_version")
        for where, row in rows_of(files, required, (), notes, without):
            if isinstance(row, Problem):
                yield row
                continue
            group = str(row["question_id"])
            try:
                category = str(row["category"])
                if category not in PERCEPTION + COGNITION:
                    raise InputError(f"category {category!r}", wanted="one of MME's fourteen")
                text = text_of(row, "text" if official else "question")
                truth = _mme_truth(places, row, text) if official else _truth(row["answer"])
                question = text if official else f"{_bare(text)}\n{SHORT}"
                image = opened(row.get("image"), places, pictures)
                yield Sample(f"{group} {truth}", question, image, truth, truth, group, (category,))
            except InputError as error:
                yield Problem(where, str(error), group)

    def check_group(self, group: Sequence[Sample]) -> str:
        """A score wants both questions."""
        return "" if len(group) == 2 else f"{len(group)} of the picture's 2 questions"


def _truth(answer: object) -> str:
    said = str(answer).strip().lower().rstrip(".")
    if said not in ("yes", "no"):
        raise InputError(f"the answer is {answer!r}", wanted="yes or no")
    return said


def _category(name: str) -> str:
    if name not in POPE_CATEGORIES:
        raise InputError(f"category {name!r}", wanted=", ".join(POPE_CATEGORIES))
    return name


def _labels(folder: Path, category: str) -> Iterator[Row]:
    for file in find(folder, f"**/coco_pope_{category}.json"):
        for _, row in read_rows(file):
            yield row if isinstance(row, dict) else {}


def _bare(text: str) -> str:
    """A question of MME without what its prompts add to it."""
    for added in (SHORT, ASKS_YES_NO):
        text = text.replace(added, "")
    return text.strip()


def _mme_truth(places: Sequence[Path], row: Row, text: str) -> str:
    """Look an answer up in MME's own files: category/name.txt, or category/questions_answers_YN/name.txt."""
    category, name = str(row["category"]), Path(str(row["question_id"])).stem
    for place in places:
        for file in (place / category / f"{name}.txt", place / category / "questions_answers_YN" / f"{name}.txt"):
            if file.is_file():
                for line in file.read_text(encoding="utf-8").splitlines():
                    question, _, answer = line.partition("\t")
                    if _bare(question) == _bare(text):
                        return _truth(answer)
    raise InputError(f"MME has no answer to {text!r} of {row['question_id']}"[:300])
