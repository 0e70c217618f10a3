"""Text to token ids and back: greedy longest match over UTF-8 bytes, as every RWKV "World" model was trained.

A vocabulary file has one token per line, `id literal bytes`, e.g. `11 '\\n' 1`; the literal is a Python
string, or bytes where it is not valid UTF-8. Trimmed and renumbered files of the same format work as well.
Matching is done by pyrwkv-tokenizer; decoding is ours, because a stream of tokens can end in the middle of
a character.
"""

from __future__ import annotations

import ast
import codecs
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pyrwkv_tokenizer import RWKVTokenizer

from runtime.errors import BundleError, InputError

END_OF_TEXT = 0  # has an embedding, but no text and no line in the file
LARGEST_ID = 65535  # ids are 16 bit in pyrwkv-tokenizer
REPLACEMENT = "\ufffd"

_LINE = re.compile(rb"""^([1-9]\d{0,4}) b?['"][^\r\n]+['"] [1-9]\d*\r?$""", re.MULTILINE)


class Tokenizer:
    """A vocabulary. Safe to use from several threads."""

    def __init__(self, vocab_path: Path) -> None:
        """Check and index the file; literals are read, and the matcher is built, when first needed.

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
        self._matcher: RWKVTokenizer | None = None
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
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self._match(text)
        # The matcher silently drops what it has no token for, so the length is what proves the result.
        data, covered = text.encode(), sum(len(self.token_bytes(i)) for i in ids)
        if covered != len(data):
            left = data[covered : covered + 8].decode("utf-8", "replace")
            raise InputError(
                f"the vocabulary has no token for {left!r}",
                wanted="text made of the vocabulary's tokens",
                hint="rephrase, or export with a vocabulary that holds all 256 single bytes",
            )
        return ids

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
        """Build the matcher now, not at the first `encode` (0.4 s for the official file of 65529 tokens)."""
        self._match("")

    def _match(self, text: str) -> list[int]:
        try:
            with self._lock:
                if self._matcher is None:
                    self._matcher = RWKVTokenizer(vocab_filepath=str(self._path))
            return list(self._matcher.encode(text))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a Rust panic is not an Exception
            raise BundleError(
                f"pyrwkv-tokenizer cannot use vocabulary {self._path.name}: {error}",
                hint="compare the file's literals and lengths with the official format",
            ) from None

    def _read_line(self, start: int) -> bytes:
        end = self._raw.find(b"\n", start)
        literal, length = self._raw[start : end if end >= 0 else None].split(b" ", 1)[1].rsplit(b" ", 1)
        try:
            value = ast.literal_eval(literal.decode())
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
