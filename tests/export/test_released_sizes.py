"""The published models by names and shapes alone: everything is inferred without a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer import infer
from export.towers.vision import VisionModel

Shapes = dict[str, tuple[int, ...]]
C, LAYERS, VOCAB = 768, 12, 65536  # the 0.1B model


@dataclass
class _NoFile:
    shapes: Shapes

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return dict.fromkeys(self.shapes, torch.bfloat16)

    def tensor(self, key: str) -> torch.Tensor:
        raise AssertionError(f"{key} was read to infer the model")


def inferred(shapes: Shapes) -> ArchSpec:
    file = _NoFile(shapes)
    checkpoint = Checkpoint(Path("m.pth"), {key: (file, key) for key in shapes}, frozenset(shapes))
    return infer(checkpoint, ExportConfig())


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def language_model() -> Shapes:
    shapes: Shapes = {"emb.weight": (VOCAB, C), "head.weight": (VOCAB, C)} | norm("ln_out", C) | norm("blocks.0.ln0", C)
    for layer in range(LAYERS):
        ranks = {"w": 64, "a": 64, "g": 128} | ({"v": 32} if layer else {})
        vectors = [f"x_{s}" for s in "rwkvag"] + ["k_k", "k_a"] + [f"{s}0" for s in ranks if s != "g"]
        att: Shapes = dict.fromkeys(vectors, (1, 1, C))
        att |= {f"{s}1": (C, rank) for s, rank in ranks.items()} | {f"{s}2": (rank, C) for s, rank in ranks.items()}
        att |= {f"{name}.weight": (C, C) for name in ("receptance", "key", "value", "output")}
        att |= {"r_k": (C // 64, 64)} | norm("ln_x", C)
        ffn: Shapes = {"x_k": (1, 1, C), "key.weight": (4 * C, C), "value.weight": (C, 4 * C)}
        block = norm("ln1", C) | norm("ln2", C) | under("att.", att) | under("ffn.", ffn)
        shapes |= under(f"blocks.{layer}.", block)
    return shapes


def gated_projector(width: int) -> Shapes:
    return {"proj.gate.weight": (width, width), "proj.o_proj.weight": (C, width)} | norm("proj.ln_v", C)


def timm(width: int, depth: int, mlp: int, patch: int, fc: str = "fc") -> Shapes:
    shapes: Shapes = {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for index in range(depth):
        block = norm("norm1", width) | norm("norm2", width)
        block |= linear("attn.qkv", 3 * width, width) | linear("attn.proj", width, width)
        block |= linear(f"mlp.{fc}1", mlp, width) | linear(f"mlp.{fc}2", width, mlp)
        shapes |= under(f"blocks.{index}.", block)
    return shapes


def fused_tower() -> Shapes:
    dino = timm(1024, 24, 4096, 14) | norm("norm", 1024)
    dino |= {"cls_token": (1, 1, 1024), "reg_token": (1, 4, 1024), "pos_embed": (1, 1024, 1024)}
    dino |= {f"blocks.{index}.ls{i}.gamma": (1024,) for index in range(24) for i in (1, 2)}
    siglip = timm(1152, 27, 4304, 14) | norm("norm", 1152) | {"pos_embed": (1, 1024, 1152)}
    siglip |= {f"attn_pool.unused{index}": (1152,) for index in range(13)}
    sam = timm(768, 12, 3072, 16, "lin") | norm("neck.1", 256) | norm("neck.3", 256)
    sam |= {
        "pos_embed": (1, 64, 64, 768),
        "neck.0.weight": (256, 768, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
    }
    for index in range(12):
        reach = 64 if index in (2, 5, 8, 11) else 14
        sam |= {f"blocks.{index}.attn.rel_pos_{axis}": (2 * reach - 1, 64) for axis in "hw"}
    assert (len(dino), len(siglip), len(sam)) == (343, 342, 177)  # as published
    towers = {"dino": dino, "siglip": siglip, "sam": sam}
    return {f"vit.{name}_featurizer.{key}": shape for name, tower in towers.items() for key, shape in tower.items()}


def siglip2_base() -> Shapes:
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (768, 3, 16, 16),
        "embeddings.patch_embedding.bias": (768,),
        "embeddings.position_embedding.weight": (256, 768),
        "head.probe": (1, 1, 768),
    } | norm("post_layernorm", 768)
    for index in range(12):
        block = norm("layer_norm1", 768) | norm("layer_norm2", 768)
        for name in ("q", "k", "v", "out"):
            block |= linear(f"self_attn.{name}_proj", 768, 768)
        block |= linear("mlp.fc1", 3072, 768) | linear("mlp.fc2", 768, 3072)
        shapes |= under(f"encoder.layers.{index}.", block)
    return under("vit.vision_model.", shapes)


def test_text_model() -> None:
    assert len(language_model()) == 33 * LAYERS + 3
    spec = inferred(language_model())
    assert (spec.version, spec.n_layer, spec.n_head, spec.dim_ffn, spec.vocab_size) == (
        "text",
        12,
        12,
        3072,
        VOCAB,
    )
    assert spec.ranks == {"w": 64, "a": 64, "v": 32, "g": 128}


def test_v700() -> None:
    spec = inferred(under("rwkv.", language_model()) | fused_tower() | gated_projector(3200))
    assert (spec.version, spec.num_token_per_image, spec.image_token_id, spec.padding) == (
        "7.00",
        1024,
        65535,
        "left16",
    )
    tower = spec.tower
    assert tower is not None
    assert tower.dino is not None
    assert tower.siglip is not None
    assert tower.sam is not None
    assert (tower.dino.heads, tower.siglip.heads, tower.sam.heads) == (16, 16, 12)
    assert (tower.dino.image_size, tower.siglip.image_size, tower.sam.image_size) == (448, 448, 1024)
    assert tower.sam.windows == (14, 14, 0) * 4
    with torch.device("meta"):
        views = [torch.empty(2, 3, size, size) for size in (448, 448, 1024)]
        model = VisionModel(spec)
        assert model(*views).shape == (2, 1024, C)
    assert model.tower.sam.blocks[2].attn.groups == [(at, min(at + 10, 64)) for at in range(0, 64, 10)]


def test_v701() -> None:
    spec = inferred(under("rwkv.", language_model()) | siglip2_base() | gated_projector(768))
    assert (spec.version, spec.num_token_per_image, spec.padding, spec.projector) == (
        "7.01",
        256,
        "left16",
        "mlp",
    )
    tower = spec.tower
    assert tower is not None
    assert tower.siglip is not None
    assert (tower.siglip.heads, tower.siglip.image_size, tower.siglip.gelu) == (12, 256, "tanh")


def test_projector_alone_tells_the_released_towers_features() -> None:
    shapes = under("rwkv.", language_model()) | gated_projector(3200)
    file = _NoFile(shapes)
    checkpoint = Checkpoint(Path("m.pth"), {key: (file, key) for key in shapes}, frozenset(shapes))
    spec = infer(checkpoint, ExportConfig.from_dict({"vision": None}))
    assert spec.tower is not None
    assert (spec.version, spec.tower.kind, spec.tower.cells, spec.num_token_per_image) == (
        "7.00",
        "features",
        1024,
        1024,
    )
