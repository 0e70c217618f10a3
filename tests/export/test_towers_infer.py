"""Recognising towers and projectors by names and shapes; the official outputs of v6.0's and HM's vision halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.archspec import TowerSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer_towers import find_projector, find_tower
from export.towers.pooling import clip_tokens
from export.towers.vision import VisionModel
from runtime.errors import CheckpointError, ConfigError
from tests.export import tower_models as tiny
from tests.export.torch_models import config_of, ln0, read, write
from tests.export.tower_models import Shapes

TOLERANCE = 1e-4
C = tiny.WIDTH


class _NoFile:
    """Shapes alone: nothing may read a tensor."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.dtypes = dict.fromkeys(shapes, torch.bfloat16)


def names_of(shapes: Shapes) -> Checkpoint:
    file: Any = _NoFile(shapes)
    return Checkpoint(Path("m.pth"), {key: (file, key) for key in shapes}, frozenset(shapes))


def found(shapes: Shapes, config: ExportConfig | None = None, family: str = "rwkv6") -> TowerSpec:
    return find_tower(names_of(tiny.language(family) | shapes), config or ExportConfig())


def towers(grid: int) -> Shapes:
    """The released DINOv2 and SigLIP, two blocks each."""
    return tiny.timm("dino", 1024, grid, 14, 2) | tiny.timm("siglip", 1152, grid, 14, 2)


FUSED = towers(32) | tiny.sam(768, 64, 16, [14, 0], 256, heads=12)


def test_released_clip() -> None:
    shapes = tiny.hugging_face(1024, 24, 14, 2, clip=True)
    tower = found(shapes | tiny.projector("linear", 1024))
    assert tower.clip is not None
    assert (tower.kind, tower.cells, tower.width, tower.clip.image_size, tower.clip.heads) == (
        "clip", 576, 1024, 336, 16,
    )  # fmt: skip
    mirrored = found(shapes | tiny.projector("linear", 2048))
    assert (mirrored.kind, mirrored.width, mirrored.clip) == ("clip", 2048, tower.clip)


def test_released_v610() -> None:
    tower = found(tiny.hugging_face(1152, 27, 14, 2, clip=False) | tiny.projector("linear", 1152))
    assert tower.siglip is not None
    assert (tower.kind, tower.cells, tower.siglip.image_size, tower.siglip.heads) == ("siglip", 729, 384, 16)
    assert (tower.siglip.gelu, tower.siglip.final) == ("tanh", True)


def test_released_v611() -> None:
    shapes = towers(27) | tiny.projector("linear", 2176)
    tower = found(shapes)
    assert tower.dino is not None and tower.siglip is not None
    assert (tower.kind, tower.cells, tower.width, tower.sam) == ("pair", 729, 2176, None)
    assert (tower.dino.image_size, tower.siglip.image_size, tower.dino.final) == (384, 384, False)
    with pytest.raises(CheckpointError, match="lacks sam_featurizer"):  # an RWKV-7 model has three towers
        found(shapes, family="rwkv7")


@pytest.mark.parametrize(
    ("inputs", "form", "tiles"), [(3200, "mlp-hd", 1), (3200, "linear", 1), (6400, "mlp-uhd", 2), (6400, "linear", 2)]
)
def test_released_hd_and_uhd(inputs: int, form: str, tiles: int) -> None:
    shapes = FUSED | tiny.projector(form, inputs)
    tower = found(shapes)
    assert (tower.kind, tower.cells, tower.width, tower.tiles) == ("fused", 1024, inputs, tiles)
    assert find_projector(shapes) == form
    without = {key: shape for key, shape in shapes.items() if key.startswith("proj.")}
    assert find_projector(without) == form
    features = found(without, ExportConfig(towerless=True))
    assert (features.kind, features.cells, features.width, features.tiles) == ("features", 1024, inputs, 1)


def test_uhd_reads_five_pictures_in_the_memory_of_one() -> None:
    checkpoint = names_of(tiny.language("rwkv6") | FUSED | tiny.projector("mlp-uhd", 6400))
    with torch.device("meta"):
        model = VisionModel(tiny.specification(checkpoint, ExportConfig(), "6.13"))
        views = [torch.empty(2, 3, view.height, view.width) for view in model.view_specs()]
        assert model(*views).shape == (2, 1024, C)
    groups = model.tower.sam.blocks[1].attn.groups
    assert len(views) == 15
    assert (groups[0], groups[-1]) == ((0, 2), (62, 64))


