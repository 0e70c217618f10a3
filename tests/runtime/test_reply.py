"""What of a growing answer is shown: the same however it is cut, and nothing a stop string takes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.reply import TextFilter, resident_bytes

STOPS = ("\n\n", "###", "# #", "END", "ND", " \n-")
PARTS = st.sampled_from([*STOPS, *"\n# ENDx-é\t"])
TEXT = st.lists(PARTS, max_size=12).map("".join)


def reference(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the stop that is complete first, found by looking at every beginning of it."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)].strip()
    return text.strip()


@st.composite
def cut(draw: st.DrawFn) -> list[str]:
    text = draw(TEXT)
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]


@given(cut(), st.lists(st.sampled_from(STOPS), unique=True).map(tuple))
def test_any_cut_shows_the_same(pieces: list[str], stops: tuple[str, ...]) -> None:
    wanted = reference("".join(pieces), stops)
    filter_ = TextFilter(stops)
    shown = ""
    for piece in pieces:
        shown += filter_.push(piece)
        assert wanted.startswith(shown)  # nothing is ever taken back
        assert shown == shown.strip()
    assert shown + filter_.finish() == wanted
    assert filter_.stopped == any(stop in "".join(pieces) for stop in stops)
    assert filter_.push("more") == "" or not filter_.stopped


def test_text_is_shown_as_soon_as_it_is_sure() -> None:
    filter_ = TextFilter(("\n\n", "###"))
    shown = [filter_.push(piece) for piece in (" ", "A ", "cat", ".\n", "#", "# x", "\n", "\n", "y")]
    assert shown == ["", "A", " cat", ".", "", "\n## x", "", "", ""]
    assert filter_.stopped


def test_resident_memory_is_told() -> None:
    assert resident_bytes() > 10_000_000


def test_resident_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    assert resident_bytes() == 0
