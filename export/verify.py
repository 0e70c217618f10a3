"""Holding a written bundle against torch: image embeddings, logits, state and greedy tokens.

The bundle answers a seeded prompt (with an image, if it takes any) through the runtime, as a user's program would;
torch then runs the same positions in one sequence, its weights streamed layer by layer, so a 1.5B model needs a few
hundred megabytes. Image embeddings and token rows enter both sides as each side computes them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.arch.language import LN_EPS, LanguageModel, embedding_sources
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.models import graph_modules
from export.stream import streamed
from export.weights import load_weight
from quant.forms import has_halves
from quant.limits import LIMITS
from runtime.backends.ort import OrtBackend
from runtime.bundle import Bundle
from runtime.context import pack
from runtime.engine import Engine, compressor_pooling
from runtime.errors import ParityError
from runtime.scan import scan_positions
from runtime.spec import VisionSpec

PROMPT_TOKENS = 33  # two chunks of the WKV body and one token more
GREEDY_TOKENS = 16

# Relative RMS error allowed, per precision. fp32 differs by the order of sums only; the others by rounding, which deep
# models amplify: the worst measured on 24 layers of random weights was 4.2 % in int8 and 19.5 % in int4, both of the
# state (benchmarks/quant_error.py). This is the one table of the exporter: nothing else softens a verdict.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, **{precision: limits.logits for precision, limits in LIMITS.items()}}


@dataclass(frozen=True)
class Row:
    """One compared quantity."""

    name: str
    error: float  # RMS of the difference over RMS of the reference; for greedy tokens, the share that differs
    worst: float  # largest absolute difference
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is finite and within the limit."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Parity:
    """The whole comparison."""

    rows: tuple[Row, ...]


def verify(
    checkpoint: Checkpoint,
    spec: ArchSpec,
    bundle: Bundle,
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    threads: int | None = None,
) -> Parity:
    """Compare a bundle with its checkpoint.

    Raises:
        ParityError: a quantity is off by more than `TOLERANCE`; the message holds the whole table.
    """
    limit = TOLERANCE[bundle.manifest.precision]
    # int8 and int4 leave towers in float32 (float16 for GPUs); a compressor's blocks are quantised like the language
    # model's.
    manifest, vision = bundle.manifest, bundle.manifest.vision
    towers = "fp16" if has_halves(manifest.target, manifest.precision) else "fp32"
    image_limit = limit if vision and vision.compressor else TOLERANCE[towers]
    tokens = np.random.default_rng(7).integers(1, min(spec.vocab_size - 1, 60_000), PROMPT_TOKENS)
    pixels = _pixels(bundle)
    progress("verify: run the bundle", 0, 0)
    ours = _run_bundle(bundle, tokens, pixels, threads)
    progress("verify: run torch", 0, 0)
    theirs = _run_torch(checkpoint, spec, bundle.manifest.vision, tokens, ours.greedy, pixels)
    rows = [_compare("image embeddings", ours.image, theirs.image, image_limit)] if pixels else []
    rows.append(_compare("logits", ours.logits, theirs.logits, limit))
    rows += [_compare(f"state {name}", ours.state[name], theirs.state[name], limit) for name in ours.state]
    rows.append(_compare_greedy(ours.logits, theirs.logits, limit))
    parity = Parity(tuple(rows))
    if not all(row.ok for row in rows):
        table = "\n    ".join(f"{row.name}: error {row.error:.2e}, limit {row.limit:.0e}" for row in rows)
        raise ParityError(
            f"the {bundle.manifest.precision} bundle does not reproduce {checkpoint.name}:\n    {table}",
            wanted="every error within its limit",
            hint="export with --fp32: if that passes, rounding is the cause, else report this table",
        )
    return parity


@dataclass(frozen=True)
class _Run:
    image: np.ndarray
    logits: np.ndarray  # [GREEDY_TOKENS, V]: after the prompt, then after each greedy token but the last
    greedy: list[int]
    state: dict[str, np.ndarray]


def _pixels(bundle: Bundle) -> dict[str, np.ndarray]:
    """One seeded random image, in every view the vision graph wants."""
    vision, rng = bundle.manifest.vision, np.random.default_rng(11)
    if vision is None:
        return {}
    shapes = {spec.name: spec.resolve(I=1) for spec in bundle.manifest.graph("vision").inputs}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _run_bundle(bundle: Bundle, tokens: np.ndarray, pixels: dict[str, np.ndarray], threads: int | None) -> _Run:
    # A float graph is not packed, so that a big model's weights are not copied; quantised products need that form.
    quantised = bundle.manifest.precision in ("int8", "int4")
    mapped = ("vision",) if quantised else ("vision", "step", "context", "compressor")
    engine = Engine(bundle, OrtBackend(threads, keep_mapped=mapped))
    try:
        state = engine.new_state()
        image, fixed = np.zeros((0, bundle.manifest.width), np.float32), 0
        if vision := bundle.manifest.vision:
            encoded = engine.encode_with_features(pixels)
            image, fixed = encoded.embeddings[0], vision.scan.fixed if vision.scan else 0
            if encoded.features is not None:
                for slot, array in engine.context(encoded.features).items():
                    state.write(slot, array)
        half, scanned = len(tokens) // 2, len(image) - fixed
        # As a session feeds them: up to the scanned part of the image in one call, then the rest.
        before = np.concatenate([engine.embed(tokens[:half]), image[:scanned]])
        engine.advance(before, state, (half, len(before)) if scanned else None)
        rest = np.concatenate([image[scanned:], engine.embed(tokens[half:])])
        logits = [engine.advance(rest, state).copy()]
        greedy = [int(logits[0].argmax())]
        for _ in range(GREEDY_TOKENS - 1):
            logits.append(engine.advance(greedy[-1:], state).copy())
            greedy.append(int(logits[-1].argmax()))
        slots = {slot.name: state.array(slot.name) for slot in bundle.manifest.slots}
        return _Run(image, np.stack(logits), greedy, slots)
    finally:
        engine.close()


def _run_torch(
    checkpoint: Checkpoint,
    spec: ArchSpec,
    vision: VisionSpec | None,
    tokens: np.ndarray,
    greedy: list[int],
    pixels: dict[str, np.ndarray],
) -> _Run:
    modules = graph_modules(spec)

    def run(graph: str, *inputs: Tensor) -> Any:
        with streamed(modules[graph], modules[graph].sources(), checkpoint):
            return modules[graph](*inputs)

    image, context = torch.zeros(0, spec.n_embd), {}
    if vision:
        encoded = run("vision", *(torch.from_numpy(array) for array in pixels.values()))
        embeddings = encoded[0] if isinstance(encoded, tuple) else encoded
        if vision.context:
            packed = torch.from_numpy(pack(encoded[1].numpy(), vision.context))
            context = {vision.context.slot: run("context", packed)[:, None]}
        if vision.compressor:
            pooling = torch.from_numpy(compressor_pooling(vision.compressor, 1, embeddings.shape[1]))
            pads = torch.zeros(1, pooling.shape[1] - embeddings.shape[1], spec.n_embd)
            embeddings = run("compressor", torch.cat([pads, embeddings], 1), pooling)
        image = embeddings[0]
    half = len(tokens) // 2
    x = torch.cat(
        [
            _embed(checkpoint, spec, tokens[:half]),
            image,
            _embed(checkpoint, spec, tokens[half:]),
            _embed(checkpoint, spec, np.asarray(greedy[:-1])),
        ]
    )[None]
    model = modules["step"]
    assert isinstance(model, LanguageModel)
    inputs = [context.get(slot.name, torch.zeros(slot.resolve(1))) for slot in model.slots]
    if vision and vision.scan:
        span = half, half + len(image) - vision.scan.fixed
        inputs.append(torch.from_numpy(scan_positions(vision.scan.orders, x.shape[1], *span)))
    with streamed(model, model.sources(), checkpoint):
        hidden, *carried = model.hidden(x, *inputs)
        logits = model.head(hidden[0, -len(greedy) :])
    names = [slot.name for slot in model.slots if slot.role == "carried"]
    slots = {**dict(zip(names, carried, strict=True)), **context}
    return _Run(image.numpy(), logits.numpy(), greedy, {name: slot.numpy() for name, slot in slots.items()})


def _embed(checkpoint: Checkpoint, spec: ArchSpec, tokens: np.ndarray) -> Tensor:
    """Rows of the embedding table with ln0 applied, [T, C]; reads only those rows."""
    sources = embedding_sources(spec)
    rows = checkpoint.tensor(sources["table"].keys[0])[torch.from_numpy(tokens)].float()
    weight, bias = (load_weight(checkpoint, sources[name]) for name in ("ln0_weight", "ln0_bias"))
    return F.layer_norm(rows, (spec.n_embd,), weight, bias, LN_EPS)


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray, limit: float) -> Row:
    difference = ours.astype(np.float64) - theirs
    scale = float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-12)
    return Row(name, error if np.isfinite(error) else float("inf"), float(np.abs(difference).max(initial=0)), limit)


def _compare_greedy(ours: np.ndarray, theirs: np.ndarray, limit: float) -> Row:
    """Count greedy tokens that differ where the reference's lead is larger than twice the allowed error."""
    top = np.sort(theirs, axis=1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > 2 * limit * np.sqrt(np.mean(np.square(theirs)))
    differ = (ours.argmax(1) != theirs.argmax(1)) & sure
    return Row("greedy tokens", float(differ.mean()), float(differ.sum()), 0.0)
