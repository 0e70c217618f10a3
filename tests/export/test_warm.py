"""A system prompt baked into a bundle: sessions start behind it, and come back to it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.warm import WARM_FILE, bake
from runtime import Session, VisualRWKV
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.errors import BundleError, ConfigError, StateError
from runtime.spec import MANIFEST_FILE
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_model import TalkingBackend, bits, fake_model, frame, say

PROMPT = "System: You count shapes.\nBe brief.\n\n"
TOKENS = len(PROMPT) - 1  # one per byte, and one for the blank line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "warm")
    bundle = Bundle.open(tmp_path / "warm")
    before = bundle.manifest.fingerprint
    baked = bake(bundle, " You count shapes.\n\nBe brief. ", backend=TalkingBackend())
    assert baked.manifest.fingerprint != before
    assert Bundle.open(tmp_path / "warm").manifest == baked.manifest
    return tmp_path / "warm"


def fed_by_hand(folder: Path) -> Session:
    """A session that is fed the prompt instead."""
    bundle = Bundle.open(folder)
    engine = Engine(bundle, TalkingBackend())
    state = engine.new_state()
    engine.advance(Tokenizer(folder / "vocab.txt").encode(PROMPT), state)
    session = fake_model(folder).session()
    session.restore(replace(session.snapshot(), state=state.snapshot()))
    return session


def test_sessions_start_behind_the_prompt(folder: Path) -> None:
    model = fake_model(folder)
    assert model.manifest.warm is not None
    assert (model.manifest.warm.prompt, model.manifest.warm.tokens) == (PROMPT, TOKENS)
    session, wanted = model.session(), fed_by_hand(folder)
    assert (session.tokens, session.history) == (TOKENS, [])
    assert bits(session) == bits(wanted)
    session.see(frame(1))
    wanted.see(frame(1))
    assert say(session, "How many?") == say(wanted, "How many?")
    assert model.budget().start > 0


def test_reset_goes_back_to_it(folder: Path) -> None:
    model = fake_model(folder)
    session = model.session()
    start = bits(session)
    first = say(session, "How many?", frame(1))
    assert bits(session) != start
    session.reset()
    assert (bits(session), session.tokens) == (start, TOKENS)
    assert say(session, "How many?", frame(1)) == first
    fork = session.fork()
    fork.reset()
    assert bits(fork) == start


def test_saved_states_of_the_bundle_before_are_refused(folder: Path, tmp_path: Path) -> None:
    other = fake_model(tmp_path / "plain")
    other.session().save(tmp_path / "a")
    with pytest.raises(StateError, match="open the bundle it was saved with"):
        fake_model(folder).session(tmp_path / "a")


def test_baking_again_replaces_it(folder: Path) -> None:
    first = Bundle.open(folder)
    again = bake(first, "Other.", backend=TalkingBackend())
    assert again.manifest.warm is not None and again.manifest.warm.prompt == "System: Other.\n\n"
    assert set(again.manifest.files) == set(first.manifest.files)
    assert Bundle.open(folder).manifest.warm == again.manifest.warm


@pytest.mark.parametrize("text", ["", "  \n\n "])
def test_an_empty_prompt_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        bake(Bundle.open(folder), text, backend=TalkingBackend())


def test_a_baked_state_that_was_changed_is_refused(folder: Path) -> None:
    path = folder / WARM_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=WARM_FILE):
        Bundle.open(folder)
    with pytest.raises(StateError, match="was changed"):
        fake_model_unverified(folder)
    manifest = folder / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace(f'"file": "{WARM_FILE}"', '"file": "other"'))
    with pytest.raises(BundleError, match="'other'"):
        Bundle.open(folder, verify=False)


def fake_model_unverified(folder: Path) -> VisualRWKV:
    bundle = Bundle.open(folder, verify=False)
    return VisualRWKV(Engine(bundle, TalkingBackend()), Tokenizer(folder / "vocab.txt"))


def test_the_demo_model(demo_bundle: Path, tmp_path: Path) -> None:
    """In its own precision, on its own backend: bit for bit what feeding the prompt gives."""
    shutil.copytree(demo_bundle, tmp_path / "demo")
    bundle = bake(Bundle.open(tmp_path / "demo"), "Answer in one word.", threads=1)
    with VisualRWKV.load(tmp_path / "demo", threads=1) as model:
        session = model.session()
        engine = model.engine
        state = engine.new_state()
        engine.advance(model.tokenizer.encode("System: Answer in one word.\n\n"), state)
        for name, array in session.snapshot().state.arrays.items():
            np.testing.assert_array_equal(array, state.array(name))
        assert bundle.manifest.warm is not None
        assert session.tokens == bundle.manifest.warm.tokens > 0
        assert say(session, "Is it day or night?", np.zeros((64, 64, 3), np.uint8), max_tokens=20)
