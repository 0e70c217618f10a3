"""The float twin of a quantised bundle: what its codes stand for, without the rounding of activations.

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

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points: what a decode step reads of it."""
        return sum(part.nbytes for part in self._tensors())

    def weight(self) -> np.ndarray:
        """Return the [K, N] float32 matrix that the codes stand for."""
        return dequantize(tuple(tensor.numpy() for tensor in self._tensors()), self.k, self.format)

    def _tensors(self) -> list[ir.TensorProtocol]:
        values = [value for value in self.node.inputs[1:] if value is not None]
        return [value.const_value for value in values if value.const_value is not None]


def coded(model: ir.Model) -> Iterator[Coded]:
    """Yield every product with codes in a graph."""
    for node in list(model.graph):
        if node.op_type == "MatMulNBits":
            k, n, bits, block = (node.attributes[key].as_int() for key in ("K", "N", "bits", "block_size"))
            source = node.inputs[1]
            assert source is not None and source.name is not None
            yield Coded(source.name.removesuffix("_codes"), node, k, n, BlockFormat(bits, block))


def twin(source: Bundle, folder: Path) -> Bundle:
    """Write `source` with float32 matrices in place of codes into an empty folder; it takes 4 bytes a weight.

    The new bundle is called by the precision of the old one.
    """
    manifest = source.manifest
    for file in manifest.files:
        if not file.endswith((".onnx", ".onnx.data")):
            shutil.copyfile(source.file(file), folder / file)
    for graph in manifest.graphs:
        model = ir.load(source.file(graph.file))
        if _expand(model):
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
            tensor = ir.LazyTensor(
                lambda one=one: ir.Tensor(one.weight(), name=one.name),  # type: ignore[misc]
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape((one.k, one.n)),
                name=name,
            )
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
            model.graph.register_initializer(value)
        product = ir.node("MatMul", [node.inputs[0], model.graph.initializers[name]])
        output = node.outputs[0]
        product.outputs[0].name, product.outputs[0].shape = output.name, output.shape
        product.outputs[0].type = output.type
        model.graph.insert_before(node, product)
        ir.convenience.replace_all_uses_with(output, product.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node)
    for one in found:  # what nothing reads any more; a matrix may have been in several products
        for part in one.node.inputs[1:]:
            if part is not None and part.name is not None:
                model.graph.initializers.pop(part.name, None)
    return bool(found)
