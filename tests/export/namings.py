"""The golden tower's weights under the names that public towers come with."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from tests.export.torch_models import Tensors

Naming = Callable[[Tensors], Tensors]


def parts(tensors: Tensors, prefix: str) -> Tensors:
    return {key[len(prefix) :]: x.float() for key, x in tensors.items() if key.startswith(prefix)}


def rename(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    renamed = {}
    for key, x in tensors.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = x
    return renamed


def _split_qkv(tensors: Tensors, names: tuple[str, str, str]) -> Tensors:
    out: Tensors = {}
    for key, x in tensors.items():
        if ".attn.qkv." in key:
            out.update({key.replace("attn.qkv", name): part for name, part in zip(names, x.chunk(3), strict=True)})
        else:
            out[key] = x
    return out


def hf_siglip(timm: Tensors) -> Tensors:
    kept = {key: x for key, x in timm.items() if not key.startswith("attn_pool.")}
    kept["pos_embed"] = kept["pos_embed"][0]
    return rename(
        _split_qkv(kept, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (r"^patch_embed\.proj", "embeddings.patch_embedding"),
        (r"^pos_embed$", "embeddings.position_embedding.weight"),
        (r"^blocks", "encoder.layers"), (r"attn\.proj", "self_attn.out_proj"),
        (r"\.norm([12])", r".layer_norm\1"),
        (r"^norm\.", "post_layernorm."),
    )  # fmt: skip


def _with_class_row(timm: Tensors) -> Tensors:
    """The public DINOv2 layout: the position table begins with the class token's position."""
    row = torch.full_like(timm["cls_token"], 0.25)
    return timm | {"cls_token": timm["cls_token"] - row, "pos_embed": torch.cat([row, timm["pos_embed"]], 1)}


def _hf_dino(timm: Tensors) -> Tensors:
    names = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
    return rename(
        _split_qkv(_with_class_row(timm), names),  # type: ignore[arg-type]
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^cls_token", "embeddings.cls_token"),
        (r"^reg_token", "embeddings.register_tokens"), (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^blocks", "encoder.layer"), (r"attn\.proj", "attention.output.dense"), (r"^norm\.", "layernorm."),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
    ) | {"embeddings.mask_token": torch.zeros(1, 48)}  # fmt: skip


def _hf_sam(sam: Tensors) -> Tensors:
    return rename(
        sam, (r"^patch_embed\.proj", "patch_embed.projection"), (r"^blocks", "layers"),
        (r"\.norm([12])", r".layer_norm\1"), (r"neck\.0", "neck.conv1"), (r"neck\.1", "neck.layer_norm1"),
        (r"neck\.2", "neck.conv2"), (r"neck\.3", "neck.layer_norm2"),
    )  # fmt: skip


def _prefixed(tensors: Tensors, prefix: str, **others: torch.Tensor) -> Tensors:
    return {prefix + key: x for key, x in tensors.items()} | others


NAMINGS: dict[str, tuple[Naming, Naming, Naming]] = {
    "timm": (dict, dict, lambda t: rename(t, (r"mlp\.lin", "mlp.fc"))),
    "original": (
        lambda t: rename(_with_class_row(t), ("reg_token", "register_tokens")),
        lambda t: _prefixed(t, "visual.trunk.", logit_scale=torch.ones(1)),
        lambda t: _prefixed(t, "image_encoder.", **{"mask_decoder.a": torch.ones(1)}),
    ),
    "hugging face": (
        lambda t: _prefixed(_hf_dino(t), "dinov2_with_registers."),
        lambda t: _prefixed(hf_siglip(t), "vision_model.", **{"text_model.a": torch.ones(1)}),
        lambda t: _prefixed(_hf_sam(t), "vision_encoder.", **{"mask_decoder.a": torch.ones(1)}),
    ),
    "transformers 5": (_hf_dino, hf_siglip, lambda t: _prefixed(_hf_sam(t), "vision_encoder.")),
}
