"""Sampling: the official order of operations, spelled out in float64, and its edges."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError, StateError
from runtime.sampling import GenerateOptions, Sampler

OFFICIAL_DEMO = {"temperature": 0.2, "top_p": 0.3, "frequency_penalty": 1.0, "penalty_decay": 0.996}


def logits_of(size: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def allowed(logits: np.ndarray, top_p: float, top_k: int) -> set[int]:
    """The ids that top_p, then top_k leave, from a full sort."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-p, kind="stable")
    reached = np.flatnonzero(np.cumsum(p[order]) >= top_p * p.sum() * (1 - 1e-12))
    kept = order[p[order] >= p[order[reached[0]]]] if top_p < 1 else order
    return set(kept[:top_k].tolist() if top_k else kept.tolist())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "warm"),
        ("top_p", 1.01),
        ("top_p", float("inf")),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("presence_penalty", None),
        ("frequency_penalty", float("nan")),
        ("penalty_decay", 1.5),
        ("seed", -1),
        ("seed", 0.5),
        ("stop", "###"),
        ("stop", ("",)),
        ("stop", (1,)),
        ("ignore_stop", 1),
    ],
)
def test_wrong_options_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerateOptions(**{name: value})


def test_options_of_numpy_types_and_a_list_of_stops() -> None:
    options = GenerateOptions(max_tokens=np.int64(3), temperature=np.float32(0.5), stop=["a"])  # type: ignore[arg-type]
    assert options.stop == ("a",)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_greedy_takes_the_first_maximum_and_leaves_the_logits(values: list[int]) -> None:
    logits = np.array(values, np.float32)
    before = logits.copy()
    assert Sampler(GenerateOptions(), len(values)).pick(logits) == values.index(max(values))
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    logits = np.zeros(8, np.float32)
    logits[3] = bad
    with pytest.raises(StateError, match="not finite"):
        Sampler(GenerateOptions(), 8).pick(logits)
    with pytest.raises(StateError, match="shape"):
        Sampler(GenerateOptions(), 9).pick(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_ids_are_never_picked(temperature: float) -> None:
    logits = np.zeros(4, np.float32)
    logits[3] = 50
    sampler = Sampler(GenerateOptions(temperature=temperature, seed=1), 4, forbidden=(3, 99, -1))
    assert {sampler.pick(logits) for _ in range(60)} <= {0, 1, 2}


@given(
    st.integers(0, 10**6),
    st.integers(1, 1500),
    st.floats(0, 1),
    st.integers(0, 40),
    st.sampled_from([0.01, 1.0, 6.0]),
)
def test_only_the_nucleus_is_drawn(seed: int, size: int, top_p: float, top_k: int, spread: float) -> None:
    logits = logits_of(size, seed, spread)
    options = GenerateOptions(temperature=1.5, top_p=top_p, top_k=top_k, seed=seed)
    kept = allowed(logits, top_p, top_k)
    sampler = Sampler(options, size)
    assert {sampler.pick(logits) for _ in range(5)} <= kept


def test_frequencies_follow_the_official_sampler() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
    sampler = Sampler(GenerateOptions(temperature=0.5, top_p=0.85, seed=3), 5)
    counts = np.bincount([sampler.pick(logits) for _ in range(4000)], minlength=5) / 4000
    wanted = np.array([0.4, 0.3, 0.2, 0, 0]) ** 2  # cut at 0.85 before the temperature
    np.testing.assert_allclose(counts, wanted / wanted.sum(), atol=0.03)
    assert not counts[3:].any()


def test_equal_probabilities_at_the_floor_are_all_kept() -> None:
    sampler = Sampler(GenerateOptions(temperature=1.0, top_p=0.3, seed=0), 8)
    assert {sampler.pick(np.zeros(8, np.float32)) for _ in range(300)} == set(range(8))


def test_a_low_temperature_does_not_overflow() -> None:
    sampler = Sampler(GenerateOptions(temperature=1e-4, seed=0), 3)
    assert sampler.pick(np.array([1e4, -1e4, 9.9e3], np.float32)) == 0


def test_the_seed_decides() -> None:
    def picks(seed: int | None) -> list[int]:
        sampler = Sampler(GenerateOptions(temperature=1.0, seed=seed), 500)
        return [sampler.pick(np.zeros(500, np.float32)) for _ in range(20)]

    assert picks(7) == picks(7)
    assert picks(7) != picks(8)
    assert picks(None) != picks(None)


def test_penalties_follow_the_official_counts() -> None:
    options = GenerateOptions(presence_penalty=0.3, frequency_penalty=1.0, penalty_decay=0.9, repetition_penalty=1.2)
    sampler = Sampler(options, 6)
    counts: dict[int, float] = {}
    for step in range(40):
        logits = logits_of(6, step, 2.0)
        wanted = logits.astype(np.float64)
        for token, count in counts.items():
            wanted[token] = wanted[token] / 1.2 if wanted[token] > 0 else wanted[token] * 1.2
            wanted[token] -= 0.3 + count
        token = int(wanted.argmax())
        assert sampler.pick(logits) == token
        counts = {known: count * 0.9 for known, count in counts.items()}
        counts[token] = counts.get(token, 0) + 1


@pytest.mark.parametrize("more", [{}, OFFICIAL_DEMO, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 40}])
def test_a_pick_is_cheap_beside_a_step(more: dict[str, float]) -> None:
    sampler = Sampler(GenerateOptions(seed=0, **more), 65536)  # type: ignore[arg-type]
    logits = logits_of(65536, 0)
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        sampler.pick(logits)
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3  # 0.05 to 1.2 ms when measured; a step of a small model takes several
