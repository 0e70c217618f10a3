"""Small models of every family that the library computes, exported once, in every precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export.config import ExportConfig
from quant.apply import quantise
from quant.recipe import RECIPES
from runtime.backends.native import NativeBackend
from runtime.bundle import Bundle
from runtime.engine import Engine

# Golden checkpoints: HM reads an image state, v6.0 scans. "hm621_old": with the gate of before November 2024, and an
# image state for each layer.
MODELS = ("rwkv7_text", "rwkv6_text", "hm621", "hm621_old", "v60")
_HM = {"num_token_per_image": 16, "state_encoder_max_feature_len": 64}  # as tests/golden/hm621_single_1img.npz
_HM_VISION = {"vision": {"type": "features", "cells": 64, "width": 48}}
_OLD_HM = {"state_encoder_strategy": "fold"}


@pytest.fixture(scope="session")
def bundle(
    golden: Path, export: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """A small model in a precision."""
    made: dict[tuple[str, str], Bundle] = {}

    def run(precision: str, model: str = "rwkv7_text") -> Bundle:
        if (precision, model) not in made and precision == "fp32":
            name = f"{model.removesuffix('_old')}.pth"
            options = json.loads((golden / "configs.json").read_text(encoding="utf-8"))[name]
            more = {**_HM, **_HM_VISION} if model.startswith("hm621") else {}
            checkpoint = golden / name
            if model == "hm621_old":
                more |= _OLD_HM
                del options["n_keys"]  # it has more
                checkpoint = with_sigmoid_gate(checkpoint, tmp_path_factory.mktemp("old") / name)
            config = ExportConfig.from_dict({**options, **more})
            made[precision, model] = Bundle.open(export(checkpoint, config=config))
        elif (precision, model) not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{precision}")
            made[precision, model] = quantise(run("fp32", model), folder, RECIPES[precision], name=precision)
        return made[precision, model]

    return run


def with_sigmoid_gate(checkpoint: Path, out: Path) -> Path:
    """Write a copy of an HM checkpoint whose gates have a bias: that makes them sigmoid ones."""
    weights = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(3)
    for key in [key for key in weights if key.endswith("att.mem_gate.weight")]:
        bias = torch.randn(len(weights[key]), generator=generator)
        weights[key.replace("weight", "bias")] = bias.to(weights[key].dtype)
    torch.save(weights, out)
    return out


@pytest.fixture
def native(bundle: Callable[..., Bundle]) -> Iterator[Callable[..., Engine]]:
    """Open it natively."""
    engines = []

    def run(precision: str, model: str = "rwkv7_text", threads: int = 1) -> Engine:
        engines.append(Engine(bundle(precision, model), NativeBackend(threads, required=True)))
        return engines[-1]

    yield run
    for engine in engines:
        engine.close()
