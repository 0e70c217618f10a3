"""ScienceQA, MMBench and MMBench-CN: questions with lettered options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.evaluate.letters import LETTERS
from apps.evaluate.sample import Problem, Sample
from apps.evaluate.source import (
    LETTER,
    Data,
    Notes,
    Source,
    find,
    folders_of,
    is_none,
    opened,
    public_files,
    rows_of,
    text_of,
)
from apps.evaluate.tables import Row, read_rows
from runtime.errors import InputError

ROTATION = 1_000_000  # added to the index of a question for each order of its options beyond the first


class ScienceQa(Source):
    """The questions of ScienceQA's test split that have a picture."""

    names = ("scienceqa", "science_qa", "sqa")
    layouts = "ScienceQA-IMG/test-*.parquet (or .jsonl), or llava_test_CQM-A.json with problems.json and its pictures"
    known = ("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution", "id", "question_id")

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official question file."""
        folder = self.folder(data)
        files = public_files(folder, ("test",), data.split, prefix="ScienceQA-IMG/")
        files = files or public_files(folder, ("test",), data.split)
        if files:
            yield from self._public(files, pictures, notes)
        elif not data.split and (asked := find(folder, "**/llava_test_CQM-A.json", "**/llava_test*.json")):
            yield from self._asked(asked, folder, data, pictures, notes)
        else:
            raise self.missing(data)

    def _public(self, files: Sequence[Path], pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        required = ("question", "choices", "answer", "hint", "image")
        without = () if pictures or files[0].suffix != ".parquet" else ("image",)
        places = [files[0].parent, files[0].parent / "images"]
        for number, (where, row) in enumerate(rows_of(files, required, self.known, notes, without)):
            try:
                if isinstance(row, Problem):
                    yield row
                    continue
                choices, hint = row["choices"], row["hint"]
                truth = _letter(row["answer"], choices)
                options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
                context = "" if is_none(hint) else f"Context: {hint}\n"
                question = f"{context}{text_of(row, 'question')}\n{options}\n{LETTER}"
                image = opened(row.get("image"), places, pictures)
                key = str(row.get("question_id", row.get("id", number)))
                tags = tuple(str(row[name]) for name in ("subject",) if row.get(name))
                yield Sample(key, question, image, truth, f"{truth}. {choices[LETTERS.index(truth)]}", key, tags)
            except InputError as error:
                yield Problem(where, str(error))

    def _asked(
        self, files: Sequence[Path], folder: Path, data: Data, pictures: bool, notes: Notes
    ) -> Iterator[Sample | Problem]:
        """Questions without a picture are left out: the figure of the papers is over those with one."""
        problems = {str(row["id"]): row for file in find(folder, "**/problems.json") for row in _objects(file)}
        places = folders_of(data, folder, "images/test", "scienceqa/images/test")
        for where, row in rows_of(files, ("id", "conversations"), ("image",), notes):
            try:
                if isinstance(row, Problem):
                    yield row
                    continue
                if not row.get("image"):
                    continue
                key, turns = str(row["id"]), row["conversations"]
                if (
                    not isinstance(turns, list)
                    or not turns
                    or not isinstance(turns[0], dict)
                    or "value" not in turns[0]
                ):
                    raise InputError("conversations without a first turn")
                if key not in problems:
                    raise InputError(f"problem {key} is not in problems.json")
                truth = _letter(problems[key].get("answer"), problems[key].get("choices"))
                image = opened(row["image"], places, pictures)
                question = text_of(turns[0], "value").replace("<image>", "").strip()
                yield Sample(key, question, image, truth, truth, key, (str(problems[key].get("subject", "")),))
            except InputError as error:
                yield Problem(where, str(error))


class MmBench(Source):
    """MMBench's dev split: every question with its options in several orders, one row each."""

    names: tuple[str, ...] = ("mmbench",)
    layouts = "en/dev-*.parquet, or mmbench_dev_2*.tsv / MMBench_DEV_EN*.tsv"
    config = "en"
    tsv = ("**/mmbench_{split}_2*.tsv", "**/MMBench_{SPLIT}_EN*.tsv")
    ask_official = LETTER
    ask_lmms = LETTER
    required = ("index", "question", "A", "B", "image")
    known = ("hint", "answer", "C", "D", "E", "category", "source", "L2-category", "l2-category", "comment", "split")

    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield the public data set, or else the official table."""
        folder, split = self.folder(data), data.split or "dev"
        files = public_files(folder, (split,), None, prefix=f"**/{self.config}/")
        files = files or find(folder, *(p.format(split=split, SPLIT=split.upper()) for p in self.tsv))
        if not files:
            raise self.missing(data)
        without = ("image",) if files[0].suffix == ".parquet" and not pictures else ()
        stored: dict[str, Any] = {}
        for where, row in rows_of(files, self.required, self.known, notes, without):
            if isinstance(row, Problem):
                yield row
                continue
            group = ""
            try:
                index = int(row["index"])
                group = str(index % ROTATION)
                yield self._sample(index, group, row, data, pictures, stored)
            except (InputError, TypeError, ValueError) as error:
                yield Problem(where, str(error), group)

    def _sample(self, index: int, group: str, row: Row, data: Data, pictures: bool, stored: dict[str, Any]) -> Sample:
        options = {letter: str(row[letter]) for letter in LETTERS if not is_none(row.get(letter))}
        if len(options) < 2:
            raise InputError(f"question {index} has {len(options)} options", wanted="two or more")
        answer = row.get("answer")
        if not is_none(answer) and answer not in options:
            raise InputError(f"the answer is {answer!r}", wanted=f"one of {', '.join(options)}")
        image = row.get("image")
        if isinstance(image, str) and len(image) < 64:  # the official table stores a picture once, then its index
            image = stored.get(image, image)
        elif isinstance(image, str) and index < ROTATION:
            stored[str(index)] = image
        question = self._question(row, options, data)
        keep = {name: row.get(name) for name in ("index", "question", *"ABCD", "answer", "hint", "source", "split")}
        keep |= {name: row[name] for name in ("category", "L2-category", "l2-category") if name in row}
        reference = None if is_none(answer) else {"answer": answer, "options": options}
        shown = "" if is_none(answer) else f"{answer}. {options[str(answer)]}"
        tags = () if is_none(row.get("category")) else (str(row["category"]),)
        return Sample(str(index), question, opened(image, [], pictures), reference, shown, group, tags, keep)

    def _question(self, row: Row, options: Mapping[str, str], data: Data) -> str:
        question, hint = text_of(row, "question"), row.get("hint")
        lines = [f"{letter}. {text}" for letter, text in options.items()]
        if data.prompts == "lmms-eval":
            before = "" if is_none(hint) else f"{hint} "
            return "\n".join([f"{before}{question} There are several options:", *lines, self.ask_lmms])
        before = "" if is_none(hint) else f"{hint}\n"
        return "\n".join([before + question, *lines, self.ask_official])

    def check_group(self, group: Sequence[Sample]) -> str:
        """A question is known by its first order."""
        found = any(int(sample.key) < ROTATION for sample in group)
        return "" if found else "a question without the first order of its options"


class MmBenchCn(MmBench):
    """MMBench-CN's dev split."""

    names = ("mmbench_cn", "mmbench")
    layouts = "cn/dev-*.parquet, or mmbench_dev_cn*.tsv / MMBench_DEV_CN*.tsv"
    config = "cn"
    tsv = ("**/mmbench_{split}_cn*.tsv", "**/MMBench_{SPLIT}_CN*.tsv")
    ask_official = "请直接回答选项字母。"
    ask_lmms = "请直接使用所提供的选项字母作为答案回答。"


def _letter(answer: object, choices: object) -> str:
    """The letter of the right choice, which ScienceQA gives as its place."""
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"choices are {choices!r}"[:200], wanted="a list of two to five")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise InputError(f"the answer is {answer!r}", wanted=f"a whole number from 0 to {len(choices) - 1}")
    return LETTERS[answer]


def _objects(file: Path) -> Iterator[Row]:
    for _, row in read_rows(file):
        if isinstance(row, dict):
            yield row
