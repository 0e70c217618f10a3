"""What the conversation looks like: colours and Markdown on a terminal, bare answers in a pipe."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from runtime import Stats

THUMBNAIL = (28, 14)  # characters; each shows two pixels


class Screen(Protocol):
    """Where a conversation is shown."""

    def note(self, text: str) -> None:
        """Say something about the conversation."""
        ...

    def error(self, text: str) -> None:
        """Say what went wrong."""
        ...

    def picture(self, path: Path, size: tuple[int, int]) -> None:
        """Show that a picture was seen; `size` is its width and height."""
        ...

    def answer(self) -> Any:
        """A context manager that yields a function to which pieces of the answer are given."""
        ...

    def figures(self, stats: Stats, reason: str, tokens: int) -> None:
        """Show what the answer cost; `tokens` is what the conversation holds."""
        ...


class Plain:
    """Answers to the output, one each line, and nothing else; what went wrong to the error stream."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Write to `out` and `err`; the process's own by default."""
        self._out, self._err = out or sys.stdout, err or sys.stderr

    def note(self, text: str) -> None:
        """Leave it out: whoever reads the pipe wants answers."""

    def error(self, text: str) -> None:
        """Write it to the error stream."""
        print(f"error: {text}", file=self._err, flush=True)

    def picture(self, path: Path, size: tuple[int, int]) -> None:
        """Leave it out."""

    @contextmanager
    def answer(self) -> Iterator[Any]:
        """Write pieces as they come, and a line end."""

        def piece(text: str) -> None:
            print(tame(text), end="", file=self._out, flush=True)

        try:
            yield piece
        finally:
            print(file=self._out, flush=True)

    def figures(self, stats: Stats, reason: str, tokens: int) -> None:
        """Leave it out."""


class Terminal(Plain):
    """For people, without Rich: the same words, no colours."""

    def note(self, text: str) -> None:
        """Say it, set in."""
        print("".join(f"  {line}\n" for line in text.splitlines()), end="", file=self._out, flush=True)

    def picture(self, path: Path, size: tuple[int, int]) -> None:
        """Say it."""
        self.note(f"[{path.name}: {size[0]} x {size[1]}]")

    def figures(self, stats: Stats, reason: str, tokens: int) -> None:
        """Say it in one line."""
        self.note(describe(stats, reason, tokens))


class Rich(Terminal):
    """For people, with Rich: Markdown that grows, thumbnails, quiet figures."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Write to `out`. Raises `ModuleNotFoundError` where Rich is not installed."""
        from rich.console import Console

        super().__init__(out)
        self._console = Console(file=out, highlight=False)

    def note(self, text: str) -> None:
        """Say it quietly."""
        self._console.print(text, style="dim", markup=False)

    def error(self, text: str) -> None:
        """Say it in red."""
        self._console.print(text, style="red", markup=False)

    def picture(self, path: Path, size: tuple[int, int]) -> None:
        """Show it, small."""
        if self._console.color_system == "truecolor":
            self._console.print(thumbnail(path))
        self.note(f"{path.name} · {size[0]} x {size[1]}")

    @contextmanager
    def answer(self) -> Iterator[Any]:
        """Render Markdown while it grows."""
        from rich.live import Live
        from rich.markdown import Markdown

        said = ""
        with Live(console=self._console, refresh_per_second=12, vertical_overflow="ellipsis") as live:

            def piece(text: str) -> None:
                nonlocal said
                said += tame(text)
                live.update(Markdown(said))

            yield piece


def thumbnail(path: Path) -> Any:
    """Return a picture as a Rich text: an upper half block has its own colour, and that of what is below it."""
    from PIL import Image
    from rich.text import Text

    from runtime.image import load_image

    columns, rows = THUMBNAIL
    image = Image.fromarray(load_image(path))
    image.thumbnail((columns, 2 * rows))
    text = Text()
    for y in range(0, image.height - 1, 2):
        for x in range(image.width):
            upper, lower = (image.getpixel((x, y + below)) for below in (0, 1))
            text.append("▀", f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
        text.append("\n")
    text.rstrip()
    return text


def describe(stats: Stats, reason: str, tokens: int) -> str:
    """Return the figures of an answer as one line."""
    ending = {"length": " · cut at --max-tokens", "cancelled": " · stopped"}.get(reason, "")
    return (
        f"TTFT {stats.ttft_s:.2f} s · {stats.tokens_per_s:.1f} tokens/s · {stats.generated_tokens} tokens · "
        f"context {tokens} · {stats.rss_bytes / 2**20:.0f} MiB{ending}"
    )


def tame(text: str) -> str:
    """Leave out control characters but line ends and tabs: a model could say what moves the cursor."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _rgb(pixel: Any) -> str:
    return ",".join(map(str, pixel))
