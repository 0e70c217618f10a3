"""Separate vision files: which tower a file is, and the names its keys get in a VisualRWKV checkpoint.

Public towers come in several namings (timm, Hugging Face with and without prefix, the original SAM release).
Where two differ by more than a prefix the difference is kept: `ViTSpec.naming` says which one a tower's
weights use, and the tower asks for its keys accordingly. SAM's namings differ by words only and are renamed
to the original ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from runtime.errors import CheckpointError

Kind = Literal["dino", "siglip", "sam", "clip", "visualrwkv"]

_PREFIXES = (
    "vit.vision_model.", "vit.dino_featurizer.", "vit.siglip_featurizer.", "vit.sam_featurizer.",
    "vision_model.", "visual.trunk.", "dinov2_with_registers.", "dinov2.", "image_encoder.",
    "vision_encoder.",
)  # fmt: skip
_OTHER_PARTS = re.compile(
    r"(text_model|prompt_encoder|mask_decoder|shared_image_embedding|text|decoder|text_projection|visual_projection)\.|"
    r"logit_(scale|bias)$"
)
_HF_SAM = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"^neck\.conv1\.", "neck.0."),
    (r"^neck\.layer_norm1\.", "neck.1."),
    (r"^neck\.conv2\.", "neck.2."),
    (r"^neck\.layer_norm2\.", "neck.3."),
    (r"\.layer_norm([12])\.", r".norm\1."),  # after the neck's own
    (r"\.mlp\.fc([12])\.", r".mlp.lin\1."),  # timm's one difference
)


def classify(keys: Iterable[str], file: str) -> tuple[Kind, dict[str, str]]:
    """Return what a vision file is, and its useful keys as {stored name: name without any prefix}.

    A file that already uses VisualRWKV's names (the "rest" half of a split checkpoint) is "visualrwkv" and
    keeps them.

    Raises:
        CheckpointError: the keys belong to no tower known here.
    """
    keys = list(keys)
    if any(key.startswith(("vit.", "proj.", "rwkv.")) for key in keys):
        return "visualrwkv", {key: key for key in keys}
    names = {key: _strip(key) for key in keys if not _OTHER_PARTS.match(key)}
    found = set(names.values())
    if any(name.endswith(".attn.rel_pos_h") for name in found):
        return "sam", {key: _rename_sam(name) for key, name in names.items()}
    if found & {"reg_token", "register_tokens", "embeddings.register_tokens"} or (
        "cls_token" in found and any(name.endswith(".ls1.gamma") for name in found)
    ):
        return "dino", names
    if "embeddings.patch_embedding.weight" in found:
        return "clip" if "embeddings.class_embedding" in found else "siglip", names
    if "blocks.0.attn.qkv.weight" in found and "cls_token" not in found:
        return "siglip", names
    shown = ", ".join(sorted(keys)[:3])
    raise CheckpointError(
        f"{file} is no vision tower known here; it has {len(keys)} keys such as {shown}",
        wanted="DINOv2 with registers, SigLIP, SigLIP2, SAM ViT-B or CLIP, in Hugging Face (but CLIP, timm) naming",
    )


def tower_prefixes(kinds: Mapping[str, Kind], have: Iterable[str]) -> dict[Kind, str]:
    """Return the prefix each kind of vision file gets in a checkpoint that already has the keys `have`.

    A SigLIP file stands alone (v6.10, v7.01 to v7.04) unless a DINO or SAM tower comes with it.
    """
    fused = bool({"dino", "sam"} & set(kinds.values())) or any(
        key.startswith(("vit.dino_featurizer.", "vit.sam_featurizer.")) for key in have
    )
    return {
        "dino": "vit.dino_featurizer.",
        "sam": "vit.sam_featurizer.",
        "siglip": "vit.siglip_featurizer." if fused else "vit.vision_model.",
        "clip": "vit.vision_model.",
        "visualrwkv": "",
    }


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


def _rename_sam(name: str) -> str:
    for pattern, replacement in _HF_SAM:
        name = re.sub(pattern, replacement, name)
    return name
