"""Two bundles in the same conversations: how far a quantised model's logits and state are from its float model's.

The float model talks, on prompts of their own and in one long conversation; the other hears the same words and
pictures. Compared is what a user would notice last: every logit before every token of an answer, and the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from quant.conversation import QUESTIONS, Conversation, Gallery, Said, hear, talk
from quant.edited import open_engine
from quant.limits import SURE
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engine import Engine
from runtime.tokenizer import Tokenizer

PROMPTS = 24
WINDOW = 96  # positions compared before every stage of the long conversation
STAGES = (1_000, 10_000, 100_000)  # tokens
_CACHE = 256 << 20  # bytes of encoded pictures

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """What was found over some positions."""

    name: str  # "prompts", or the tokens of the long conversation
    tokens: int  # fed before the last position
    positions: int
    logits: float  # relative error
    kl: float  # mean Kullback-Leibler divergence from the float model's distribution, in nats
    agreement: float  # share of positions with the same first choice
    sure: int  # positions at which the float model is sure (`quant.limits.SURE`)
    sure_agreement: float  # the same share of those; 1 where there is none
    state: float  # relative error of the worst slot


@dataclass
class _Mark:
    """One stage as the float model went through it."""

    name: str
    tokens: int = 0
    turn: int = 0  # number of the last turn
    logits: list[np.ndarray] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Recording:
    """A float model's conversations."""

    prompts: list[Said]
    talk: list[Said]
    marks: list[_Mark]
    cache: Cache


def stages_up_to(tokens: int) -> tuple[int, ...]:
    """Return the stages of a conversation of so many tokens; its end is the last."""
    return (*(stage for stage in STAGES if stage < tokens), tokens) if tokens else ()


def record(
    bundle: Bundle,
    gallery: Gallery,
    tokens: int,
    *,
    threads: int | None = None,
    questions: Sequence[str] = QUESTIONS,
    progress: Progress = lambda stage, done, total: None,
) -> Recording:
    """Let a float model talk: `PROMPTS` fresh prompts, then one conversation of `tokens`."""
    recording = Recording([], [], [], Cache(_CACHE))
    with _opened(bundle, threads) as (engine, tokenizer):
        mark = _Mark("prompts")
        said = talk(engine, tokenizer, gallery, questions=questions, fresh=1, cache=recording.cache)
        for number, (conversation, turn, logits) in enumerate(itertools.islice(said, PROMPTS)):
            recording.prompts.append(turn)
            _note(mark, conversation, number, logits)
            progress("float model: prompts", number + 1, PROMPTS)
        recording.marks.append(mark)
        stages = list(stages_up_to(tokens))
        said = talk(engine, tokenizer, gallery, questions=questions, seed=1, cache=recording.cache)
        mark = _Mark("")
        for number, (conversation, turn, logits) in enumerate(said if stages else ()):
            recording.talk.append(turn)
            _note(mark, conversation, number, logits)
            del mark.logits[: max(0, len(mark.logits) - WINDOW)]
            progress("float model: conversation", min(conversation.tokens, tokens), tokens)
            if conversation.tokens >= stages[0]:
                mark.name = f"{stages.pop(0):,} tokens"
                mark.state = {name: array.copy() for name, array in mark.state.items()}  # the conversation goes on
                recording.marks.append(mark)
                mark = _Mark("", logits=mark.logits[:])
                if not stages:
                    break
    return recording


def replay(
    recording: Recording,
    bundle: Bundle,
    gallery: Gallery,
    *,
    same_vision: bool,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Stage]:
    """Let another bundle hear what was recorded; return what differs, stage by stage.

    Args:
        recording: of the float model.
        bundle: the other one.
        gallery: the same pictures.
        same_vision: whether both encode pictures alike, so that what is encoded need not be again.
        threads: compute threads.
        progress: called with (stage, turns done, turns).
    """
    cache = recording.cache if same_vision else Cache(_CACHE)
    prompts, *marks = recording.marks
    stages = []
    with _opened(bundle, threads) as (engine, tokenizer):
        found = _Mark("")
        heard = hear(engine, tokenizer, gallery, recording.prompts, fresh=1, cache=cache)
        for number, (conversation, logits) in enumerate(heard):
            _note(found, conversation, number, logits)
            progress("quantised model: prompts", number + 1, len(recording.prompts))
        stages.append(_compared(prompts, found))
        found = _Mark("")
        for number, (conversation, logits) in enumerate(hear(engine, tokenizer, gallery, recording.talk, cache=cache)):
            _note(found, conversation, number, logits)
            del found.logits[: max(0, len(found.logits) - WINDOW)]
            progress("quantised model: conversation", number + 1, len(recording.talk))
            if marks and number == marks[0].turn:
                stages.append(_compared(marks.pop(0), found))
    return stages


def compare(
    exact: Bundle,
    bundle: Bundle,
    gallery: Gallery,
    tokens: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Stage]:
    """Record one bundle and replay it to the other."""
    recording = record(exact, gallery, tokens, threads=threads, progress=progress)
    alike = same_vision(exact, bundle)
    return replay(recording, bundle, gallery, same_vision=alike, threads=threads, progress=progress)


def same_vision(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles encode pictures with the same weights."""
    files = [
        {name: spec.sha256 for name, spec in bundle.manifest.files.items() if name.startswith(("vision", "compressor"))}
        for bundle in (one, other)
    ]
    return files[0] == files[1]


@contextmanager
def _opened(bundle: Bundle, threads: int | None) -> Iterator[tuple[Engine, Tokenizer]]:
    engine, tokenizer = open_engine(bundle, threads)
    try:
        yield engine, tokenizer
    finally:
        engine.close()


def _note(mark: _Mark, conversation: Conversation, turn: int, logits: list[np.ndarray]) -> None:
    mark.logits += logits
    mark.turn, mark.tokens = turn, conversation.tokens
    mark.state = {name: buffer.read() for name, buffer in conversation.state.inputs.items()}


def _compared(exact: _Mark, found: _Mark) -> Stage:
    pairs = list(zip(exact.logits, found.logits, strict=True))
    errors = np.array([np.square(b - a, dtype=np.float64).mean() for a, b in pairs])
    scale = np.array([np.square(a, dtype=np.float64).mean() for a, _ in pairs])
    same = np.array([a.argmax() == b.argmax() for a, b in pairs])
    sure = np.array([is_sure(a) for a, _ in pairs])
    slots = exact.state.keys() & found.state.keys()
    return Stage(
        exact.name,
        exact.tokens,
        len(pairs),
        _finite(float(np.sqrt(errors.sum() / max(scale.sum(), 1e-30)))),
        _finite(float(np.mean([_divergence(a, b) for a, b in pairs]))),
        float(same.mean()),
        int(sure.sum()),
        float(same[sure].mean()) if sure.any() else 1.0,
        max(relative(found.state[slot], exact.state[slot]) for slot in slots),
    )


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the root mean square of the difference over that of `wanted`; infinite where anything is not finite."""
    difference = np.square(found.astype(np.float64) - wanted).mean()
    return _finite(float(np.sqrt(difference / max(np.square(wanted, dtype=np.float64).mean(), 1e-30))))


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


def is_sure(logits: np.ndarray) -> bool:
    """Whether a model's first choice is `SURE` times as likely as its second."""
    second, first = np.partition(logits, -2)[-2:]
    return bool(first - second >= np.log(SURE))


def _divergence(exact: np.ndarray, found: np.ndarray) -> float:
    a, b = (_log_softmax(x.astype(np.float64)) for x in (exact, found))
    return float((np.exp(a) * (a - b)).sum())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return logs