def test_uhd_is_told_by_its_own_towers_width() -> None:
    assert find_projector(tiny.fused() | tiny.projector("mlp-uhd", 104)) == "mlp-uhd"
    assert find_projector(tiny.fused() | tiny.projector("mlp-hd", 52)) == "mlp-hd"
    assert find_projector(tiny.projector("mlp", 52)) == "mlp"
    with pytest.raises(CheckpointError, match="projector takes 6400"):  # tiles belong to RWKV-6
        found(FUSED | tiny.projector("mlp-uhd", 6400), family="rwkv7")


@pytest.mark.parametrize("names", [[], ["proj.bias"], ["proj.weight", "proj.gate.weight"], ["proj.proj.weight"]])
def test_unknown_projectors(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match="the projector has the tensors"):
        find_projector(dict.fromkeys(names, (4, 4)))


@pytest.mark.parametrize(("width", "cells"), [(1024, 577), (2048, 577), (1152, 730), (2176, 729), (6400, 1024)])
def test_features_of_released_towers(width: int, cells: int) -> None:
    tower = found(tiny.projector("linear", width), ExportConfig(towerless=True))
    assert (tower.kind, tower.cells, tower.width) == ("features", cells, width)


CLIP = tiny.hugging_face(24, 4, 3, 2, clip=True) | tiny.projector("linear", 24)
POSITIONS = "vit.vision_model.embeddings.position_embedding.weight"


