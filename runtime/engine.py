"""Images and tokens in, logits out. The engine knows slots and graphs, but no text, no prompt and no model name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.backends.base import Backend, Buffer, GraphRunner
from runtime.bundle import Bundle
from runtime.errors import InputError
from runtime.spec import ViewSpec
from runtime.state import State

PREFILL_SEGMENT = 256  # tokens per call: bounds the memory of activations, longer gains nothing measurable

Embeddings = np.ndarray  # [T, C] float32, ln0 applied
Tokens = Sequence[int] | np.ndarray  # ids [T]


class Engine:
    """One loaded model. Not thread-safe: hold `lock` over `encode`, and over `advance` and reading its logits."""

    def __init__(self, bundle: Bundle, backend: Backend, *, prefill_segment: int = PREFILL_SEGMENT) -> None:
        """Load the bundle's graphs on a backend."""
        self.bundle, self.manifest, self.backend = bundle, bundle.manifest, backend
        self.lock = threading.Lock()
        self._segment = prefill_segment
        self._table = bundle.embedding_table()
        width, vocab = self.manifest.width, self.manifest.vocab_size
        self._step = backend.load(self.manifest.graph("step"), bundle.file(self.manifest.graph("step").file))
        self._token = backend.allocate((1, 1, width), "float32")
        self._logits = backend.allocate((1, vocab), "float32")
        self._vision: GraphRunner | None = None
        self._pixels: dict[str, Buffer] = {}
        if vision := self.manifest.vision:
            graph = self.manifest.graph("vision")
            self._vision = backend.load(graph, bundle.file(graph.file))
            self._pixels = {spec.name: backend.allocate(spec.resolve(I=1), spec.dtype) for spec in graph.inputs}
            self._features = backend.allocate((1, vision.tokens, width), "float32")

    def new_state(self, batch: int = 1) -> State:
        """Return a state before the first token."""
        return State(self.manifest.slots, self.backend, batch)

    def embed(self, tokens: Tokens) -> Embeddings:
        """Look up token embeddings, ln0 applied: ids [T] -> [T, C] float32. Raises `InputError` for an id outside."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= len(self._table))]
        if outside.size:
            raise InputError(
                f"token id {int(outside[0])} has no embedding",
                wanted=f"ids from 0 to {len(self._table) - 1}",
                hint="is the vocabulary the one this model was trained with?",
            )
        return np.asarray(self._table[ids], np.float32)

    def encode(self, views: Mapping[str, np.ndarray]) -> Embeddings:
        """Turn prepared images into embeddings, one image at a time (bounded memory).

        Args:
            views: by view name, [I, 3, H, W] float32 (or [I, cells, width] features), as the manifest declares.

        Returns:
            [I, tokens, C] float32, ready for `advance`; the caller's own copy.

        Raises:
            InputError: the bundle has no vision graph, or a view is missing or has another shape or dtype.
        """
        if self._vision is None or self.manifest.vision is None:
            raise InputError("this bundle is a text model: it has no vision graph", hint="ask without an image")
        count = self._check_views(views)
        out = np.empty((count, self.manifest.vision.tokens, self.manifest.width), np.float32)
        for i in range(count):
            for name, buffer in self._pixels.items():
                buffer.write(views[name][i : i + 1])
            self._vision.run(self._pixels, {"embeddings": self._features})
            out[i] = self._features.read()[0]
        return out

    def advance(self, x: Tokens | Embeddings, state: State) -> np.ndarray:
        """Feed tokens or embeddings through the model and return the logits after the last one.

        Args:
            x: token ids [T], or embeddings [T, C] float32 with ln0 applied; T >= 1.
            state: advanced by T positions in place; left unchanged by a segment that fails.

        Returns:
            logits [V] float32, a view valid until the next call.

        Raises:
            InputError: nothing to feed, an id without embedding, or embeddings of another width.
        """
        embeddings = x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else self.embed(np.asarray(x, np.int64))
        if embeddings.ndim != 2 or embeddings.shape[1] != self.manifest.width or not len(embeddings):
            raise InputError(f"embeddings of shape {embeddings.shape}", wanted=f"[T >= 1, {self.manifest.width}]")
        for start in range(0, len(embeddings), self._segment):
            segment = np.asarray(embeddings[None, start : start + self._segment], np.float32)
            buffer = self._token
            if segment.shape[1] > 1:
                buffer = self.backend.allocate(segment.shape, "float32")
            buffer.write(segment)
            self._step.run({"embeddings": buffer, **state.inputs}, {"logits": self._logits, **state.outputs})
            state.swap()
        return self._logits.read()[0]

    def close(self) -> None:
        """Release the graphs. Safe to call twice."""
        self.backend.close()

    def _check_views(self, views: Mapping[str, np.ndarray]) -> int:
        assert self.manifest.vision is not None
        counts = set()
        for view in self.manifest.vision.views:
            array = views.get(view.name)
            wanted = _view_shape(view)
            if array is None or array.shape[1:] != wanted or array.dtype != np.float32:
                found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise InputError(
                    f"view {view.name!r} is {found}",
                    wanted=f"float32 [images, {', '.join(map(str, wanted))}]",
                )
            counts.add(len(array))
        if len(counts) != 1 or not min(counts):
            raise InputError(f"views hold {sorted(counts)} images", wanted="the same number, at least one, in each")
        return counts.pop()


def _view_shape(view: ViewSpec) -> tuple[int, ...]:
    """Shape of one image's view: [3, H, W] pixels, or [cells, width] features."""
    return (3, view.height, view.width) if view.kind == "pixels" else (view.height, view.width)
