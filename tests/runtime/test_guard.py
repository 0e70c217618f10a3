"""The watchdog: damage to a state is noticed, taken back, counted and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import GenerateOptions, VisualRWKV
from runtime.backends.fake import FakeBackend
from runtime.errors import ConfigError, RollbackError, StateError
from runtime.guard import Watchdog
from runtime.spec import SlotSpec
from runtime.state import State
from tests.runtime.fake_model import bits, fake_model, frame, say


def state(value: float = 1.0) -> State:
    slots = (
        SlotSpec("shift", "float32", (2, "B", 4), ("layer", "batch", "channel"), "carried"),
        SlotSpec("image", "float32", (2, "B", 4), ("layer", "batch", "channel"), "context"),
    )
    one = State(slots, FakeBackend())
    array = np.zeros((2, 1, 4), np.float32)
    array[1, 0, 2] = value
    one.write("image", array)
    return one


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7, -1e7])
def test_damage_is_found_and_placed(value: float) -> None:
    found = Watchdog().fault(state(value))
    assert found is not None
    assert "slot 'image'" in found and "[1, 0, 2]" in found and "1 values" in found


@pytest.mark.parametrize("value", [0.0, 1e6, -1e6, 1e-40])
def test_sound_states_pass(value: float) -> None:
    assert Watchdog().fault(state(value)) is None


@pytest.mark.parametrize("options", [{"every": 0}, {"limit": 0.0}, {"limit": float("nan")}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="watchdog"):
        Watchdog(**options)


def corrupt(model: VisualRWKV, at: int, value: float, *, logits: bool = False) -> Callable[[], None]:
    """Let the engine's call number `at` leave `value` in the state, once (and logits that are not finite)."""
    advance, calls = model.engine.advance, 0

    def bad(x: Any, state: State, image: Any = None) -> np.ndarray:
        nonlocal calls
        calls += 1
        out = advance(x, state, image)
        if calls == at:
            array = state.array("att_shift")
            array[0, 0, 0] = value
            state.write("att_shift", array)
            return np.full_like(out, np.nan) if logits else out
        return np.nan_to_num(out)

    model.engine.advance = bad  # type: ignore[method-assign]

    def heal() -> None:
        model.engine.advance = advance  # type: ignore[method-assign]

    return heal


@pytest.mark.parametrize(
    ("at", "value", "logits"),
    [(1, np.nan, True), (1, 1e9, False), (4, np.inf, True), (4, -1e9, False), (6, np.nan, False)],
)
def test_an_answer_that_ruins_the_state_is_taken_back(tmp_path: Path, at: int, value: float, logits: bool) -> None:
    model = fake_model(tmp_path / "bundle")
    session, other = model.session(), model.session()
    for one in (session, other):
        one.see(frame(1))
        say(one, "First?")
    before, history = bits(session), session.history
    heal = corrupt(model, at, value, logits=logits)
    with pytest.raises(RollbackError, match="att_shift"):
        say(session, "Second?", ignore_stop=True)
    heal()
    assert (session.rollbacks, bits(session), session.history) == (1, before, history)
    assert say(session, "Third?") == say(other, "Third?")
    assert other.rollbacks == 0
    session.reset()
    assert session.rollbacks == 1


def test_a_picture_that_ruins_the_state_is_taken_back_and_not_cached(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    session = model.session()
    heal = corrupt(model, 1, np.nan)
    with pytest.raises(RollbackError):
        session.see(frame(1))
    heal()
    assert (session.rollbacks, session.tokens, session.frames) == (1, 0, 0)
    session.see(frame(1))
    other = model.session()
    other.see(frame(1))
    assert bits(session) == bits(other)
    assert session.rollbacks == 1


def test_it_looks_every_k_tokens(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle", watchdog=Watchdog(every=5))
    session = model.session()
    heal = corrupt(model, 3, 1e9)
    shown = []
    with pytest.raises(RollbackError):
        for chunk in session.ask("Go?", options=GenerateOptions(max_tokens=1000, ignore_stop=True)):
            shown += chunk.token_ids
    heal()
    assert len(shown) <= 3 + 5
    assert session.tokens == 0


def test_closing_an_answer_checks_too(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    session = model.session()
    heal = corrupt(model, 2, 1e9)
    stream = session.ask("Go?", options=GenerateOptions(ignore_stop=True))
    while not next(stream).text:
        pass
    next(stream)
    with pytest.raises(RollbackError):
        stream.close()  # type: ignore[attr-defined]
    heal()
    assert (session.rollbacks, session.tokens) == (1, 0)
    assert say(session, "Go?")


def test_without_a_way_back_the_session_is_broken(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle", undo_bytes=0)
    session = model.session()
    heal = corrupt(model, 2, np.nan, logits=True)
    with pytest.raises(StateError) as caught:
        say(session, "Go?")
    heal()
    assert not isinstance(caught.value, RollbackError)
    with pytest.raises(StateError, match="broke"):
        say(session, "Go?")
    session.reset()
    assert say(session, "Go?")
    assert session.rollbacks == 0
