"""The measurement itself: rounds in which everything has its turn, so that a busy neighbour meets all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.bench.energy import find_meter
from apps.bench.machine import machine, memory_mb, read_bandwidth, spread
from apps.bench.stages import STAGES, FirstToken, share_outside
from runtime import VisualRWKV
from runtime.errors import ConfigError
from runtime.memory import snapshot_bytes
from runtime.state import State

WARM_UP = 3  # steps before the first that counts
COUNTED = 8  # steps whose bytes are counted


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often."""

    contexts: tuple[int, ...] = (0, 1024, 4096)
    rounds: int = 7
    tokens: int = 32  # decoded per context and round
    bandwidth_s: float = 0.4  # per round
    prefill: int = 256  # tokens of the prefill measurement

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("rounds", "tokens", "prefill"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", wanted="at least 1")
        if not self.contexts or min(self.contexts) < 0:
            raise ConfigError(f"contexts are {list(self.contexts)}", wanted="token counts, each 0 or more")


def measure(
    path: Path,
    plan: Plan,
    *,
    device: str = "auto",
    threads: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a bundle.

    Args:
        path: the bundle's folder.
        plan: what, and how often.
        device: as for `VisualRWKV.load`.
        threads: as for `VisualRWKV.load`.
        report: told what is going on, in a few words.

    Returns:
        What `--json` writes; every figure with median and quartiles. Units are in the names.
    """
    start = time.perf_counter()
    with VisualRWKV.load(path, device, threads=threads, verify=False) as model:
        load_s = time.perf_counter() - start
        engine, manifest = model.engine, model.manifest
        threads = int(getattr(engine.backend, "threads", threads or 1))
        first, rng = FirstToken(model), np.random.default_rng(1)
        states = _states(model, plan.contexts, rng, report)
        prompt = rng.integers(1, manifest.vocab_size - 1, plan.prefill)
        meter, told = find_meter()
        stages: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
        decode: dict[int, list[float]] = {context: [] for context in plan.contexts}
        bandwidth: list[float] = []
        prefill: list[float] = []
        joules: list[float] = []
        scratch = engine.new_state()
        first()
        for number in range(plan.rounds):
            report(f"round {number + 1} of {plan.rounds}")
            for name, milliseconds in first().items():
                stages[name].append(milliseconds)
            began = time.perf_counter()
            engine.advance(prompt, scratch)
            prefill.append(plan.prefill / (time.perf_counter() - began))
            for context, state in states.items():
                if meter is not None:
                    meter.start()
                decode[context].append(_decode(model, state, plan.tokens, rng))
                if meter is not None:
                    joules.append(meter.stop() / plan.tokens)
            held = memory_mb()  # before the blocks of the bandwidth are there
            bandwidth.append(read_bandwidth(threads, plan.bandwidth_s))
        speed = spread(bandwidth)
        read = read_per_token(model, states[max(states)])
        limit = speed["median"] * 1e9 / read["total"]
        result: dict[str, Any] = {
            "bundle": {"name": manifest.name, "family": manifest.family, "precision": manifest.precision},
            "fingerprint": manifest.fingerprint,
            "machine": machine(),
            "backend": engine.backend.name,
            "threads": threads,
            "rounds": plan.rounds,
            "load_s": load_s,
            "first_token_ms": {name: spread(values) for name, values in stages.items()},
            "first_token_positions": first.fed,
            "prefill_tokens_s": {"tokens": plan.prefill, **spread(prefill)},
            "decode_tokens_s": {str(context): spread(values) for context, values in decode.items()},
            "read_per_token_bytes": read,
            "bandwidth_gb_s": speed,
            "limit_tokens_s": limit,
            "percent_of_limit": {str(c): 100 * spread(values)["median"] / limit for c, values in decode.items()},
            "memory_mb": {
                **(held or {}),
                "weights": manifest.budget.weights / 1e6,
                "vision": manifest.budget.vision / 1e6,
                "embedding_table": manifest.budget.embedding_table / 1e6,
                "state": read["state"] / 1e6,
            },
            "energy": {"source": told, "joules_per_token": spread(joules) if joules else None},
        }
        result["outside_vision_and_prefill"] = share_outside(result["first_token_ms"])
        return result


def _states(
    model: VisualRWKV, contexts: Sequence[int], rng: np.random.Generator, report: Callable[[str], None]
) -> dict[int, State]:
    """A state for each context, advanced that far, and warm."""
    states, state, done = {}, model.engine.new_state(), 0
    for context in sorted(set(contexts)):
        if context > done:
            report(f"feeding {context - done} tokens, up to context {context}")
            model.engine.advance(rng.integers(1, model.manifest.vocab_size - 1, context - done), state)
            done = context
        states[context] = state.copy()
        _decode(model, states[context], WARM_UP, rng)
    return states


def _decode(model: VisualRWKV, state: State, tokens: int, rng: np.random.Generator) -> float:
    """Decode `tokens`; return tokens per second."""
    ids = rng.integers(1, model.manifest.vocab_size - 1, tokens).tolist()
    start = time.perf_counter()
    for token in ids:
        model.engine.advance([token], state)
    return tokens / (time.perf_counter() - start)


def read_per_token(model: VisualRWKV, state: State) -> dict[str, float]:
    """Feed tokens and return the bytes that one of them reads: the weights of the language model, and the state.

    The weights are what the manifest counts, each once, or what the native step counted itself: it does not read rows
    of the feed-forward that are multiplied by zero.
    """
    carried = snapshot_bytes(tuple(slot for slot in model.manifest.slots if slot.role == "carried"))
    weights = []
    for token in range(1, 1 + COUNTED):
        model.engine.advance([token], state)
        step = getattr(model.engine.backend, "step", None)
        weights.append(float(getattr(step, "bytes_read", 0) or model.manifest.budget.weights))
    mean = sum(weights) / COUNTED
    return {"weights": mean, "state": float(carried), "total": mean + carried}
