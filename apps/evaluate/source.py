"""Where a benchmark's questions come from: files on this machine, in the layouts in which they are published."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.evaluate.sample import Picture, Problem, Sample
from apps.evaluate.tables import Row, picture_of, read_rows
from runtime.errors import ConfigError, InputError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

Prompts = Literal["official", "lmms-eval"]


@dataclass(frozen=True)
class Data:
    """What the user said about the data."""

    folder: Path
    images: Path | None = None  # where pictures named in question files lie, if not in a usual place
    split: str | None = None
    prompts: Prompts = "official"  # whose wording, where data sets come without one
    limit: int | None = None  # for what is drawn, not read


@dataclass
class Notes:
    """What was met while reading that is no problem, but should be known."""

    unknown: Counter[str] = field(default_factory=Counter)  # columns nobody expects, by rows that have them
    files: list[str] = field(default_factory=list)


class Source(ABC):
    """Reads one benchmark. Every row becomes a sample or a problem."""

    names: tuple[str, ...] = ()  # of the benchmark's folder, lower case
    layouts = ""  # for people: what `read` looks for

    @abstractmethod
    def read(self, data: Data, pictures: bool, notes: Notes) -> Iterator[Sample | Problem]:
        """Yield every row.

        Args:
            data: where to look.
            pictures: whether samples come with their pictures; without, nothing of them is read.
            notes: is added to.

        Raises:
            ConfigError: there is no such benchmark in the folder, or a file cannot be read.
        """

    def check_group(self, group: Sequence[Sample]) -> str:
        """Return what is wrong with all that was read of a group, if it cannot be judged so."""
        return ""

    def folder(self, data: Data) -> Path:
        """Return where this benchmark lies: its own folder, the one of the official layout, or all there is."""
        if not data.folder.is_dir():
            raise ConfigError(f"no folder {data.folder}", hint="--data names a folder with data sets on this machine")
        for parent in (data.folder, data.folder / "eval"):
            children = sorted(parent.iterdir()) if parent.is_dir() else []
            for name in self.names:
                for child in children:
                    if child.is_dir() and child.name.lower().replace("-", "_") == name:
                        return child
        return data.folder

    def missing(self, data: Data) -> ConfigError:
        """Return the error to raise where nothing was found."""
        wanted = (f"split {data.split} of " if data.split else "") + self.layouts
        return ConfigError(f"no data for {self.names[0]} below {data.folder}", wanted=wanted)


def find(folder: Path, *patterns: str) -> list[Path]:
    """Return the files of the first pattern that matches any."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    return []


def public_files(folder: Path, splits: Sequence[str], split: str | None, *, prefix: str = "**/") -> list[Path]:
    """Return the files of a data set in its public schema: all parts of the first split there is."""
    for name in [split] if split else splits:
        forms = (f"{name}-*.parquet", *(f"{name}{end}" for end in (".parquet", ".jsonl", ".json", ".tsv", ".csv")))
        if found := find(folder, *(prefix + form for form in forms)):
            return found
    return []


def rows_of(
    files: Sequence[Path],
    required: Collection[str],
    known: Collection[str],
    notes: Notes,
    without: Collection[str] = (),
) -> Iterator[tuple[str, Row | Problem]]:
    """Yield the rows of files; one that lacks a required column is a problem, columns beyond the known are noted."""
    for file in files:
        notes.files.append(file.name)
        for where, row in read_rows(file, without):
            if isinstance(row, dict):
                notes.unknown.update(row.keys() - set(required) - set(known) - set(without))
                if lacking := sorted(set(required) - set(without) - row.keys()):
                    yield (
                        where,
                        Problem(where, f"no {', '.join(lacking)}; it has {', '.join(sorted(row)) or 'nothing'}"),
                    )
                    continue
            yield where, row


def text_of(row: Row, name: str) -> str:
    """Return a field that must be text. Raises `InputError` for anything else, and for nothing."""
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} is {value!r}"[:200], wanted="text")
    return value


def is_none(value: Any) -> bool:
    """Whether a field is empty in one of the ways in which tables say so."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none"))


def opened(value: Any, folders: Sequence[Path], pictures: bool) -> tuple[Picture, ...]:
    """Return the picture of a row, where pictures are wanted; where not, check what costs nothing to check."""
    if pictures:
        return (picture_of(value, folders),)
    if isinstance(value, str):
        picture_of(value, folders)
    return ()


def folders_of(data: Data, folder: Path, *usual: str) -> list[Path]:
    """Return where pictures named in question files may lie."""
    if data.images is not None:
        return [data.images]
    places = [folder / name for name in (*usual, "images", ".")]
    return [place for place in (*places, *(data.folder / "images" / name for name in usual)) if place.is_dir()]
