"""The float twin of a quantised bundle: what its codes and halves stand for, without the rounding of activations.

What onnxruntime computes from 8-bit or 4-bit weights differs from float32 by two roundings, of the weights and (inside
its kernel) of the activations to 8 bits. A backend that multiplies the same codes more exactly makes only the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quant.apply import save
from quant.graph import HALF, initializer, take_place
from quant.weights import BlockFormat, dequantize
from runtime.bundle import Bundle, fingerprint, sha256_file
from runtime.spec import FileSpec


@dataclass(frozen=True)
class Coded:
    """One matrix in codes, as it lies in a graph."""

    name: str  # of the float initializer it was made of
    node: ir.Node
    k: int
    n: int
    format: BlockFormat
    parts: tuple[ir.Value, ...]  # codes, scales and zero points

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points: what a decode step reads of it."""
        return sum(part.nbytes for part in self._tensors())

    def weight(self) -> np.ndarray:
        """Return the [K, N] float32 matrix that the codes stand for."""
        return dequantize(tuple(tensor.numpy() for tensor in self._tensors()), self.k, self.format)

    def _tensors(self) -> list[ir.TensorProtocol]:
        return [value.const_value for value in self.parts if value.const_value is not None]


def coded(model: ir.Model) -> Iterator[Coded]:
    """Yield every product with codes in a graph."""
    for node in list(model.graph):
        if node.op_type == "MatMulNBits":
            k, n, bits, block = (node.attributes[key].as_int() for key in ("K", "N", "bits", "block_size"))
            parts = tuple(value for value in node.inputs[1:] if value is not None)
            assert parts[0].name is not None
            yield Coded(parts[0].name.removesuffix("_codes"), node, k, n, BlockFormat(bits, block), parts)


def twin(source: Bundle, folder: Path) -> Bundle:
    """Write `source` into an empty folder, float32 matrices in place of codes and halves: 4 bytes a weight.

    The new bundle is called by the precision of the old one.
    """
    manifest = source.manifest
    for file in manifest.files:
        if not file.endswith((".onnx", ".onnx.data")):
            shutil.copyfile(source.file(file), folder / file)
    for graph in manifest.graphs:
        model = ir.load(source.file(graph.file))
        if _expand(model) | _widen(model):
            ir.save(model, folder / graph.file, external_data=f"{graph.file}.data", alignment=4096)
        else:
            for file in {graph.file, f"{graph.file}.data"} & set(manifest.files):
                shutil.copyfile(source.file(file), folder / file)
    files = {path.name: FileSpec(path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())}
    return save(Bundle(folder, replace(manifest, files=files, fingerprint=fingerprint(files))))


def _expand(model: ir.Model) -> bool:
    """Put float products in place of those with codes; return whether there were any."""
    found = list(coded(model))
    for one in found:
        name, node = one.name, one.node
        if name not in model.graph.initializers:
            initializer(model, name, ir.DataType.FLOAT, (one.k, one.n), one.weight)
        take_place(node, ir.node("MatMul", [node.inputs[0], model.graph.initializers[name]]))
    for one in found:  # what nothing reads any more; a matrix may have been in several products
        for part in one.parts:
            assert part.name is not None
            model.graph.initializers.pop(part.name, None)
    return bool(found)


def _widen(model: ir.Model) -> bool:
    """Put float initializers in place of halves that are widened in the graph; return whether there were any."""
    found = False
    for node in list(model.graph):
        half = node.inputs[0] if node.op_type == "Cast" else None
        if half is None or half.name is None or half.const_value is None or not half.name.endswith(HALF):
            continue
        found, tensor, name = True, half.const_value, half.name.removesuffix(HALF)

        def load(tensor: ir.TensorProtocol = tensor) -> np.ndarray:
            return tensor.numpy().astype(np.float32)

        wide = initializer(model, name, ir.DataType.FLOAT, tuple(tensor.shape.numpy()), load)
        ir.convenience.replace_all_uses_with(node.outputs[0], wide)
        model.graph.remove(node, safe=True)
        del model.graph.initializers[half.name]
    return found
