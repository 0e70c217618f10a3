"""TensorRT-RTX itself: loads the library, takes each plugin from an ONNX file, builds engines for GPUs not present."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plugins_trt.matmul_w8.reference import quantize
from tests.plugins_trt.emulated import Emulated

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = {"plugin_namespace": "vrwkv", "plugin_version": "1"}
HEADS, WIDTH = 2, 128


def rtx_folder() -> Path:
    """Return where the wheel's libraries are."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or found.origin is None or importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no TensorRT-RTX: pip install 'tensorrt-rtx>=1.7,<1.8'")
    return Path(found.origin).parent


def model(kind: int, *, head_size: int = 64, drop: str = "") -> onnx.ModelProto:
    """A layer's skeleton: 8-bit product, WKV-7, WKV-6, read-out. T is free; `drop` leaves one input out."""
    series = [1, "T", WIDTH]
    g = np.random.default_rng(0)
    codes, scales = quantize(g.standard_normal((WIDTH, WIDTH)), 64)
    value = helper.make_tensor_value_info
    inputs = [value(name, kind, series) for name in ("x", "r", "w", "k", "a", "b")]
    states = [value(name, TensorProto.FLOAT, [1, HEADS, 64, 64]) for name in ("s7", "s6")]
    attributes = {"head_size": head_size, **PLUGIN}
    seven = [name for name in ("r", "w", "k", "v", "a", "b", "s7") if name != drop]
    nodes = [
        helper.make_node("MatMulW8", ["x", "codes", "scales"], ["v"], domain="vrwkv", **PLUGIN),
        helper.make_node("WKV7", seven, ["y7", "s7_out"], domain="vrwkv", **attributes),
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("WKV6", ["r", "k", "y7", "w32", "u", "s6"], ["y6", "s6_out"], domain="vrwkv", **attributes),
        helper.make_node("ReadState", ["r", "x", "y6", "s7"], ["y"], domain="vrwkv", **attributes),
    ]
    outputs = [value("y", kind, series), *(value(f"{s.name}_out", TensorProto.FLOAT, None) for s in states)]
    constants = [("codes", codes), ("scales", scales), ("u", g.standard_normal((HEADS, 64)).astype(np.float32))]
    graph = helper.make_graph(
        nodes, "layer", inputs + states, outputs, [numpy_helper.from_array(x, name) for name, x in constants]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("vrwkv", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def ask(emulated: Emulated, folder: Path, what: onnx.ModelProto, *architectures: str) -> dict[str, Any]:
    """Return what `rtx_build` says of a model."""
    libraries = rtx_folder()
    onnx.save(what, folder / "model.onnx")
    # The parser opens the library by the name that the wheel leaves out.
    (folder / "libtensorrt_rtx.so").symlink_to(next(libraries.glob("libtensorrt_rtx.so.*")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins_trt.rtx_build", str(emulated.path), "model.onnx", *architectures],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": f"{folder}:{libraries}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "said": done.stderr}


@pytest.mark.parametrize(
    ("kind", "shown", "architectures"),
    [
        (TensorProto.FLOAT16, "HALF", ("SM86", "SM89", "SM120")),
        (TensorProto.BFLOAT16, "BF16", ("SM89",)),
        (TensorProto.FLOAT, "FLOAT", ("SM86",)),
    ],
)
def test_engines_with_every_plugin(
    emulated: Emulated, tmp_path: Path, kind: int, shown: str, architectures: tuple[str, ...]
) -> None:
    said = ask(emulated, tmp_path, model(kind), *architectures)
    assert said["loaded"] and said["creators"] == ["MatMulW8", "ReadState", "WKV6", "WKV7"]
    assert said["layers"]["PLUGIN_V3"] == 4, said
    assert said["outputs"]["y"][0].endswith(shown) and said["outputs"]["y"][1] == [1, -1, WIDTH]
    assert said["outputs"]["s7_out"] == ["DataType.FLOAT", [1, HEADS, 64, 64]]
    assert set(said["engines"]) == set(architectures) and min(said["engines"].values()) > 0
    assert said["fields"], "the plugins' attributes are in the engine"


def test_a_wrong_node_is_refused_with_our_reason(emulated: Emulated, tmp_path: Path) -> None:
    said = ask(emulated, tmp_path, model(TensorProto.FLOAT16, head_size=32), "SM89")
    assert said["errors"] and "head_size is 32; wanted 64" in said["said"]


def test_a_missing_input_is_refused_with_our_reason(emulated: Emulated, tmp_path: Path) -> None:
    said = ask(emulated, tmp_path, model(TensorProto.FLOAT16, drop="b"), "SM89")
    assert not said["engines"].get("SM89") and "it has 6 inputs and 2 outputs; wanted 7 and 2" in said["said"]
