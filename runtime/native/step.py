"""The step graph of a bundle, computed by the library: the same inputs and outputs, the same numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime.backends.base import Buffer
from runtime.errors import BundleError, InputError, StateError, TargetUnavailable
from runtime.native.families import find_parts
from runtime.native.graph import Graph, read_graph
from runtime.native.library import FORMATS, Call, Sizes, Source, chosen_set, library
from runtime.native.parts import Parts, Vector, Weight
from runtime.spec import GraphSpec


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
        self._inputs, self._outputs = graph.inputs, graph.outputs

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run a segment [B, T, C] from `inputs` into `outputs`, none of which is an input.

        Raises:
            InputError: a buffer has another shape or dtype than the graph's, or "scan" is no order of the segment.
            StateError: the model is closed.
        """
        if self._handle is None:
            raise StateError("the model is closed", hint="load it again")
        arrays = {tensor.name: inputs[tensor.name].read() for tensor in self._inputs}
        arrays |= {tensor.name: outputs[tensor.name].read() for tensor in self._outputs}
        x, scan = arrays["embeddings"], arrays.get("scan")
        if x.ndim != 3:
            raise InputError(f"embeddings have shape {x.shape}", wanted="[B, T, C]")
        batch, length = x.shape[:2]
        for tensor in (*self._inputs, *self._outputs):
            array, wanted = arrays[tensor.name], tensor.resolve(B=batch, T=length)
            whole = array.flags.c_contiguous and array.size
            if array.shape != wanted or array.dtype != tensor.dtype or not whole:
                found = f"{tensor.name} is {array.dtype} {list(array.shape)}"
                raise InputError(found, wanted=f"{tensor.dtype} {list(wanted)}")
        if scan is not None and _in_order(scan):
            del arrays["scan"]
        images = len(arrays["image_state"]) if "image_state" in arrays else 0
        call = Call(batch, length, images, 0 if scan is None else len(scan))
        for name, array in arrays.items():
            setattr(call, name, array.ctypes.data)
        if self._library.vrwkv_run(self._handle, ctypes.byref(call)):
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
        sizes = Sizes(parts.family, parts.layers, parts.width, parts.hidden, parts.vocabulary, threads, ranks)
        keep: list[np.ndarray] = []  # what the pointers point at, until all is repacked

        def pointer(name: str, start: int = 0) -> int:
            keep.append(graph.read(name))
            return keep[-1].ctypes.data + start * keep[-1].itemsize

        def values(vector: Vector | None) -> int | None:
            return None if vector is None else pointer(vector.data, vector.start)

        def source(weight: Weight | None) -> Source:
            if weight is None:
                return Source()
            names = (weight.data, weight.scale, weight.zero)
            mapped = all(graph.mapped(name) for name in names if name)
            data = pointer(weight.data, weight.start)
            scale, zero = (pointer(name) if name else None for name in names[1:])
            return Source(FORMATS[weight.format], mapped, weight.k, weight.n, weight.block, data, scale, zero)

        vectors = (ctypes.c_void_p * len(parts.vectors))(*map(values, parts.vectors))
        sources = (Source * len(parts.matrices))(*map(source, parts.matrices))
        handle: int | None = self._library.vrwkv_open(ctypes.byref(sizes), self.isa.encode(), vectors, sources)
        return handle


def _in_order(scan: np.ndarray) -> bool:
    """Tell whether every order [orders, T] is the natural one; raises `InputError` for what is no order at all."""
    natural = np.arange(scan.shape[1])
    if np.array_equal(scan, np.broadcast_to(natural, scan.shape)):
        return True
    if not np.array_equal(np.sort(scan, 1), np.broadcast_to(natural, scan.shape)):
        raise InputError("scan holds other positions than those of the segment", wanted=f"0 to {len(natural) - 1} each")
    return False


def unavailable() -> str:
    """Return why there is no native step here at all, or "" if there is one."""
    try:
        library()
    except TargetUnavailable as error:
        return error.found
    return ""
