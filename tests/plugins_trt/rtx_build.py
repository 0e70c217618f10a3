"""Run in a process of its own: TensorRT-RTX parses an ONNX file, takes our plugins, and builds engines without a GPU.

python -m tests.plugins_trt.rtx_build LIBRARY MODEL.onnx SM86 SM89   prints one JSON object
"""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import tensorrt_rtx as trt

LENGTHS = (1, 64, 512)  # of a dynamic axis: least, best, most


def build(library: str, model: str, architectures: list[str]) -> dict[str, Any]:
    """Return what happened: creators found, layers by type, engine bytes by architecture, or errors."""
    logger = trt.Logger(trt.Logger.ERROR)
    registry = trt.get_plugin_registry()
    handle = registry.load_library(library)
    names = sorted(c.name for c in registry.all_creators if c.plugin_namespace == "vrwkv")
    result: dict[str, Any] = {"loaded": handle is not None, "creators": names, "engines": {}}
    for architecture in architectures:
        builder = trt.Builder(logger)
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(model):
            result["errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            return result
        kinds = collections.Counter(network.get_layer(i).type.name for i in range(network.num_layers))
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        result["layers"] = dict(kinds)
        result["outputs"] = {one.name: [str(one.dtype), list(one.shape)] for one in outputs}
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            one = network.get_input(i)
            if -1 in tuple(one.shape):
                profile.set_shape(one.name, *([n if n >= 0 else length for n in one.shape] for length in LENGTHS))
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        result["engines"][architecture] = 0 if engine is None else engine.nbytes
        result["fields"] = engine is not None and b"head_size" in bytes(engine)
    return result


if __name__ == "__main__":
    print(json.dumps(build(sys.argv[1], sys.argv[2], sys.argv[3:])))
