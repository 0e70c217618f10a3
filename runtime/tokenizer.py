"""Text to token ids and back: greedy longest match over UTF-8 bytes, as every RWKV "World" model was trained.

A vocabulary file has one token per line, `id literal bytes`, e.g. `11 '\\n' 1`; the literal is a Python
string, or bytes where it is not valid UTF-8. Trimmed and renumbered files of the same format work as well.
Both directions are ours: a stream of tokens can end in the middle of a character, and the tries of the usual packages
take a quarter of a gigabyte.
"""

from __future__ import annotations

import ast
import codecs
import re
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from runtime.errors import BundleError, InputError

END_OF_TEXT = 0  # has an embedding, but no text and no line in the file
LARGEST_ID = 65535  # official ids are 16 bits
REPLACEMENT = "\ufffd"

_LINE = re.compile(rb"""^([1-9]\d{0,4}) b?['"][^\r\n]+['"] [1-9]\d*\r?$""", re.MULTILINE)


class Tokenizer:
    """A vocabulary. Safe to use from several threads."""

    def __init__(self, vocab_path: Path) -> None:
        """Check and index the file; literals are read when first needed.

        Raises:
            BundleError: the file is missing, or a line is not `id literal bytes`, or an id is twice in it.
        """
        self._path = Path(vocab_path)
        try:
            self._raw = self._path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read vocabulary {self._path}: {error}", hint="export the bundle again") from None
        found, breaks = (
            _LINE.findall(self._raw),
            np.flatnonzero(np.frombuffer(self._raw, np.uint8) == ord("\n")),
        )
        if not found or len(found) != len(breaks) + (not self._raw.endswith(b"\n")):
            lines = self._raw.split(b"\n")
            raise self._malformed(next(i for i, line in enumerate(lines) if not _LINE.fullmatch(line)))
        ids = np.array(found).astype(np.int64)
        if len(np.unique(ids)) != len(ids) or ids.max() > LARGEST_ID:
            raise BundleError(
                f"vocabulary {self._path.name} has an id twice, or an id above {LARGEST_ID}",
                hint="number the tokens from 1 without repeating one",
            )
        self._start = np.full(int(ids.max()) + 1, -1, np.int64)  # id -> where its line starts
        self._start[ids] = np.concatenate([[0], breaks + 1])[: len(ids)]
        self._bytes: dict[int, bytes] = {}
        self._ids: dict[bytes, int] | None = None
        self._lengths: dict[bytes, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Split `text` into ids. Lone surrogates, which UTF-8 cannot hold, count as U+FFFD.

        Raises:
            InputError: a trimmed vocabulary has no token for a byte of `text`.
            BundleError: the vocabulary file is malformed.
        """
        if not text:
            return []
        # A surrogate pair becomes the character it stands for, a lone half becomes U+FFFD.
        return self._match(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Join and decode the tokens' bytes; what is not UTF-8, or not in the vocabulary, becomes U+FFFD.

        (The official decode returns one U+FFFD for the whole list instead.)
        """
        stream = self.stream()
        return "".join([stream.feed(i) for i in ids]) + stream.flush()

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id, none for end of text (0); raises `InputError` for one without text."""
        if token == END_OF_TEXT:
            return b""
        data = self._bytes.get(token)
        if data is None:
            if not self.has_text(token):
                raise InputError(f"token id {token} has no text", wanted=f"an id of {self._path.name}")
            data = self._bytes[token] = self._read_line(int(self._start[token]))
        return data

    def has_text(self, token: int) -> bool:
        """Whether `token` is in the vocabulary."""
        return 0 <= token < len(self._start) and bool(self._start[token] >= 0)

    def stream(self) -> StreamDecoder:
        """Return a decoder for tokens that arrive one by one."""
        return StreamDecoder(self)

    def warm(self) -> None:
        """Read all tokens now, not at the first `encode` (half a second and 15 MB for the official 65529 tokens)."""
        self._match(b"")

    def _match(self, data: bytes) -> list[int]:
        """Take the longest token at every place, as the official tokenizers do."""
        if self._ids is None:
            with self._lock:
                self._index()
        assert self._ids is not None
        ids, lengths, found, at = self._ids, self._lengths, [], 0
        while at < len(data):
            for length in lengths.get(data[at : at + 2], ()) or lengths.get(data[at : at + 1], ()):
                token = ids.get(data[at : at + length])
                if token is not None:
                    found.append(token)
                    at += length
                    break
            else:
                raise InputError(
                    f"the vocabulary has no token for {data[at : at + 8].decode('utf-8', 'replace')!r}",
                    wanted="text made of the vocabulary's tokens",
                    hint="rephrase, or export with a vocabulary that holds all 256 single bytes",
                )
        return found

    def _index(self) -> None:
        """Read every literal: token -> id, and by their first one or two bytes the lengths that tokens have."""
        if self._ids is not None:
            return
        ids, lengths = {}, defaultdict(set)
        for token in np.flatnonzero(self._start >= 0).tolist():
            data = self._read_line(int(self._start[token]))
            ids[data] = token
            lengths[data[:2]].add(len(data))
        for prefix, sizes in lengths.items():
            if len(prefix) == 2 and prefix[:1] in ids:
                sizes.add(1)
        self._lengths = {prefix: tuple(sorted(sizes, reverse=True)) for prefix, sizes in lengths.items()}
        self._ids = ids

    def _read_line(self, start: int) -> bytes:
        end = self._raw.find(b"\n", start)
        literal, length = self._raw[start : end if end >= 0 else None].split(b" ", 1)[1].rsplit(b" ", 1)
        try:
            plain = literal[:1] in b"'\"" and b"\\" not in literal and literal[:1] not in literal[1:-1]
            value = literal[1:-1] if plain and literal[-1:] == literal[:1] else ast.literal_eval(literal.decode())
        except (ValueError, SyntaxError):
            raise self._malformed(self._raw.count(b"\n", 0, start)) from None
        data: bytes = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        if len(data) != int(length):
            raise self._malformed(self._raw.count(b"\n", 0, start))
        return data

    def _malformed(self, index: int) -> BundleError:
        line = self._raw.split(b"\n")[index][:60]
        return BundleError(
            f"{self._path.name}, line {index + 1}: {line!r}",
            wanted="id, Python literal, number of bytes, e.g. 11 '\\n' 1",
            hint="export the bundle again",
        )


class StreamDecoder:
    """Decodes tokens one by one, and never emits half a character.

    Bytes that cannot become valid UTF-8 give U+FFFD at once. End of text (0) gives nothing; any other id
    without text gives U+FFFD, so that a model that goes astray is seen to.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start with nothing pending."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Take one id; return the characters that are now complete."""
        if token == END_OF_TEXT or self._tokenizer.has_text(token):
            return self._decoder.decode(self._tokenizer.token_bytes(token))
        return self.flush() + REPLACEMENT

    def flush(self) -> str:
        """Return U+FFFD if a character was left incomplete, else nothing; afterwards nothing is pending."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
