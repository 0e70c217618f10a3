"""Fonts of this machine, and what they can draw.

No font is shipped. Chinese needs one that has it; a character that no font has is drawn as "?".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# File names of fonts with Chinese characters, by what they usually contain.
CJK_NAMES = (
    "cjk",
    "droidsansfallback",
    "msyh",
    "notosanssc",
    "pingfang",
    "simhei",
    "simsun",
    "sourcehan",
    "uming",
    "unifont",
    "wqy",
)


def font_for(text: str, size: int, first: Path | None = None) -> Font:
    """Return the first font at hand that has every character of `text`, else `first` or Pillow's own."""
    usual: list[Font] = [ImageFont.truetype(str(first), size)] if first else []
    usual.append(ImageFont.load_default(size))
    return next((font for font in chain(usual, _cjk_fonts(size)) if not missing(text, font)), usual[0])


def missing(text: str, font: Font) -> set[str]:
    """Return the characters `font` cannot draw: those that look like a character that does not exist."""
    nothing = _shape("\U0010ffff", font)
    return {c for c in set(text) if not c.isspace() and not c.isascii() and _shape(c, font) in (nothing, b"")}


def drawable(text: str, font: Font) -> str:
    """Replace what `font` cannot draw by "?"."""
    lost = missing(text, font)
    return "".join("?" if c in lost else c for c in text)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels, at spaces or between Chinese characters."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in _words(paragraph):
            if line and font.getlength(line + word.rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += word
        lines.append(line.rstrip())
    return [line for line in lines if line]


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        word += character
        if character == " " or ord(character) > 0x2E80:
            yield word
            word = ""
    yield word


def _shape(character: str, font: Font) -> bytes:
    return bytes(font.getmask(character))


def _cjk_fonts(size: int) -> Iterator[Font]:
    for file in _cjk_files():
        with suppress(OSError):  # a broken font file is no reason to stop
            yield ImageFont.truetype(str(file), size)


@lru_cache(maxsize=1)
def _cjk_files() -> tuple[Path, ...]:
    """Font files with Chinese characters in the usual folders of this system."""
    home = Path.home()
    folders = {
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
    }.get(sys.platform, [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"])
    files = (f for folder in folders if folder.is_dir() for f in sorted(folder.rglob("*")))
    return tuple(f for f in files if f.suffix.lower() in {".ttf", ".ttc", ".otf"} and _is_cjk(f.name))


def _is_cjk(name: str) -> bool:
    return any(part in name.lower().replace("-", "").replace("_", "") for part in CJK_NAMES)
