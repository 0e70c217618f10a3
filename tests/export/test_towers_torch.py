"""Vision towers and projector: against the official outputs and against torch's own modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import export.towers.sam as sam_module
from export.config import ExportConfig
from export.towers.vision import VisionModel
from export.weights import WeightSource, load_weight
from runtime.errors import ConfigError
from tests.export.namings import hf_siglip, parts, rename
from tests.export.torch_models import SIGLIP, Tensors, config_of, ln0, open_model, read, vision_model, write

TOLERANCE = 1e-4
SMALL = {"version": "7.01", "vision": {"type": "siglip", "num_attention_heads": 2}}


def pixels(golden: Path) -> list[torch.Tensor]:
    data = np.load(golden / "v700_tower.npz")
    return [torch.from_numpy(data[f"pixel_{name}"]).float() for name in ("dino", "siglip", "sam")]


def test_fused_tower_and_projector(golden: Path) -> None:
    config = config_of(golden, "v700.pth", num_token_per_image=16)
    checkpoint, spec = open_model(golden / "v700.pth", config)
    data, model = np.load(golden / "v700_tower.npz"), vision_model(checkpoint, spec)
    with torch.no_grad():
        features = model.tower(*pixels(golden))
        embeddings = model(*pixels(golden))
    assert features.shape == tuple(data["tower_features_shape"])
    rows = features[:, :: int(data["tower_features_row_stride"])].numpy()
    assert np.abs(rows - data["tower_features_rows"]).max() <= TOLERANCE
    assert np.abs(features.mean(1).numpy() - data["tower_features_mean"]).max() <= TOLERANCE
    assert np.abs(features.std(1, correction=0).numpy() - data["tower_features_std"]).max() <= TOLERANCE
    assert (embeddings - ln0(checkpoint, spec, data["image_features"])).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", ["feat1", "feat2"])
def test_pooling_and_projector_from_features(golden: Path, case: str) -> None:
    """Pooling 8 x 8 cells to 4 x 4, and to 3 x 3, which does not divide."""
    data = np.load(golden / f"v700_{case}.npz")
    config = ExportConfig.from_dict(
        {
            "vision": {"type": "features", "width": 112, "cells": 64},
            "num_token_per_image": int(data["num_token_per_image"]),
        }
    )
    checkpoint, spec = open_model(golden / "v700.pth", config)
    model = vision_model(checkpoint, spec)
    with torch.no_grad():
        embeddings = model(torch.from_numpy(data["tower_features"]).float())
    assert (embeddings - ln0(checkpoint, spec, data["image_features"])).abs().max() <= TOLERANCE
    (view,) = model.view_specs()
    assert (view.name, view.kind, view.height, view.width) == ("features", "features", 64, 112)


@pytest.mark.parametrize("pooled", [1, 2, 3, 5, 7, 8])
def test_pooling_is_torchs_adaptive_average(pooled: int) -> None:
    matrix = load_weight(None, WeightSource((), "pooling", (pooled, 8)))  # type: ignore[arg-type]
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(matrix @ image @ matrix.T, F.adaptive_avg_pool2d(image, pooled), atol=1e-6)


def test_images_of_a_batch_are_independent(golden: Path) -> None:
    checkpoint, spec = open_model(golden / "v700.pth", config_of(golden, "v700.pth"))
    model, one = vision_model(checkpoint, spec), pixels(golden)
    two = [torch.cat([x, x.flip(-1) * 0.5]) for x in one]
    with torch.no_grad():
        assert (model(*two)[:1] - model(*one)).abs().max() <= TOLERANCE


def test_sam_in_groups_of_rows_is_the_same(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, spec = open_model(golden / "v700.pth", config_of(golden, "v700.pth"))
    monkeypatch.setattr(sam_module, "SCORES_AT_ONCE", 1 << 30)
    whole = vision_model(checkpoint, spec).tower.sam
    monkeypatch.setattr(sam_module, "SCORES_AT_ONCE", 1 << 22)
    grouped = vision_model(checkpoint, spec).tower.sam
    assert len(whole.blocks[1].attn.groups) == 1
    assert grouped.blocks[1].attn.groups[-1] == (56, 64)
    with torch.no_grad():
        assert (whole(pixels(golden)[2]) - grouped(pixels(golden)[2])).abs().max() <= 1e-5


def test_views(golden: Path) -> None:
    _, spec = open_model(golden / "v700.pth", config_of(golden, "v700.pth"))
    views = VisionModel(spec).view_specs()
    assert [(v.name, v.height, v.interpolation, v.fit) for v in views] == [
        ("dino", 64, "bicubic", "stretch"), ("siglip", 64, "bicubic", "stretch"),
        ("sam", 128, "bicubic", "stretch"),
    ]  # fmt: skip


def _siglip_checkpoint(golden: Path, folder: Path, naming: str) -> Path:
    tensors = read(golden / "v700.pth")
    tower = parts(tensors, SIGLIP)
    files = {key: x for key, x in tensors.items() if key.startswith("rwkv.")}
    files["proj.weight"] = torch.randn(128, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    if naming != "timm":
        tower = hf_siglip(tower)
    prefix = "vit." if naming == "transformers 5" else "vit.vision_model."
    return write(files | {prefix + key: x.bfloat16() for key, x in tower.items()}, folder / "m.pth")


def _reference_siglip(tower: Tensors, x: torch.Tensor) -> torch.Tensor:
    """SigLIP through torch's own encoder layers: every block, then the final norm, tanh-GELU."""
    x = F.conv2d(x, tower["patch_embed.proj.weight"], tower["patch_embed.proj.bias"], stride=2)
    x = x.flatten(2).mT + tower["pos_embed"]
    for index in range(3):
        block = parts(tower, f"blocks.{index}.")
        layer = nn.TransformerEncoderLayer(
            32, 2, 119, 0.0, lambda h: F.gelu(h, approximate="tanh"), 1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict(
            rename(
                block,
                ("attn.qkv.", "self_attn.in_proj_"),
                ("attn.proj", "self_attn.out_proj"),
                ("mlp.fc", "linear"),
            )
        )
        x = layer(x)
    return F.layer_norm(x, (32,), tower["norm.weight"], tower["norm.bias"], 1e-6)


@pytest.mark.parametrize("naming", ["hugging face", "timm", "transformers 5"])
def test_siglip_alone(golden: Path, tmp_path: Path, naming: str) -> None:
    checkpoint, spec = open_model(_siglip_checkpoint(golden, tmp_path, naming), ExportConfig.from_dict(SMALL))
    assert (spec.version, spec.projector, spec.num_token_per_image) == ("7.01", "linear", 1024)
    model = vision_model(checkpoint, spec)
    (view,) = model.view_specs()
    assert (view.name, view.height, view.interpolation) == ("siglip", 64, "bilinear")
    assert view.mean == view.std == (0.5, 0.5, 0.5)
    image = pixels(golden)[1]
    with torch.no_grad():
        wanted = _reference_siglip(parts(read(golden / "v700.pth"), SIGLIP), image)
        assert (model.tower(image) - wanted).abs().max() <= TOLERANCE
        projected = wanted @ checkpoint.tensor("proj.weight").float().T
        assert (model(image) - ln0(checkpoint, spec, projected.numpy())).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "wanted: vision.num_attention_heads"),
        ({"version": "7.00", "vision": SMALL["vision"]}, "version is '7.00'"),
        ({"vision": {"type": "siglip", "num_attention_heads": 5}}, "divisor"),
        (
            {"vision": {"type": "siglip", "num_attention_heads": 2, "hidden_size": 48}},
            "hidden_size is 48 .* 32",
        ),
        ({"vision": {"type": "sam+dino+siglip"}}, r"vision\.type is"),
        ({"vision": None}, '"vision" is null'),
        ({**SMALL, "num_token_per_image": 250}, "num_token_per_image is 250"),
        ({**SMALL, "num_token_per_image": 1089}, "num_token_per_image is 1089"),
        ({**SMALL, "image_token_id": 512}, "image_token_id is 512"),
        ({**SMALL, "proj": "mlp"}, "proj is 'mlp'"),
    ],
)
def test_configuration_must_fit_the_tower(golden: Path, tmp_path: Path, data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(_siglip_checkpoint(golden, tmp_path, "hugging face"), ExportConfig.from_dict(data))


def test_without_a_tower_features_are_fed(golden: Path, tmp_path: Path) -> None:
    tensors = read(golden / "v700.pth")
    path = write({key: x for key, x in tensors.items() if not key.startswith("vit.")}, tmp_path / "m.pth")
    with pytest.raises(ConfigError, match="feature cells of 112"):
        open_model(path, ExportConfig.from_dict({"vision": None}))
    _, spec = open_model(path, ExportConfig.from_dict({"vision": None, "num_token_per_image": 16}))
    assert spec.tower is not None
    assert (spec.tower.kind, spec.tower.cells, spec.tower.width) == ("features", 16, 112)
