"""Sharing steps on onnxruntime: what a session gives beside others has the bits of what it gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from apps.demo.scenes import draw, scene_of
from runtime import GenerateOptions, Session, VisualRWKV
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.lanes import Lanes

QUESTIONS = ("How many shapes are there?", "图里有红色图形吗？", "Is it day or night?", "Describe the picture.")


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[VisualRWKV]:
    with VisualRWKV.load(demo_bundle, threads=1) as model:
        yield model


@pytest.mark.parametrize("batch", [2, 3, 5, 8, 11])
def test_logits_and_states_have_the_same_bits(demo_bundle: Path, batch: int) -> None:
    engine = Engine(Bundle.open(demo_bundle), OrtBackend(threads=1))
    rng = np.random.default_rng(batch)
    lanes, vocab = Lanes(engine), engine.manifest.vocab_size
    shared, alone = [], []
    for length in rng.integers(1, 40, batch):
        shared.append(engine.new_state())
        engine.advance(rng.integers(1, vocab - 1, length), shared[-1])
        alone.append(shared[-1].copy())
    for _ in range(6):
        members = rng.permutation(batch)[: rng.integers(2, batch + 1)]
        rows = [engine.embed(rng.integers(1, vocab - 1, 1)) for _ in members]
        found = lanes.step(rows, [shared[i] for i in members])
        for row, i, logits in zip(rows, members, found, strict=True):
            np.testing.assert_array_equal(logits, engine.advance(row, alone[i]))
    for state, other in zip(shared, alone, strict=True):
        for slot in engine.manifest.slots:
            np.testing.assert_array_equal(state.array(slot.name), other.array(slot.name))
    engine.close()


def live(session: Session, seed: int) -> list[tuple[str, str]]:
    """A conversation drawn from `seed`: pictures, questions, answers cut short, forks, ways back."""
    rng, said = Random(seed), []
    options = GenerateOptions(max_tokens=12)
    session.see(draw(scene_of(90_000 + seed), 2))
    kept = session.snapshot()
    for _ in range(5):
        deed = rng.choice(["ask", "ask", "cut", "fork", "back", "see"])
        question = rng.choice(QUESTIONS)
        if deed == "fork":
            session = session.fork()
        elif deed == "back":
            session.restore(kept)
        elif deed == "see":
            session.see(draw(scene_of(91_000 + seed), 2))
            kept = session.snapshot()
        stop_at = rng.randint(1, 3) if deed == "cut" else 99
        text = ""
        for count, chunk in enumerate(session.ask(question, options=options), 1):
            text += chunk.text
            if count == stop_at:
                session.cancel()
        said.append((question, text))
    return said


def test_conversations_at_the_same_time_are_those_alone(model: VisualRWKV) -> None:
    """Each has its own picture; steps are shared at random."""
    for first in range(0, 24, 6):
        seeds = range(first, first + 6)
        wanted = {seed: live(model.session(), seed) for seed in seeds}
        with ThreadPoolExecutor(len(seeds)) as pool:
            found = pool.map(lambda seed: live(model.session(), seed), seeds)
        assert dict(zip(seeds, found, strict=True)) == wanted
    assert len({str(said) for said in wanted.values()}) > 1


def test_two_pictures_in_a_row_never_mix(model: VisualRWKV) -> None:
    pictures = [np.full((64, 64, 3), value, np.uint8) for value in (20, 230)]

    def seen(*images: np.ndarray) -> list[np.ndarray]:
        states = []
        for image in images:
            session = model.session()
            session.see(image)
            states.append(session.snapshot().state.arrays["wkv"])
        return states

    first, second, again = seen(pictures[0], pictures[1], pictures[0])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
