"""The conversation template: from questions and answers to the pieces a model was trained on.

Every message is tokenised by itself, and a message with images piecewise around each of them, so that no
token spans such a border. Source: the official datasets of VisualRWKV v6 and v7
(`process_image_tokens_in_conversations`, `preprocess`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.spec import PromptSpec
from runtime.tokenizer import Tokenizer

PLACEHOLDER = "<image>"

_BLANK_LINES = re.compile(r"\n(?:\s*\n)+")


@dataclass(frozen=True)
class ImageSlot:
    """Where the embeddings of the turn's picture number `index` go, all its regions in a row."""

    index: int


Piece = str | ImageSlot


@dataclass(frozen=True)
class Turn:
    """A question with its number of pictures, and the answer; None where it is still to be generated."""

    question: str
    images: int = 0
    answer: str | None = None
    finish_reason: str | None = None  # "stop", "length" or "cancelled" once answered by a model


def clean(text: str) -> str:
    """Strip `text` and turn blank lines into line ends, so that it cannot contain the end of a turn."""
    return _BLANK_LINES.sub("\n", text.strip())


def turn_pieces(
    prompt: PromptSpec, question: str, n_images: int, *, turns: Sequence[Turn] | None = None, placed: int = 0
) -> list[Piece]:
    """Return one turn: the user's message in pieces, then the opening of the answer.

    Args:
        prompt: the template.
        question: what the user says. With pictures, "<image>" in it is only a placeholder and is cut out; the
            template decides where pictures go.
        n_images: how many pictures come with it.
        turns: for "middle", the turns of the conversation, this one included (the default: it alone), since a
            sandwich repeats all that people say in it.
        placed: how many pieces to leave out at the beginning; they cost nothing, however many pictures came before.

    Returns:
        Strings to be tokenised one by one, and slots for pictures. With pictures first, piece 2 i + 1 is
        picture i whatever the question is, so it can be fed before the question is known.
    """
    if not n_images:
        pieces: list[Piece] = [prompt.user + clean(question) + prompt.turn_end, prompt.assistant]
        return pieces[placed:]
    before, after = _around(prompt, question, turns or [Turn(question, n_images)])
    first = min(placed // 2, n_images - 1)  # pieces 2 i and 2 i + 1: what stands before picture i, and it
    pieces = []
    for index in range(first, n_images):
        pieces += [prompt.image_separator if index else prompt.user + before, ImageSlot(index)]
    return [*pieces, after + prompt.turn_end, prompt.assistant][placed - 2 * first :]


def answer_piece(prompt: PromptSpec, answer: str) -> str:
    """Return a finished answer as the one message it was trained as, opening included."""
    text = clean(answer)
    return f"{prompt.assistant} {text}{prompt.turn_end}" if text else prompt.assistant + prompt.turn_end


def conversation_pieces(prompt: PromptSpec, turns: Sequence[Turn]) -> list[Piece]:
    """Return a whole transcript, pictures numbered through; without a last answer it ends in its opening."""
    pieces: list[Piece] = []
    first = 0
    for turn in turns:
        own = turn_pieces(prompt, turn.question, turn.images, turns=turns)
        pieces += [ImageSlot(p.index + first) if isinstance(p, ImageSlot) else p for p in own]
        first += turn.images
        if turn.answer is not None:
            pieces[-1] = answer_piece(prompt, turn.answer)
    return pieces


def tokenise(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> list[list[int] | ImageSlot]:
    """Tokenise every string by itself and leave the slots in place."""
    return [piece if isinstance(piece, ImageSlot) else tokenizer.encode(piece) for piece in pieces]


def closing_ids(tokenizer: Tokenizer, prompt: PromptSpec, ids: Sequence[int]) -> list[int]:
    """Return what is still to be fed after an answer, before the next turn can begin.

    `ids` are the sampled tokens; all but the last have been fed. What is missing of the end of the turn is
    tokenised together with the last one, as training did ("。" and a blank line are 28329 11, not 10080
    261); what the last one says beyond the end of the turn is dropped, and so is a last one without text
    (end of text).
    """
    end = prompt.turn_end.encode()
    texts = [tokenizer.token_bytes(i) if tokenizer.has_text(i) else b"" for i in ids]
    fed, last = b"".join(texts[:-1]), b"".join(texts[-1:])
    stop = (fed + last).find(end, max(0, len(fed) - len(end) + 1))
    if stop >= 0:
        rest = last[: stop + len(end) - len(fed)]
    else:
        had = next(n for n in range(len(end), -1, -1) if (fed + last).endswith(end[:n]))
        rest = last + end[had:]
    if rest == last:
        return list(ids[-1:]) if last else []
    try:
        return tokenizer.encode(rest.decode())
    except UnicodeDecodeError:  # the answer was cut inside a character
        return [*ids[-1:], *([] if stop >= 0 else tokenizer.encode(end[had:].decode()))]


def _around(prompt: PromptSpec, question: str, turns: Sequence[Turn]) -> tuple[str, str]:
    """Return what stands in the user's message before and after the pictures."""
    body, between = clean(_cut_out(question)), prompt.image_separator
    if prompt.image_position == "first":
        return "", between + body if body else ""
    if prompt.image_position == "last":
        return body + between if body else "", ""
    said = [clean(_cut_out(t.question).replace(prompt.left_out, "")) if t.images else t.question.strip() for t in turns]
    before = "\n".join(said).strip()
    return before + between if before else "", between + body if body else ""


def _cut_out(text: str) -> str:
    return text.replace(PLACEHOLDER, "")
