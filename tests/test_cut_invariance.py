"""However a sequence is cut into calls, the bundle ends in the same state with the same logits.

Run on the demo bundle (int8, 64-wide heads, a real model) and on a float32 bundle of random weights, with ordinary
tokens and with one embedding repeated: identical image patches, the case that breaks naive chunking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export.config import ExportConfig
from runtime import VisualRWKV
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine

CUTS = [(64,), (17, 47), (1,) * 64, (16, 16, 32), (63, 1), (1, 63)]
# Float32 differs by the order of sums; 8-bit kernels also by which of two kernels a call's length selects.
TOLERANCE = {"fp32": 1e-4, "int8": 1e-3}


@pytest.fixture(params=["fp32", "int8"])
def engine(
    request: pytest.FixtureRequest, golden: Path, export: Callable[..., Path], demo_bundle: Path
) -> Iterator[Engine]:
    folder = demo_bundle
    if request.param == "fp32":
        name = "rwkv7_text.pth"
        options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[name]
        folder = export(golden / name, config=ExportConfig.from_dict(options))
    engine = Engine(Bundle.open(folder), OrtBackend(threads=1))
    yield engine
    engine.close()


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: "+".join(map(str, cuts[:3])))
@pytest.mark.parametrize("repeated", [False, True], ids=["tokens", "identical-patches"])
def test_cuts(engine: Engine, cuts: tuple[int, ...], repeated: bool) -> None:
    limit = TOLERANCE[engine.manifest.precision]
    tokens = np.random.default_rng(5).integers(1, engine.manifest.vocab_size - 1, 65)
    rows = engine.embed(np.full(65, tokens[0]) if repeated else tokens)
    whole, parts, start = engine.new_state(), engine.new_state(), 0
    engine.advance(rows[:64], whole)
    wanted = engine.advance(rows[64:], whole).copy()  # 65 - 1: the step after a whole number of chunks
    for length in cuts:
        engine.advance(rows[start : start + length], parts)
        start += length
    found = engine.advance(rows[64:], parts)
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, atol=limit * scale, rtol=0)
    for slot in ("att_shift", "ffn_shift", "wkv"):
        np.testing.assert_allclose(parts.array(slot), whole.array(slot), atol=10 * limit, rtol=0, err_msg=slot)


def test_sixty_five_at_once(engine: Engine) -> None:
    limit = TOLERANCE[engine.manifest.precision]
    tokens = np.random.default_rng(6).integers(1, engine.manifest.vocab_size - 1, 65)
    a, b = engine.new_state(), engine.new_state()
    wanted = engine.advance(tokens, a).copy()
    engine.advance(tokens[:64], b)
    found = engine.advance(tokens[64:], b)
    np.testing.assert_allclose(found, wanted, atol=limit * max(1.0, float(np.abs(wanted).max())), rtol=0)


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
