"""A whole model on the fake backend: real sessions, states, files and caches, and graphs that compute little.

Its state never forgets, unlike the fake backend's, and its answers are letters that follow from every bit of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime import GenerateOptions, Session, VisualRWKV
from runtime.backends.base import Buffer
from runtime.backends.fake import FakeBackend, FakeRunner
from runtime.bundle import Bundle
from runtime.engine import Engine
from runtime.spec import ContextSpec, GraphSpec, SlotSpec, TensorSpec
from runtime.tokenizer import Tokenizer
from tests.runtime.fake_bundle import WIDTH, write_fake_bundle

CELLS = 4
SLOT = SlotSpec("image_state", "float32", (1, "B", WIDTH), ("layer", "batch", "channel"), "context")


class TalkingRunner(FakeRunner):
    """Votes for a letter that follows from the state."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        if SLOT.name in outputs:  # the context graph
            outputs[SLOT.name].write(next(iter(inputs.values())).read().mean(1))
            return
        super().run(inputs, outputs)
        if "context_features" in outputs:
            features = outputs["context_features"]
            features.write(np.full(features.shape, outputs["embeddings"].read().sum(), np.float32))

    def _step(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        tokens = inputs["embeddings"].read().mean(2)  # [B, T]
        if SLOT.name in inputs:
            tokens = tokens + inputs[SLOT.name].read().mean((0, 2))[:, None]
        states = []
        for name, buffer in inputs.items():
            if f"{name}_out" in outputs:
                state = buffer.read()  # [L, B, C]
                for column in tokens.T:  # a chaotic map: differences grow, but damage stays visible
                    mapped = np.mod(state * np.float32(1.7) + column[:, None], np.float32(1))
                    state = np.where(np.abs(state) <= 1, mapped, state)
                outputs[f"{name}_out"].write(state)
                states.append(state)
        logits = np.zeros(outputs["logits"].shape, np.float32)
        for lane in range(len(logits)):
            content = b"".join(state[:, lane].tobytes() for state in states)
            logits[lane, 1 + ord("a") + zlib.crc32(content) % 26] = 1
        outputs["logits"].write(logits)


class TalkingBackend(FakeBackend):
    """The fake backend, with more to say."""

    def load(self, graph: GraphSpec, path: Path) -> TalkingRunner:
        return TalkingRunner(self)


def fake_model(folder: Path, position: Literal["first", "last"] = "first", **options: Any) -> VisualRWKV:
    """Open the fake bundle in `folder`, which is written if it is not there."""
    if not folder.exists():
        write_fake_bundle(folder)
    bundle = Bundle.open(folder)
    manifest = replace(bundle.manifest, prompt=replace(bundle.manifest.prompt, image_position=position))
    return VisualRWKV(
        Engine(replace(bundle, manifest=manifest), TalkingBackend()), Tokenizer(folder / "vocab.txt"), **options
    )


def fake_context_model(folder: Path, **options: Any) -> VisualRWKV:
    """A model whose pictures also make a context slot, as HM's do; all of a turn together."""
    bundle = Bundle.open(write_fake_bundle(folder) if not folder.exists() else folder)
    manifest = bundle.manifest
    step, vision = manifest.graph("step"), manifest.graph("vision")
    state = TensorSpec(SLOT.name, "float32", SLOT.shape)
    features = TensorSpec("context_features", "float32", ("I", CELLS, WIDTH))
    context = GraphSpec(
        "context",
        "step.onnx",
        (TensorSpec("tokens", "float32", ("B", "T", WIDTH)),),
        (TensorSpec(SLOT.name, "float32", ("B", WIDTH)),),
        (),
    )
    graphs = (
        replace(step, inputs=(*step.inputs, state)),
        replace(vision, outputs=(*vision.outputs, features)),
        context,
    )
    assert manifest.vision is not None
    spec = replace(manifest.vision, context=ContextSpec(SLOT.name, CELLS, 2 * CELLS, None, 1))
    manifest = replace(manifest, graphs=graphs, slots=(*manifest.slots, SLOT), vision=spec)
    engine = Engine(replace(bundle, manifest=manifest), TalkingBackend())
    return VisualRWKV(engine, Tokenizer(folder / "vocab.txt"), **options)


class Counter:
    """Counts what a model computes: pictures encoded, calls of the step graph, and positions fed."""

    def __init__(self, model: VisualRWKV) -> None:
        self.pictures = self.calls = self.positions = 0
        self.logits: list[np.ndarray] = []
        encode, advance = model.engine.encode_with_features, model.engine.advance

        def counted_encode(views: Any) -> Any:
            self.pictures += 1
            return encode(views)

        def counted_advance(x: Any, state: Any, image: Any = None) -> np.ndarray:
            self.calls, self.positions = self.calls + 1, self.positions + len(x)
            logits = advance(x, state, image)
            self.logits.append(logits.copy())
            return logits

        model.engine.encode_with_features = counted_encode  # type: ignore[method-assign]
        model.engine.advance = counted_advance  # type: ignore[method-assign]


def frame(seed: int) -> np.ndarray:
    """A random picture, uint8 [6, 7, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)


def say(session: Session, question: str, *images: Any, **options: Any) -> str:
    """The whole answer; six tokens unless told otherwise."""
    options.setdefault("max_tokens", 6)
    return "".join(chunk.text for chunk in session.ask(question, images, GenerateOptions(**options)))


def bits(session: Session) -> dict[str, bytes]:
    """Every slot's exact content."""
    return {name: array.tobytes() for name, array in session.snapshot().state.arrays.items()}
