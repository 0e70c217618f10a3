"""The tokenizer: official ids, files of any size in the official format, and streams cut anywhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyrwkv_tokenizer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BundleError, InputError
from runtime.tokenizer import REPLACEMENT, Tokenizer

OFFICIAL = Path(pyrwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt")
EXTRA = [
    b"\n\n",
    b"\r\n",
    b"User:",
    b"Ass",
    b"Assistant:",
    b" a",
    b" ab",
    b" abc",
    b"abc",
    b"bcd",
    b"'\"",
    b"\\n",
]
EXTRA += [
    "你".encode(),
    "你好".encode(),
    "。\n".encode(),
    b"\xe4\xbd",
    b"\xbd\xa0",
    "é".encode(),
    "\u2028".encode(),
]


def line(number: int, token: bytes) -> str:
    """One line as the official file writes it."""
    try:
        literal = repr(token.decode())
    except UnicodeDecodeError:
        literal = repr(token)
    return f"{number} {literal} {len(token)}\n"


def write(path: Path, tokens: list[bytes]) -> Path:
    path.write_text("".join(line(i + 1, token) for i, token in enumerate(tokens)), encoding="utf-8", newline="\n")
    return path


def greedy(tokens: list[bytes], data: bytes) -> list[int]:
    """Greedy longest match, spelled out."""
    ids = []
    while data:
        best = max((token for token in tokens if data.startswith(token)), key=len)
        ids.append(tokens.index(best) + 1)
        data = data[len(best) :]
    return ids


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return Tokenizer(OFFICIAL)


TRIMMED = [bytes([i]) for i in range(256)] + EXTRA


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write(tmp_path_factory.mktemp("vocab") / "vocab.txt", TRIMMED))


def test_official_ids(official: Tokenizer, golden: Path) -> None:
    cases = json.loads((golden / "tokenizer.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 100
    for case in cases:
        assert official.encode(case["text"]) == case["ids"]
        assert official.decode(case["ids"]) == case["text"]


def test_every_official_token_decodes(official: Tokenizer) -> None:
    for token in range(1, 65530):
        data = official.token_bytes(token)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if token % 37 == 0:
            assert official.encode(text) == [token]
    assert not official.has_text(65530)


def test_loading_is_quick() -> None:
    best = min(_seconds() for _ in range(5))
    assert best < 0.2  # of this thread alone: other work on the machine does not count


def _seconds() -> float:
    start = time.thread_time()
    Tokenizer(OFFICIAL)
    return time.thread_time() - start


@given(
    st.text(st.one_of(st.sampled_from("abcdnU:ser Assistant\n\r'\"\\你好。é\u2028\x00"), st.characters(codec="utf-8")))
)
def test_trimmed_file_matches_greedily(trimmed: Tokenizer, text: str) -> None:
    ids = trimmed.encode(text)
    assert ids == greedy(TRIMMED, text.encode())
    assert trimmed.decode(ids) == text


@settings(max_examples=50)
@given(st.text())
def test_official_round_trip(official: Tokenizer, text: str) -> None:
    assert official.decode(official.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ""),
        ("\x00", "\x00"),
        ("\ud800", REPLACEMENT),
        ("a\udfffb", f"a{REPLACEMENT}b"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_awkward_text(official: Tokenizer, text: str, wanted: str) -> None:
    assert official.decode(official.encode(text)) == wanted


def test_text_outside_the_vocabulary_is_refused_not_dropped(tmp_path: Path) -> None:
    small = Tokenizer(write(tmp_path / "vocab.txt", [b"a", b"b", b"ab"]))
    assert small.encode("abba") == [3, 2, 1]
    for text in ("azb", "z", "abz"):
        with pytest.raises(InputError, match="no token for 'z"):
            small.encode(text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"x 'a' 1\n",
        b"1 'a'\n",
        b"1 'a' 1\n\n2 'b' 1\n",
        b"0 'a' 1\n",
        b"1 '' 0\n",
        b"1 __import__('os') 1\n",
        b"1 'a' 1\n1 'b' 1\n",
        b"70000 'a' 1\n",
        b"1 'a' 1 1\n",
        b"\xff\xfe",
    ],
)
def test_malformed_file_is_refused_at_load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"vocab\.txt"):
        Tokenizer(path)


@pytest.mark.parametrize("content", [b"1 'a' 2\n", b"1 '\\x4' 1\n", b"1 'a' 1\n2 'b' 9\n"])
def test_wrong_literal_is_refused_at_first_use(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    tokenizer = Tokenizer(path)
    with pytest.raises(BundleError):
        tokenizer.encode("a")
    with pytest.raises(BundleError, match=r"line \d"):
        tokenizer.token_bytes(content.count(b"\n"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer(tmp_path / "none.txt")


def test_windows_line_ends_and_no_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"1 'a' 1\r\n2 'ab' 2\r\n3 b'\\xff' 1")
    tokenizer = Tokenizer(path)
    assert tokenizer.encode("aab") == [1, 2]
    assert tokenizer.token_bytes(3) == b"\xff"


def test_ids_without_text(official: Tokenizer) -> None:
    assert official.decode([0]) == ""
    assert official.token_bytes(0) == b""
    assert official.decode([65535, 34550, -1, 10**9]) == f"{REPLACEMENT}hello{REPLACEMENT * 2}"
    with pytest.raises(InputError, match="65535 has no text"):
        official.token_bytes(65535)


@given(st.lists(st.integers(1, 256 + len(EXTRA))))
def test_a_stream_of_any_bytes_equals_decoding_at_once(trimmed: Tokenizer, ids: list[int]) -> None:
    stream = trimmed.stream()
    pieces = [stream.feed(i) for i in ids]
    wanted = b"".join(TRIMMED[i - 1] for i in ids).decode("utf-8", "replace")
    assert "".join(pieces) + stream.flush() == wanted == trimmed.decode(ids)
    assert stream.flush() == ""


@given(st.text())
def test_a_stream_of_single_bytes_never_shows_half_a_character(trimmed: Tokenizer, text: str) -> None:
    stream = trimmed.stream()
    shown = ""
    for byte in text.encode():
        shown += stream.feed(byte + 1)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


def test_an_incomplete_tail_and_an_unknown_id_inside_a_character(trimmed: Tokenizer) -> None:
    stream = trimmed.stream()
    assert stream.feed(0xE4 + 1) == ""
    assert stream.feed(9999) == REPLACEMENT * 2
    assert stream.feed(0xE4 + 1) == ""
    assert stream.flush() == REPLACEMENT
    assert stream.feed(ord("a") + 1) == "a"
