"""A step graph of 1.5B's kind, fewer and narrower layers, through TensorRT-RTX: plugins taken, codes not widened.

`python -m benchmarks.rtx_step` does the same at full size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import rtx_graph, rtx_program
from benchmarks.rtx_step import difference, examine, outputs
from export.verify import TOLERANCE
from runtime import tensorrt
from runtime.spec import GraphSpec, TensorSpec
from tests.plugins_trt.emulated import Emulated


@pytest.fixture(scope="module")
def rtx() -> tensorrt.TensorRT:
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX: pip install 'tensorrt-rtx>=1.7,<1.8'")
    return tensorrt.find("tensorrt_rtx")


@pytest.mark.slow
def test_two_layers_in_every_precision(rtx: tensorrt.TensorRT, emulated: Emulated, tmp_path: Path) -> None:
    spec = rtx_graph.text_model(2, 320, 448)  # sizes that no state or activation shares
    source = tmp_path / "fp32.onnx"
    graph = rtx_graph.write_step(spec, source)
    wanted = outputs(graph, source)
    for precision, architecture, codes in (("fp16", "86", 0), ("int8", "89", 7), ("int4", "120", 13)):
        path = tmp_path / f"{precision}.onnx"
        rtx_graph.rewrite_step(source, path, precision, "rtx")
        assert difference(outputs(graph, path), wanted) < TOLERANCE[precision]
        row = examine(rtx, graph, path, emulated.path, architecture)
        assert row.good, row
        assert (row.codes, row.plugins) == (codes, 2 + {"fp16": 0, "int8": 7, "int4": 7}[precision])
        # 1 byte for a number of 8 bits, half of one for 4, and no room for a second copy in halves
        if precision == "fp16":
            halves = row.engine_mb
        else:
            assert row.engine_mb < halves


def test_a_matrix_that_is_widened_is_seen(rtx: tensorrt.TensorRT, tmp_path: Path) -> None:
    """8-bit blocks behind a DequantizeLinear: what TensorRT-RTX writes out as floats, and why there is a plugin."""
    k, n = 512, 768
    codes = np.random.default_rng(0).integers(-127, 128, (k, n), np.int8)
    scales = np.full((k // 128, n), 0.01, np.float16)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["wide"], axis=0, block_size=128),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    made = helper.make_graph(
        nodes, "product", [value("x", TensorProto.FLOAT16, [1, "T", k])],
        [value("y", TensorProto.FLOAT16, [1, "T", n])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    graph = GraphSpec(
        "product", "product.onnx", (TensorSpec("x", "float16", (1, "T", k)),),
        (TensorSpec("y", "float16", (1, "T", n)),), (),
    )  # fmt: skip
    engine = tensorrt.build(rtx, graph, tmp_path / "product.onnx", capability="89")
    found = rtx_program.tensors(engine)
    assert rtx_program.constants(found, "int8")[k * n] == 1
    assert rtx_program.widened(found, [k * n])[k * n] >= 1
    assert rtx_program.scratch_bytes(engine) >= 2 * k * n
