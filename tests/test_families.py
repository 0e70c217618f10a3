"""Conversations with every family, through the public interface: pictures, scans, image states, snapshots.

The golden checkpoints have 512 vocabulary rows, so the bundles get a vocabulary of single bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.config import ExportConfig
from runtime import GenerateOptions, Session, VisualRWKV

OPTIONS = GenerateOptions(max_tokens=6, ignore_stop=True)
FAMILIES: dict[str, dict[str, object]] = {
    "v60": {},
    "hm621": {"vision": {"type": "features", "cells": 64, "width": 48}, "num_token_per_image": 16},
    "rwkv6_text": {},
    "rwkv7_text": {},
}


@pytest.fixture(scope="module")
def byte_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "bytes.txt"
    lines = [
        f"{value + 1} {chr(value)!r} 1" if value < 128 else f"{value + 1} {bytes([value])!r} 1" for value in range(256)
    ]
    lines.append("261 '\\n\\n' 2")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(params=FAMILIES)
def model(
    request: pytest.FixtureRequest, golden: Path, export: Callable[..., Path], byte_vocabulary: Path
) -> Iterator[VisualRWKV]:
    name = f"{request.param}.pth"
    options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[name]
    options.update(FAMILIES[request.param])
    config = ExportConfig.from_dict({**options, "vocabulary": str(byte_vocabulary)})
    with VisualRWKV.load(export(golden / name, config=config), threads=1) as model:
        yield model


def answer(session: Session, question: str, *images: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Token ids, and the state they end in."""
    ids = [token for chunk in session.ask(question, images, OPTIONS) for token in chunk.token_ids]
    return ids, list(session.snapshot().state.arrays.values())


def same(found: tuple[list[int], list[np.ndarray]], wanted: tuple[list[int], list[np.ndarray]]) -> bool:
    return found[0] == wanted[0] and all(np.array_equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))


def pictures(model: VisualRWKV, count: int) -> list[np.ndarray]:
    """Pictures for a model that looks at pixels; none for the others."""
    vision = model.manifest.vision
    if vision is None or vision.views[0].kind != "pixels":
        return []
    rng = np.random.default_rng(9)
    return [rng.integers(0, 255, (70, 90, 3), np.uint8) for _ in range(count)]


def test_a_snapshot_in_the_middle_of_a_conversation_continues_identically(model: VisualRWKV) -> None:
    session = model.session()
    images = pictures(model, 2)
    answer(session, "What is this?", *images[:1])
    snapshot, fork = session.snapshot(), session.fork()
    wanted = answer(session, "And that?", *images[1:])
    other = model.session()
    other.restore(snapshot)
    assert same(answer(other, "And that?", *images[1:]), wanted)
    assert same(answer(fork, "And that?", *images[1:]), wanted)
    session.restore(snapshot)
    assert same(answer(session, "And that?", *images[1:]), wanted)


def test_a_new_session_begins_anew(model: VisualRWKV) -> None:
    images = pictures(model, 2)
    wanted = answer(model.session(), "What is this?", *images[:1])
    session = model.session()
    answer(session, "Something else", *images[1:])
    session.reset()
    assert same(answer(session, "What is this?", *images[:1]), wanted)
    if images:
        assert not same(answer(model.session(), "What is this?", *images[1:]), wanted)


def test_saved_states_hold_the_image_state_too(model: VisualRWKV, tmp_path: Path) -> None:
    session = model.session()
    answer(session, "What is this?", *pictures(model, 1))
    session.save(tmp_path / "kept.state")
    wanted = answer(session, "And now?")
    assert same(answer(model.session(tmp_path / "kept.state"), "And now?"), wanted)


def test_what_stands_in_for_a_picture_is_what_the_model_was_trained_with(model: VisualRWKV) -> None:
    session = model.session()
    answer(session, "Hello")
    vision = model.manifest.vision
    stand_in = 0 if vision is None else vision.tokens
    text = len("User: Hello\n\nAssistant:") - 1  # two newlines are one token
    if model.manifest.prompt.text_only == "black_picture":
        text += 1  # the newline behind the picture
        assert session.snapshot().state.arrays["image_state"].any()
    assert session.tokens == stand_in + text + OPTIONS.max_tokens - 1


def test_sessions_that_share_steps_say_what_each_says_alone(model: VisualRWKV) -> None:
    images = [[image] for image in pictures(model, 3)] or [[], [], []]
    questions = ["What is this?", "And this one?", "Hm?"]
    alone = [answer(model.session(), q, *seen) for q, seen in zip(questions, images, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda q, seen: answer(model.session(), q, *seen), questions, images))
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]
    for (_, found), (_, wanted) in zip(together, alone, strict=True):
        for ours, theirs in zip(found, wanted, strict=True):  # to the bit in RWKV-7; RWKV-6 adds in another order
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
