"""Memory is known to the byte before it is taken, and refused at the start."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import VisualRWKV
from runtime.errors import ConfigError
from runtime.memory import MemoryBudget, MemoryLimit, parse_bytes
from runtime.undo import UNDO_BYTES
from tests.runtime.fake_model import fake_model, frame, say


def test_the_budget_is_what_sessions_take(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "bundle")
    session = model.session()
    budget = model.budget()
    assert budget.state == session._state.nbytes == 2 * session.snapshot().state.nbytes
    assert budget.undo == session._undo.nbytes
    assert budget.per_session == session.nbytes
    for n in range(40):
        session.see(frame(n))
        say(session, "What?")
    assert session.nbytes == budget.per_session
    three = model.budget(3)
    assert three.total - budget.total == 2 * session.nbytes + three.steps
    assert three.steps == 3 * (session._state.nbytes + 4 * model.manifest.vocab_size)
    assert model.budget(50).steps == 8 * three.steps // 3
    assert three.cache == model.cache.max_bytes


def test_the_budget_of_the_demo_model(demo_bundle: Path) -> None:
    with VisualRWKV.load(demo_bundle, threads=1, sessions=2, memory_limit="100MB") as model:
        budget = model.budget(2)
        sessions = [model.session() for _ in range(2)]
        assert [session.nbytes for session in sessions] == [budget.per_session] * 2
        assert budget.state == model.manifest.budget.state_per_session
        assert budget.undo == 16 * budget.state // 2 <= UNDO_BYTES
        text = str(budget)
        for number in (budget.weights, budget.vision, 2 * budget.state, budget.total):
            assert str(number) in text
        with pytest.raises(ConfigError, match="sessions of this model need") as caught:
            while True:
                sessions.append(model.session())
        assert "total" in str(caught.value) and "100000000 bytes" in str(caught.value)


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.model.Engine", None)  # would fail otherwise
    with pytest.raises(ConfigError, match="language model weights") as caught:
        VisualRWKV.load(demo_bundle, memory_limit="20 MB")
    assert "cache_bytes" in str(caught.value)
    with pytest.raises(ConfigError, match="1000 sessions"):
        VisualRWKV.load(demo_bundle, memory_limit="200MB", sessions=1000)


def test_a_session_or_fork_too_many_is_refused(tmp_path: Path) -> None:
    limit = fake_model(tmp_path / "bundle").budget(2).total
    model = fake_model(tmp_path / "bundle", memory_limit=limit)
    first, second = model.session(), model.session()
    open_another: list[Callable[[], object]] = [model.session, first.fork]
    for another in open_another:
        with pytest.raises(ConfigError, match="3 sessions"):
            another()
    assert say(first, "What?") == say(second, "What?")
    del second
    gc.collect()
    assert model.session().tokens == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("7", 7),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("512mb", 512 * 10**6),
        (" 4 KiB ", 4096),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size
    assert parse_bytes(None) is None


@pytest.mark.parametrize("text", ["", "GB", "2 TB", "-1", "1e9", "two", 0, -5, True, 2.5, "0", "0.0GB"])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ConfigError, match="memory limit"):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"cache_bytes": -1}, {"undo_bytes": -1}, {"sessions": -1}, {"cache_bytes": "1GB"}])
def test_bad_counts(demo_bundle: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        VisualRWKV.load(demo_bundle, **options)


def test_the_limit_itself_fits() -> None:
    def budget(sessions: int) -> MemoryBudget:
        return MemoryBudget(1, 2, 3, 4, 5, sessions, 6, 7, 8)

    assert budget(2).total == 1 + 2 + 3 + 4 + 5 + 2 * 13 + 8
    MemoryLimit(49, budget).check(2)
    with pytest.raises(ConfigError, match="2 sessions"):
        MemoryLimit(48, budget).check(2)
    MemoryLimit(None, budget).check(10**9)
