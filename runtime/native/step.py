"""The step graph of a bundle, computed by the library: the same inputs and outputs, the same numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime.backends.base import Buffer
from runtime.errors import BundleError, InputError, StateError, TargetUnavailable
from runtime.native.graph import Graph, read_graph
from runtime.native.library import FORMATS, Sizes, Source, chosen_set, library
from runtime.native.rwkv7 import Parts, Weight, find_parts
from runtime.spec import GraphSpec

_ORDER = ("embeddings", "att_shift", "ffn_shift", "wkv")
_RESULTS = ("logits", "att_shift_out", "ffn_shift_out", "wkv_out")


class NativeStep:
    """A `GraphRunner` for the graph "step". The weights are repacked, and held once."""

    def __init__(self, graph: GraphSpec, path: Path, threads: int) -> None:
        """Read the weights of an ONNX file.

        Args:
            graph: what the manifest says about the file.
            path: the file; its external weights lie beside it.
            threads: compute threads, the caller's own among them.

        Raises:
            TargetUnavailable: no library, or a graph it does not know.
            BundleError: the file is damaged.
            ConfigError: VRWKV_ISA names what this machine does not have.
        """
        self._library, self.isa = library(), chosen_set()
        found = read_graph(path)
        try:
            parts = find_parts(found, graph)
            self._handle: int | None = self._open(found, parts, threads)
        finally:
            found.close()
        if not self._handle:
            raise BundleError(f"no memory for the weights of {path}", hint="close something, or export with --int4")
        self._shapes = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run a segment [B, T, C] from `inputs` into `outputs`, none of which is an input.

        Raises:
            InputError: a buffer has another shape or dtype than the graph's.
            StateError: the model is closed.
        """
        if self._handle is None:
            raise StateError("the model is closed", hint="load it again")
        arrays = [inputs[name].read() for name in _ORDER] + [outputs[name].read() for name in _RESULTS]
        if arrays[0].ndim != 3:
            raise InputError(f"embeddings have shape {arrays[0].shape}", wanted="[B, T, C]")
        batch, length = arrays[0].shape[:2]
        for name, array in zip((*_ORDER, *_RESULTS), arrays, strict=True):
            wanted = self._shapes[name].resolve(B=batch, T=length)
            if array.shape != wanted or array.dtype != np.float32 or not array.flags.c_contiguous or not array.size:
                raise InputError(f"{name} is {array.dtype} {list(array.shape)}", wanted=f"float32 {list(wanted)}")
        pointers = [array.ctypes.data for array in arrays]
        if self._library.vrwkv_step(self._handle, batch, length, *pointers):
            raise InputError(f"no memory for {batch} x {length} positions", hint="feed shorter segments")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the repacked weights."""
        return int(self._library.vrwkv_weight_bytes(self._handle)) if self._handle else 0

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that the last call read, each once; FFN rows that were skipped are not counted."""
        return int(self._library.vrwkv_bytes_read(self._handle)) if self._handle else 0

    def close(self) -> None:
        """Release the weights. Safe to call twice."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.vrwkv_close(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _open(self, graph: Graph, parts: Parts, threads: int) -> int | None:
        ranks = (ctypes.c_int32 * 4)(*parts.ranks)
        sizes = Sizes(parts.layers, parts.width, parts.hidden, parts.vocabulary, threads, ranks)
        keep: list[np.ndarray] = []  # what the pointers point at, until all is repacked

        def pointer(name: str) -> int:
            keep.append(graph.read(name))
            return keep[-1].ctypes.data

        def source(weight: Weight | None) -> Source:
            if weight is None:
                return Source()
            names = (weight.data, weight.scale, weight.zero)
            mapped = all(graph.mapped(name) for name in names if name)
            data, scale, zero = (pointer(name) if name else None for name in names)
            return Source(FORMATS[weight.format], mapped, weight.k, weight.n, weight.block, data, scale, zero)

        vectors = (ctypes.c_void_p * len(parts.vectors))(*(pointer(v) if v else None for v in parts.vectors))
        sources = (Source * len(parts.matrices))(*map(source, parts.matrices))
        handle: int | None = self._library.vrwkv_open(ctypes.byref(sizes), self.isa.encode(), vectors, sources)
        return handle


def unavailable() -> str:
    """Return why there is no native step here at all, or "" if there is one."""
    try:
        library()
    except TargetUnavailable as error:
        return error.found
    return ""
