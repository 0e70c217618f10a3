r"""Bundles inside lmms-eval: registered as its model `visualrwkv_edge`, and its tasks on data of this machine.

The entry point `lmms_eval.models` names `manifest`, so that lmms-eval finds the model wherever both are installed:

    python -m apps.evaluate.lmms --task pope --data ~/datasets --out build/lmms
    python -m lmms_eval --model visualrwkv_edge --model_args bundle=build/v7-0b1 \
        --tasks pope_here --include_path build/lmms
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODEL = "visualrwkv_edge"


def manifest() -> Any:
    """Return what lmms-eval registers (`lmms_eval.models.registry_v2.ModelManifest`)."""
    registry = import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=MODEL, simple_class_path="apps.evaluate.lmms.model.VisualRwkvEdge")
