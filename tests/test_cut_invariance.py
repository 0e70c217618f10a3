"""However a sequence is cut into calls, the model ends in the same state with the same logits.

Run on float32 bundles, with ordinary tokens and with one embedding repeated: identical image patches, the case that
breaks naive chunking. In int8 the kernel rounds activations to 8 bits, and a last-bit difference of the recurrence can
tip such a rounding, so there the test is what a user sees: the answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from apps.demo.scenes import draw, scene_of
from export.config import ExportConfig
from runtime import VisualRWKV
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.tokenizer import Tokenizer

CUTS = [(64,), (17, 47), (1,) * 64, (16, 16, 32), (63, 1), (1, 63)]
TOLERANCE = 1e-5  # relative RMS: the order of sums


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative RMS error."""
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@pytest.fixture(params=["rwkv7_text.pth", "rwkv6_text.pth"])
def engine(request: pytest.FixtureRequest, golden: Path, export: Callable[..., Path]) -> Iterator[Engine]:
    name = request.param
    options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[name]
    engine = Engine(Bundle.open(export(golden / name, config=ExportConfig.from_dict(options))), OrtBackend(threads=1))
    yield engine
    engine.close()


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: "+".join(map(str, cuts[:3])))
@pytest.mark.parametrize("repeated", [False, True], ids=["tokens", "identical-patches"])
def test_cuts(engine: Engine, cuts: tuple[int, ...], repeated: bool) -> None:
    tokens = np.random.default_rng(5).integers(1, engine.manifest.vocab_size - 1, 65)
    rows = engine.embed(np.full(65, tokens[0]) if repeated else tokens)
    whole, parts, start = engine.new_state(), engine.new_state(), 0
    engine.advance(rows[:64], whole)
    wanted = engine.advance(rows[64:], whole).copy()  # 65 - 1: the step after a whole number of chunks
    for length in cuts:
        engine.advance(rows[start : start + length], parts)
        start += length
    assert difference(engine.advance(rows[64:], parts), wanted) < TOLERANCE
    for slot in ("att_shift", "ffn_shift", "wkv"):
        assert difference(parts.array(slot), whole.array(slot)) < TOLERANCE, slot


def test_sixty_five_at_once(engine: Engine) -> None:
    tokens = np.random.default_rng(6).integers(1, engine.manifest.vocab_size - 1, 65)
    a, b = engine.new_state(), engine.new_state()
    wanted = engine.advance(tokens, a).copy()
    engine.advance(tokens[:64], b)
    assert difference(engine.advance(tokens[64:], b), wanted) < TOLERANCE


def test_int8_answers_do_not_depend_on_cuts(demo_bundle: Path) -> None:
    """Prompts fed token by token, in odd pieces, and at once: the same answers about drawn scenes."""
    answers = []
    for segment in (1, 17, 256):
        tokenizer = Tokenizer(demo_bundle / "vocab.txt")
        model = VisualRWKV(Engine(Bundle.open(demo_bundle), OrtBackend(threads=1), prefill_segment=segment), tokenizer)
        said = []
        for seed in range(60_000, 60_012):
            session = model.session()
            session.see(draw(scene_of(seed), 2))
            for question in ("How many shapes are there?", "图里有红色图形吗？", "Is it day or night?"):
                said.append("".join(chunk.text for chunk in session.ask(question)))
        answers.append(said)
        model.close()
    assert len(set(answers[0])) > 3
    assert answers[0] == answers[1] == answers[2]


def test_two_sessions_interleaved_are_two_sessions(demo_bundle: Path) -> None:
    """A and B taking turns on one model answer exactly as each does alone."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(2)]
    questions = ("How many circles are there?", "Is it day or night?")

    def alone(model: VisualRWKV, picture: np.ndarray) -> list[str]:
        session = model.session()
        session.see(picture)
        return ["".join(chunk.text for chunk in session.ask(question)) for question in questions]

    with VisualRWKV.load(demo_bundle) as model:
        wanted = [alone(model, picture) for picture in pictures]
        sessions = [model.session() for _ in pictures]
        for session, picture in zip(sessions, pictures, strict=True):
            session.see(picture)
        found: list[list[str]] = [[], []]
        for question in questions:
            streams = [session.ask(question) for session in sessions]
            texts = ["", ""]
            for _ in range(200):
                for i, stream in enumerate(streams):
                    chunk = next(stream, None)
                    texts[i] += chunk.text if chunk else ""
            for i, text in enumerate(texts):
                found[i].append(text)
        assert found == wanted
