"""Images and tokens in, logits out. The engine knows slots and graphs, but no text, no prompt and no model name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.backends.base import Backend, Buffer, GraphRunner
from runtime.bundle import Bundle
from runtime.context import pack, pooling_matrix
from runtime.errors import InputError
from runtime.scan import scan_positions
from runtime.spec import CompressorSpec, ScanOrder, ViewSpec
from runtime.state import State

PREFILL_SEGMENT = 256  # tokens per call: bounds the memory of activations, longer gains nothing measurable

Embeddings = np.ndarray  # [T, C] float32, ln0 applied
Tokens = Sequence[int] | np.ndarray  # ids [T]
Segment = tuple[Embeddings, tuple[int, int] | None]
"""What one call of the step graph feeds, and the positions in it that are read in the manifest's scan orders."""


class Encoded(NamedTuple):
    """What the vision graph makes of images."""

    embeddings: np.ndarray  # [I, tokens, C] float32, ln0 applied, ready for `Engine.advance`
    features: np.ndarray | None  # [I, cells, C] float32 for `Engine.context`, of models with a context slot


class Engine:
    """One loaded model. Not thread-safe: hold `lock` over every call, and over reading the logits of `advance`."""

    def __init__(self, bundle: Bundle, backend: Backend, *, prefill_segment: int = PREFILL_SEGMENT) -> None:
        """Load the bundle's graphs on a backend."""
        self.bundle, self.manifest, self.backend = bundle, bundle.manifest, backend
        self.lock = threading.Lock()
        self._segment = prefill_segment
        self._table = bundle.embedding_table()
        width, vocab = self.manifest.width, self.manifest.vocab_size
        self._step = self._load("step")
        self._token = backend.allocate((1, 1, width), "float32")
        self._logits = backend.allocate((1, vocab), "float32")
        self._batch: Buffer | None = None  # logits of the last `step`
        self._vision: GraphRunner | None = None
        self._pixels: dict[str, Buffer] = {}
        self._encoded: dict[str, Buffer] = {}
        self._orders: tuple[ScanOrder, ...] = ()
        if vision := self.manifest.vision:
            graph = self.manifest.graph("vision")
            self._vision = self._load("vision")
            self._pixels = {spec.name: backend.allocate(spec.resolve(I=1), spec.dtype) for spec in graph.inputs}
            self._encoded = {spec.name: backend.allocate(spec.resolve(I=1), spec.dtype) for spec in graph.outputs}
            self._context = self._load("context") if vision.context else None
            self._compressor = self._load("compressor") if vision.compressor else None
            if vision.scan:
                self._orders = vision.scan.orders
                self._token_scan = backend.allocate((len(self._orders), 1), "int64")

    def new_state(self, batch: int = 1) -> State:
        """Return a state before the first token."""
        return State(self.manifest.slots, self.backend, batch)

    def embed(self, tokens: Tokens) -> Embeddings:
        """Look up token embeddings, ln0 applied: ids [T] -> [T, C] float32. Raises `InputError` for an id outside."""
        try:
            ids = np.asarray(tokens, np.int64).reshape(-1)
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(f"token ids that are no whole numbers: {error}", wanted="ids of the vocabulary") from None
        rows = self.manifest.vocab_size
        outside = ids[(ids < 0) | (ids >= rows)]
        if outside.size:
            raise InputError(
                f"token id {int(outside[0])} has no embedding",
                wanted=f"ids from 0 to {rows - 1}",
                hint="is the vocabulary the one this model was trained with?",
            )
        return np.asarray(self._table[ids], np.float32)

    def zero_embeddings(self, count: int) -> Embeddings:
        """Return what ln0 makes of `count` zero vectors, [count, C] float32 (models that are fed such)."""
        row = self.manifest.embedding.zero_row
        if row is None:
            raise InputError("this model is never fed zero vectors")
        return np.repeat(np.asarray(self._table[row : row + 1], np.float32), count, axis=0)

    def encode(self, views: Mapping[str, np.ndarray]) -> np.ndarray:
        """Turn prepared images into embeddings: `encode_with_features(views).embeddings`."""
        return self.encode_with_features(views).embeddings

    def encode_with_features(self, views: Mapping[str, np.ndarray]) -> Encoded:
        """Turn prepared images into embeddings, one image at a time (bounded memory).

        Args:
            views: by view name, [I, 3, H, W] float32 (or [I, cells, width] features), as the manifest declares. For a
                model that compresses, all regions of one picture.

        Returns:
            The caller's own copies; embeddings are [1, tokens, C] where all regions were compressed together.

        Raises:
            InputError: the bundle has no vision graph, or a view is missing or has another shape or dtype.
        """
        vision = self.manifest.vision
        if self._vision is None or vision is None:
            raise InputError("this bundle is a text model: it has no vision graph", hint="ask without an image")
        count = self._check_views(views)
        out = {name: np.empty((count, *buffer.shape[1:]), np.float32) for name, buffer in self._encoded.items()}
        for i in range(count):
            for name, buffer in self._pixels.items():
                buffer.write(views[name][i : i + 1])
            self._vision.run(self._pixels, self._encoded)
            for name, array in out.items():
                array[i] = self._encoded[name].read()[0]
        embeddings = self._compress(out["embeddings"]) if vision.compressor else out["embeddings"]
        return Encoded(embeddings, out.get("context_features"))

    def context(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Make the context slot of all pictures of a turn, for `State.write`.

        Args:
            features: [pictures, cells, C] float32, of `encode_with_features`.

        Returns:
            Slot name -> array in the slot's shape, batch 1.
        """
        spec = self.manifest.vision.context if self.manifest.vision else None
        if spec is None or self._context is None:
            raise InputError("this model has no context slot")
        packed = pack(features, spec)
        graph = self.manifest.graph("context")
        source = self._filled(packed)
        made = self.backend.allocate(graph.outputs[0].resolve(B=len(packed)), "float32")
        self._context.run({graph.inputs[0].name: source}, {graph.outputs[0].name: made})
        return {spec.slot: made.read()[:, None].copy()}  # chunks, or the one, are the slot's layers

    def advance(self, x: Tokens | Embeddings, state: State, image: tuple[int, int] | None = None) -> np.ndarray:
        """Feed tokens or embeddings through the model and return the logits after the last one.

        Args:
            x: token ids [T], or embeddings [T, C] float32 with ln0 applied; T >= 1.
            state: advanced by T positions in place; left unchanged by a segment that fails.
            image: the positions [start, stop) of `x` that are one image, read in the manifest's scan orders. Then `x`
                is run in one segment. Ignored by models whose layers all read images as they read text.

        Returns:
            logits [V] float32, a view valid until the next call.

        Raises:
            InputError: nothing to feed, an id without embedding, or embeddings of another width.
        """
        for segment, span in self.cut(x, image):
            self._run(segment[None], span, state, self._logits)
        return self._logits.read()[0]

    def cut(self, x: Tokens | Embeddings, image: tuple[int, int] | None = None) -> list[Segment]:
        """Cut what `advance` takes into the segments it runs; feeding those one by one is the same. Needs no lock.

        Raises:
            InputError: as `advance`.
        """
        embeddings = x if isinstance(x, np.ndarray) and x.dtype.kind == "f" else self.embed(np.asarray(x, np.int64))
        if embeddings.ndim != 2 or embeddings.shape[1] != self.manifest.width or not len(embeddings):
            raise InputError(f"embeddings of shape {embeddings.shape}", wanted=f"[T >= 1, {self.manifest.width}]")
        if image is not None and self._orders:
            return [(embeddings, image)]
        return [(embeddings[i : i + self._segment], None) for i in range(0, len(embeddings), self._segment)]

    def step(self, rows: np.ndarray, state: State) -> np.ndarray:
        """Feed one token, or segments of one length, to each of several sequences.

        Args:
            rows: embeddings [B, C] or [B, T, C] float32 with ln0 applied, read as text.
            state: of B sequences, advanced by T positions in place; left unchanged if the step fails.

        Returns:
            logits [B, V] float32, a view valid until the next call.
        """
        if self._batch is None or self._batch.shape[0] != len(rows):
            self._batch = None  # one is enough, at any moment
            self._batch = self.backend.allocate((len(rows), self.manifest.vocab_size), "float32")
        self._run(rows[:, None] if rows.ndim == 2 else rows, None, state, self._batch)
        return self._batch.read()

    def close(self) -> None:
        """Release the graphs. Safe to call twice."""
        self.backend.close()

    def _run(self, x: np.ndarray, image: tuple[int, int] | None, state: State, logits: Buffer) -> None:
        """One call of the step graph: x [B, T, C]."""
        inputs = {"embeddings": self._filled(x)}
        if self._orders:
            inputs["scan"] = self._scan(x.shape[1], image)
        self._step.run({**inputs, **state.inputs}, {"logits": logits, **state.outputs})
        state.swap()

    def _load(self, name: str) -> GraphRunner:
        graph = self.manifest.graph(name)
        return self.backend.load(graph, self.bundle.file(graph.file))

    def _filled(self, array: np.ndarray) -> Buffer:
        """Return a buffer with `array` [B, T, C] in it; that of the last T = 1 is kept."""
        buffer = self._token if array.shape == self._token.shape else self.backend.allocate(array.shape, "float32")
        if array.shape[1] == 1:
            self._token = buffer
        buffer.write(np.asarray(array, np.float32))
        return buffer

    def _scan(self, length: int, image: tuple[int, int] | None) -> Buffer:
        if length == 1:
            return self._token_scan
        buffer = self.backend.allocate((len(self._orders), length), "int64")
        buffer.write(scan_positions(self._orders, length, *(image or (0, 0))))
        return buffer

    def _compress(self, regions: np.ndarray) -> np.ndarray:
        """[R, cells, C] -> [1, tokens, C], or [R, tokens, C] where each region keeps its own tokens."""
        assert self.manifest.vision is not None
        assert self.manifest.vision.compressor is not None
        assert self._compressor is not None
        spec = self.manifest.vision.compressor
        count, cells, width = regions.shape
        pooling = compressor_pooling(spec, count, cells)
        pads = pooling.shape[1] - count * cells
        sequence = np.concatenate([np.zeros((pads, width), np.float32), regions.reshape(-1, width)])
        matrix = self.backend.allocate(pooling.shape, "float32")
        matrix.write(pooling)
        out = self.backend.allocate((1, len(pooling), width), "float32")
        self._compressor.run({"tokens": self._filled(sequence[None]), "pooling": matrix}, {"embeddings": out})
        return out.read().reshape(-1, spec.tokens, width).copy()

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


def compressor_pooling(spec: CompressorSpec, regions: int, cells: int) -> np.ndarray:
    """Return the [P, T] matrix that averages a picture's compressed sequence, padding in front left out."""
    length = regions * cells
    pooled = spec.tokens * (regions if spec.per == "region" else 1)
    pads = np.zeros((pooled, -length % spec.pad_to), np.float32)
    return np.concatenate([pads, pooling_matrix(pooled, length)], 1)


def _view_shape(view: ViewSpec) -> tuple[int, ...]:
    """Shape of one image's view: [3, H, W] pixels, or [cells, width] features."""
    return (3, view.height, view.width) if view.kind == "pixels" else (view.height, view.width)
