"""One question of a benchmark, and one row that could not become a question."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import InputError
from runtime.image import FORMATS, load_image

Picture = Path | bytes | Callable[[], np.ndarray]
"""A file, the content of one, or a function that draws it (RGB uint8 [H, W, 3])."""


@dataclass(frozen=True)
class Sample:
    """A question as the model is asked it, and what a judge needs to know."""

    key: str  # tells it from every other of its task
    question: str  # the whole prompt of the user, without a placeholder
    pictures: tuple[Picture, ...]  # empty where the data was read without pictures
    reference: Any  # what the task's judge compares with; None where the data holds no answer
    shown: str  # the reference, for people
    group: str  # questions that are not independent of each other: one picture, one rotated question
    tags: tuple[str, ...] = ()  # what it is counted under, besides the whole
    row: Mapping[str, Any] = field(default_factory=dict)  # what a submission file repeats of it

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the question's text."""
        return hashlib.blake2b(self.question.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Problem:
    """A row that is not scored, and why."""

    where: str  # file and line or row
    what: str
    group: str = ""  # whose other questions cannot be judged without this one


def picture_key(picture: Picture) -> Hashable:
    """Return what is the same for the same picture, without opening it."""
    return hashlib.blake2b(picture, digest_size=16).digest() if isinstance(picture, bytes) else picture


def open_picture(picture: Picture) -> np.ndarray:
    """Return a picture as BGR uint8 [H, W, 3], as a session takes it. Raises `InputError` if it cannot be read."""
    if callable(picture):
        return picture()[:, :, ::-1]
    if isinstance(picture, bytes):
        try:
            with Image.open(BytesIO(picture), formats=FORMATS) as image:
                return load_image(image)[:, :, ::-1]
        except InputError:
            raise
        except Exception as error:  # decoders of damaged data raise nearly anything
            raise InputError(f"cannot read an embedded picture: {error}") from None
    return load_image(picture)[:, :, ::-1]
