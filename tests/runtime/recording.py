"""An engine that records what it is fed, for tests of everything that is built on one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backends.fake import FakeBuffer
from runtime.engine import Encoded, Segment
from runtime.progress import Picture
from runtime.sampling import GenerateOptions
from runtime.scheduler import Scheduler
from runtime.session import Session
from runtime.spec import (
    SCHEMA_VERSION,
    Budget,
    EmbeddingSpec,
    Manifest,
    PromptSpec,
    Provenance,
    TokenizerSpec,
    ViewSpec,
    VisionSpec,
)
from runtime.state import Snapshot
from runtime.tokenizer import Tokenizer

VOCAB = 65536
TOKENS = 3  # per picture
OPENING = [5585, 41693, 59]  # "Assistant:"
VIEW = ViewSpec("pixels", 4, 4, (0.0,) * 3, (1.0,) * 3, "bicubic", "stretch", "pixels")
PROMPT = PromptSpec("User: ", "Assistant:", "\n\n", "first", "\n")
MANIFEST = Manifest(
    schema=SCHEMA_VERSION,
    name="fake",
    family="fake",
    target="cpu",
    precision="fp32",
    fingerprint="",
    vocab_size=VOCAB,
    width=2,
    slots=(),
    graphs=(),
    embedding=EmbeddingSpec("table", "float32", VOCAB, 2),
    vision=VisionSpec((VIEW,), TOKENS, None),
    prompt=PROMPT,
    tokenizer=TokenizerSpec("vocab.txt", (0, 261), 65535, 261, "none"),
    precision_map=(),
    budget=Budget(0, 0, 0, 0),
    provenance=Provenance("", "", ""),
    files={},
)


class RecordingState:
    """Holds the ids of everything fed; pictures have negative ones."""

    nbytes = 64
    away: Any = None

    def __init__(self, batch: int = 1) -> None:
        self.lanes: list[list[int]] = [[] for _ in range(batch)]

    @property
    def fed(self) -> list[int]:
        """Of a state of one sequence."""
        if self.away is not None:
            self.away.bring_home(self)
        (ids,) = self.lanes
        return ids

    @fed.setter
    def fed(self, ids: list[int]) -> None:
        assert self.away is None
        self.lanes = [ids]

    def take_in(self, lane: int, other: RecordingState) -> None:
        self.lanes[lane] = other.fed[:]

    def give_back(self, lane: int, other: RecordingState) -> None:
        other.lanes = [self.lanes[lane]]

    @property
    def inputs(self) -> dict[str, FakeBuffer]:
        buffer = FakeBuffer((len(self.fed),), "int64")
        buffer.write(np.array(self.fed, np.int64))
        return {"fed": buffer}

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        return Snapshot({"fed": np.array(self.fed, np.int64)})

    def restore(self, snapshot: Snapshot) -> None:
        self.fed[:] = snapshot.arrays["fed"].tolist()

    def zero(self) -> None:
        self.fed.clear()


class RecordingEngine:
    """Answers turn n with `answers[n]`, then id 261; without answers, with a function of everything fed."""

    def __init__(self, manifest: Manifest = MANIFEST, answers: Sequence[Sequence[int]] = ()) -> None:
        self.manifest, self.answers = manifest, answers
        self.calls = 0
        self.log: list[tuple[str, int]] = []  # of calls: "feed" or "step", with tokens or sequences
        self.segment = 10_000
        self.lock = threading.Lock()
        self.before_step: Any = lambda: None
        self.fail_encode: BaseException | None = None
        self._logits = np.zeros(manifest.vocab_size, np.float32)
        self.scheduler = Scheduler(self)  # type: ignore[arg-type]

    def new_state(self, batch: int = 1) -> RecordingState:
        return RecordingState(batch)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        return np.stack([np.array([i, 0], np.float32) for i in tokens])

    def encode(self, views: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.fail_encode is not None:
            raise self.fail_encode
        return np.stack([picture_rows(round(float(view.mean()) * 255)) for view in views["pixels"]])

    def encode_with_features(self, views: Mapping[str, np.ndarray]) -> Encoded:
        return Encoded(self.encode(views), None)

    def advance(self, x: Any, state: RecordingState, image: tuple[int, int] | None = None) -> np.ndarray:
        self.calls += 1
        rows = x if isinstance(x, np.ndarray) else self.embed(x)
        self.log.append(("feed", len(rows)))
        half = len(rows) // 2
        state.fed += rows[:half, 0].astype(int).tolist()
        self.before_step()  # may raise, with half of the rows fed
        state.fed += rows[half:, 0].astype(int).tolist()
        self._logits[:] = 0
        self._logits[self._next(state.fed)] = 1
        return self._logits

    def cut(self, x: Any, image: tuple[int, int] | None = None) -> list[Segment]:
        rows = x if isinstance(x, np.ndarray) else self.embed(x)
        return [(rows[i : i + self.segment], image) for i in range(0, len(rows), self.segment)]

    def step(self, rows: np.ndarray, state: RecordingState) -> np.ndarray:
        self.calls += 1
        self.log.append(("step", len(rows)))
        self.before_step()  # may raise, with nothing fed
        assert len(rows) == len(state.lanes) > 1
        logits = np.zeros((len(rows), self.manifest.vocab_size), np.float32)
        for row, ids, votes in zip(rows, state.lanes, logits, strict=True):
            ids.append(int(row[0]))
            votes[self._next(ids)] = 1
        return logits

    def _next(self, fed: list[int]) -> int:
        openings = [i + 3 for i in range(len(fed) - 2) if fed[i : i + 3] == OPENING]
        if not self.answers:
            return hash(tuple(fed)) % 60000 + 300
        if not openings:
            return 0
        answer = self.answers[len(openings) - 1]
        said = len(fed) - openings[-1]
        return answer[said] if said < len(answer) else 261


def open_session(engine: RecordingEngine, tokenizer: Tokenizer, **options: Any) -> Session:
    """A session on an engine, which several may share."""
    return Session(engine.scheduler, tokenizer, **options)


def picture(value: int) -> np.ndarray:
    return np.full((5, 6, 3), value, np.uint8)


def picture_rows(value: int) -> np.ndarray:
    return np.array([[-10 * value - i, 1] for i in range(TOKENS)], np.float32)


def fed(session: Session) -> list[int]:
    """What the session has fed, and what it still has to."""
    snapshot = session.snapshot()
    waiting = [
        x.embeddings[:, 0].astype(int).tolist() if isinstance(x, Picture) else list(x) for x in snapshot.progress.queue
    ]
    return [*snapshot.state.arrays["fed"].tolist(), *(i for ids in waiting for i in ids)]


def say(session: Session, question: str, *images: np.ndarray, **options: Any) -> str:
    return "".join(chunk.text for chunk in session.ask(question, images, GenerateOptions(**options)))
