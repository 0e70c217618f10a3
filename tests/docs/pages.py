"""The blocks of the documentation's pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NEEDS = re.compile(
    r"Needs (the network|a checkpoint|GStreamer|ROS 2|a Jetson|a terminal and some minutes|a camera|a data set|a GPU)"
)


@dataclass(frozen=True)
class Block:
    """One fenced block; a `title` says what a machine must have for it to run."""

    page: str
    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of every line that is one of our commands, from the module or verb on."""
        found = []
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words[:1] == ["visualrwkv"] or words[:2] == ["python", "-m"]:
                    found.append(words)
        return found


def pages() -> list[str]:
    """The pages with text, by their path below docs/."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def blocks(page: str) -> list[Block]:
    """The blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [Block(page, language, title, block) for language, title, block in FENCE.findall(text)]
    assert len(found) == len(re.findall(r"^```", text, re.MULTILINE)) / 2, f"{page} has a fence of another form"
    return found
