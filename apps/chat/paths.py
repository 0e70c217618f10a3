"""Pictures in what was typed or dropped: quoted, escaped, or as file:// addresses, wherever they stand in the line."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

# A word as a shell has it if it begins with a quote, otherwise with escaped spaces: the quote in "don't" is none.
_WORD = re.compile(r"""(?<!\S)(?:(?=['"])(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+|(?:\\.|[^\s\\])+)(?!\S)""")


def split_pictures(line: str) -> tuple[list[Path], str]:
    """Return the pictures that a line names, and what else it says.

    Only files that are there count, and only where they look like a path: a word with a slash in it, in quotes, or a
    line that consists of names. So "is that cat.png?" stays a question.
    """
    whole = _picture(line.strip())
    if whole is not None:  # some terminals drop names with spaces as they are
        return [whole], ""
    found = [(match, _picture(match[0])) for match in _WORD.finditer(line)]
    if found and all(path is not None for _, path in found):
        return [path for _, path in found if path is not None], ""
    pictures, rest, at = [], "", 0
    for match, path in found:
        if path is not None and (match[0][0] in "'\"" or "/" in match[0]):
            pictures.append(path)
            rest, at = rest + line[at : match.start()], match.end()
    return pictures, " ".join((rest + line[at:]).split()) if pictures else line.strip()


def read_path(text: str) -> Path:
    """Return the path that a quoted, escaped or file:// text stands for; "~" is home."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        with contextlib.suppress(ValueError):  # a quote that is not closed
            text = " ".join(shlex.split(text))
    elif "\\" in text and not Path(text).exists():
        text = re.sub(r"\\(.)", r"\1", text)
    if text.lower().startswith("file://"):
        text = unquote(urlsplit(text).path)
    return Path(text).expanduser()


def _picture(text: str) -> Path | None:
    try:
        path = read_path(text)
        return path if path.suffix.lower() in SUFFIXES and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero in it, no home
        return None
