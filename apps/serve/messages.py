"""From OpenAI's messages to the turns of a conversation, as the runtime's prompt template knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apps.serve.failures import Refused
from apps.serve.pictures import Sent
from apps.serve.schema import Message, TextPart
from runtime.cache import extend


@dataclass
class Said:
    """One turn: what the system says before it, the user's message, and the answer if it was given already."""

    system: str = ""
    question: str = ""
    images: list[Sent] = field(default_factory=list)
    answer: str | None = None
    index: int = 0  # of its last message

    def digest(self, before: bytes) -> bytes:
        """Digest of this turn and all before it, whose digest is `before`. White space around texts does not count."""
        texts = [text.strip().encode("utf-8", "replace") for text in (self.system, self.question, self.answer or "")]
        return extend(before, [*texts, *(image.digest for image in self.images)])

    @property
    def nbytes(self) -> int:
        """Bytes of text to be read."""
        return sum(len(text.encode("utf-8", "replace")) for text in (self.system, self.question, self.answer or ""))


def turns(messages: Sequence[Message], open_: Callable[[str], Sent]) -> list[Said]:
    """Group messages into turns, the last of them without an answer; messages of one side in a row are joined.

    Args:
        messages: as they came.
        open_: opens a picture by its address.

    Raises:
        Refused: (400) nothing to answer, an answer to nothing, or a picture that is not the user's.
        InputError: what `open_` raises.
    """
    found: list[Said] = [Said()]
    for index, message in enumerate(messages):
        turn = found[-1]
        system = message.role in ("system", "developer")
        if message.role != "assistant" and turn.answer is not None:
            found.append(turn := Said())
        turn.index = index
        text = _text(message, index)
        if system:
            if _asked(turn):
                raise _wrong(index, "a system message between a question and its answer")
            turn.system = _join(turn.system, text)
        elif message.role == "user":
            turn.question = _join(turn.question, text)
            turn.images += [open_(url) for url in _urls(message)]
        else:
            if not _asked(turn):
                raise _wrong(index, "an answer without a question")
            turn.answer = text if turn.answer is None else _join(turn.answer, text)
    last = found[-1]
    if last.answer is not None or not _asked(last):
        raise _wrong(len(messages) - 1, "the last message must be the user's, and say or show something")
    return found


def root(fingerprint: str) -> bytes:
    """The digest of a conversation with a model before anything was said."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()


def _asked(turn: Said) -> bool:
    return bool(turn.question.strip() or turn.images)


def _text(message: Message, index: int) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if message.role != "user" and _urls(message):
        raise _wrong(index, f"a picture in a message of the {message.role}")
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _urls(message: Message) -> list[str]:
    parts = message.content if isinstance(message.content, list) else []
    return [part.image_url.url for part in parts if not isinstance(part, TextPart)]


def _join(first: str, second: str) -> str:
    return f"{first}\n{second}" if first and second else first or second


def _wrong(index: int, what: str) -> Refused:
    return Refused(400, "invalid_value", f"messages.{index}: {what}", param=f"messages.{index}")