@pytest.mark.parametrize(
    ("changes", "config", "error", "message"),
    [
        ({}, None, ConfigError, "wanted: vision.num_attention_heads"),
        ({}, ("siglip", tiny.HF), ConfigError, "vision.type is 'siglip'.* 'clip'"),
        ({}, ("clip", {"num_attention_heads": 5}), ConfigError, "divisor"),
        ({}, ("clip", tiny.HF | {"hidden_size": 48}), ConfigError, "hidden_size is 48 .* 24"),
        ({}, ("clip", tiny.HF | {"image_size": 13}), ConfigError, "image_size is 13 .* 12"),
        ({}, ("clip", tiny.HF | {"hidden_act": "gelu"}), ConfigError, "(?s)hidden_act is 'gelu'.*quick_gelu"),
        ({POSITIONS: (16, 24)}, ("clip", tiny.HF), CheckpointError, "has 16 rows"),
        ({"proj.weight": (C, 72)}, ("clip", tiny.HF), CheckpointError, "projector takes 72"),
        ({"vit.sam_featurizer.a": (1,)}, ("clip", tiny.HF), CheckpointError, "incomplete"),
    ],
)
def test_wrong_clip(changes: Shapes, config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        found(CLIP | changes, tiny.config(*config) if config else None)


def test_wrong_pair() -> None:
    shapes = towers(27) | tiny.projector("linear", 3200)
    with pytest.raises(CheckpointError, match="projector takes 3200"):
        found(shapes)
    with pytest.raises(CheckpointError, match="lacks sam_featurizer"):
        found(shapes, tiny.config("sam+dino+siglip", {}))
    with pytest.raises(ConfigError, match=r"dino\.image_size is 364 .* 384"):
        found(towers(27) | tiny.projector("linear", 2176), tiny.config("dino+siglip", {"dino.image_size": 26 * 14}))


def test_grids_of_clip() -> None:
    assert [clip_tokens(24, grid) for grid in (-1, 0, 1, 2, 5, 8, 13, 24)] == [577, 1, 2, 5, 37, 65, 577, 577]
    for grid in (-2, 25):
        with pytest.raises(ConfigError, match=f"grid_size is {grid}"):
            clip_tokens(24, grid)


def test_views() -> None:
    def views(shapes: Shapes, version: str, config: ExportConfig) -> list[tuple[Any, ...]]:
        checkpoint = names_of(tiny.language("rwkv7" if version[0] == "7" else "rwkv6") | shapes)
        with torch.device("meta"):
            model = VisionModel(tiny.specification(checkpoint, config, version))
        return [(v.name, v.height, v.interpolation, v.fit, v.tile) for v in model.view_specs()]

    whole = (1, 0, 0)
    assert views(CLIP, "6.00", tiny.config("clip", tiny.HF)) == [("clip", 12, "bicubic", "crop", whole)]
    siglip, config = tiny.hugging_face(16, 3, 4, 1, clip=False) | tiny.projector("linear", 16), ("siglip", tiny.HF)
    assert views(siglip, "6.10", tiny.config(*config)) == [("siglip", 12, "bicubic", "stretch", whole)]
    assert views(siglip, "7.03", tiny.config(*config)) == [("siglip", 12, "bilinear", "stretch", whole)]
    fused = tiny.config("sam+dino+siglip", tiny.TIMM)
    names = [view[0] for view in views(tiny.fused() | tiny.projector("mlp-hd", 52), "6.12", fused)]
    assert names == ["dino", "siglip", "sam"]
    tiled = views(tiny.fused() | tiny.projector("mlp-uhd", 104), "6.13", fused)
    sizes = {"dino": 8, "siglip": 12, "sam": 16}
    cells = {"": whole, "_tl": (2, 0, 0), "_tr": (2, 0, 1), "_bl": (2, 1, 0), "_br": (2, 1, 1)}
    assert tiled == [
        (f"{name}{where}", size, "bicubic", "stretch", tile)
        for where, tile in cells.items()
        for name, size in sizes.items()
    ]


def test_a_clip_file_of_its_own(golden: Path, tmp_path: Path) -> None:
    """A whole Hugging Face CLIP model: its text half is left out."""
    tensors = read(golden / "v60.pth")
    main = write({key: x for key, x in tensors.items() if not key.startswith("vit.")}, tmp_path / "main.pth")
    tower = {key.removeprefix("vit."): x for key, x in tensors.items() if key.startswith("vit.")}
    others = ("text_model.embeddings.a", "visual_projection.weight", "text_projection.weight", "logit_scale")
    file = write(tower | {name: torch.ones(1) for name in others}, tmp_path / "clip.pth")
    checkpoint = Checkpoint.open(main, [file])
    assert set(checkpoint.shapes) == set(tensors)


@pytest.mark.parametrize(
    "name",
    ["first_g2", "first_gm1", "last_g2", "last_gm1", "middle_g0", "middle_g1", "middle_g2", "middle_gm1", "start_gm1"],
)
def test_official_v60_image_features(golden: Path, name: str) -> None:
    data = np.load(golden / f"v60_{name}.npz")
    checkpoint, config = Checkpoint.open(golden / "v60.pth"), config_of(golden, "v60.pth")
    grid = int(data["grid_size"])
    spec = tiny.specification(
        checkpoint, config, "6.00", n_embd=128, grid_size=grid, num_token_per_image=clip_tokens(4, grid)
    )
    model = tiny.loaded(VisionModel, spec, checkpoint)
    wanted = data["image_features"].reshape(-1, 128)
    with torch.no_grad():
        pixels = torch.from_numpy(data["pixel_values"]).float()[0, :1]  # the other crops are not used
        embeddings = model(pixels)[0]
        features = model.projector(model.pooling(model.tower(pixels)))[0]
    assert features.shape == wanted.shape
    assert np.abs(features.numpy() - wanted).max() <= TOLERANCE
    assert (embeddings - ln0(checkpoint, spec, wanted)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["fold_1img", "fold_2img", "single_1img", "single_2img"])
def test_official_hm_features(golden: Path, name: str) -> None:
    data = np.load(golden / f"hm621_{name}.npz")
    features = torch.from_numpy(data["tower_features"]).float()
    checkpoint = Checkpoint.open(golden / "hm621.pth")
    config = tiny.config("features", {"cells": features.shape[1]})
    tokens = int(data["num_token_per_image"])
    spec = tiny.specification(checkpoint, config, "6.21", n_embd=128, num_token_per_image=tokens, state_encoder=tiny.HM)
    with torch.no_grad():
        embeddings, projected = tiny.loaded(VisionModel, spec, checkpoint)(features)
    assert spec.projector == "mlp-hd"
    assert (embeddings - ln0(checkpoint, spec, data["image_features_pooled"])).abs().max() <= TOLERANCE
    rows = projected[:, ::5].numpy()
    assert np.abs(rows - data["image_features_orig_rows"].reshape(rows.shape)).max() <= TOLERANCE


def test_clips_unused_tensors_change_nothing(golden: Path, tmp_path: Path) -> None:
    """CLIP's post_layernorm and its old integer buffer are in checkpoints and in no graph."""
    tensors = read(golden / "v60.pth")
    tensors["vit.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    for name in ("weight", "bias"):
        tensors[f"vit.vision_model.post_layernorm.{name}"] = torch.full((64,), 7.0)
    checkpoint = Checkpoint.open(write(tensors, tmp_path / "m.pth"))
    config = config_of(golden, "v60.pth")
    original = Checkpoint.open(golden / "v60.pth")
    outputs = []
    for file in (checkpoint, original):
        spec = tiny.specification(file, config, "6.00", n_embd=128, num_token_per_image=17)
        with torch.no_grad():
            outputs.append(tiny.loaded(VisionModel, spec, file)(torch.ones(1, 3, 56, 56)))
    assert torch.equal(*outputs)
