"""Answers on disk as they come: JSON lines, of which the first says what they are answers to.

Every line is written whole and flushed, so a run that was killed loses at most the answers that were being computed,
and goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from apps.evaluate.sample import Sample
from runtime.errors import ConfigError

FORMAT = "visualrwkv-answers-1"


@dataclass(frozen=True)
class Answer:
    """What a bundle said to one question."""

    key: str
    text: str
    question: str  # digest of the question's text
    tokens: int  # generated
    prompt_tokens: int  # text and picture positions before them, those found in a cache included
    finish: str


class Answers:
    """The answers of one bundle to one task. Use it as a context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; its folder is made.
            settings: all that decides what the answers are. They must be those the file was begun with.
            fresh: throw away what is there.

        Raises:
            ConfigError: the file is of another run, or is no file of answers.
        """
        self.path, self._settings = path, dict(settings)
        self.found: dict[str, Answer] = {}
        self.damaged = 0  # bytes at the end that a killed run left behind
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh or not path.exists() or not path.stat().st_size:
            path.write_text(
                json.dumps({"format": FORMAT, **self._settings}, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        else:
            self._read()
        self._file = path.open("a", encoding="utf-8")

    def add(self, answer: Answer) -> None:
        """Keep an answer."""
        self._file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
        self._file.flush()
        self.found[answer.key] = answer

    def stale(self, samples: Iterable[Sample]) -> list[str]:
        """Return the keys whose question is not the one that was answered: the data has changed."""
        digests = {key: answer.question for key, answer in self.found.items()}
        return [sample.key for sample in samples if digests.get(sample.key, sample.digest) != sample.digest]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        self.damaged = len(content) - whole
        lines = content[:whole].decode(errors="replace").split("\n")[:-1]  # other line ends are text
        header = _object(lines[0]) if lines else {}
        if header.pop("format", None) != FORMAT:
            raise self._refused(f"{self.path} is no file of answers")
        names = sorted(header.keys() | self._settings)
        changed = [n for n in names if header.get(n) != json.loads(json.dumps(self._settings.get(n)))]
        if changed:
            was = ", ".join(f"{name} {header.get(name)!r}" for name in changed)
            now = ", ".join(f"{name} {self._settings.get(name)!r}" for name in changed)
            raise self._refused(f"{self.path} was begun with {was}", wanted=now)
        for number, line in enumerate(lines[1:], 2):
            try:
                answer = Answer(**_object(line))
            except TypeError as error:
                raise self._refused(f"{self.path}:{number} is no answer: {error}") from None
            self.found[answer.key] = answer
        if self.damaged:
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def _refused(self, found: str, wanted: str = "") -> ConfigError:
        return ConfigError(found, wanted=wanted, hint="--fresh begins it again, --out DIR keeps it")


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
