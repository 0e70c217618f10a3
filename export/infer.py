"""Names and shapes of a checkpoint -> `ArchSpec`, then the strict check that nothing is missing or left over.

The modules themselves say which tensors they want, so the check cannot drift from what is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from export.arch.state_encoder import unused_keys
from export.archspec import ArchSpec as ArchSpec
from export.archspec import StateEncoderSpec, TowerSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer_language import language_sizes
from export.infer_towers import count_blocks, find_projector, find_tower
from export.models import model_sources
from export.towers.pooling import clip_tokens
from export.variants import SCANS, VARIANTS, Variant, version_of
from runtime.errors import CheckpointError, ConfigError

_SHOWN = 5
_STATE_FEATURES = 1024  # image tokens packed for HM's state encoder unless told otherwise: one picture, unpooled
# Tensors that official files hold and no computation uses.
_DEAD_LM = r"blocks\.0\.att\.v[012]$"
_DEAD_TOWER = (
    r"vit\.(dino_featurizer|siglip_featurizer|vision_model)\.((layer|post_layer)?norm\.|attn_pool\.|head\.|fc_norm\.|"
    r"mask_token$|embeddings\.(position_ids|mask_token)$)"
)


def infer(checkpoint: Checkpoint, config: ExportConfig) -> ArchSpec:
    """Tell what model a checkpoint is, and check that it is complete.

    Raises:
        CheckpointError: the family is unknown or not supported, or tensors are missing, left over or of a
            wrong shape.
        ConfigError: the configuration contradicts the checkpoint, or must say something that tensors cannot
            tell.
    """
    shapes = checkpoint.shapes
    sizes = language_sizes(checkpoint)
    has_vision = any(key.startswith("proj.") for key in shapes)
    if (config.vision or (config.version or "text") != "text") and not has_vision:
        raise ConfigError(
            f"the configuration describes a visual model, but {checkpoint.name} has no projector (proj.*)",
            hint="pass the whole checkpoint, or the file with its vit.* and proj.* keys as --vision",
        )
    options: dict[str, Any] = {"version": "text", "tower": None, "projector": None, "num_token_per_image": 0}
    variant: Variant | None = None
    if has_vision:
        tower = find_tower(checkpoint, config)
        version = config.version or _version(sizes["family"], sizes["prefix"], shapes, tower)
        variant = VARIANTS.get(version)
        _check_variant(version, variant, sizes["family"], tower)
        assert variant is not None
        options = _vision_options(checkpoint, config, variant, tower, sizes["prefix"])
    spec = ArchSpec(
        **sizes,
        **options,
        image_token_id=_image_token(config, variant, sizes["vocab_size"]),
        stop_token_id=261 if config.stop_token_id is None else config.stop_token_id,
        padding=config.padding or (variant.padding if variant else "none"),
    )
    _check_options(spec, config)
    _check_config(spec, config, checkpoint)
    _check_tensors(spec, checkpoint)
    return spec


def _version(family: str, prefix: str, shapes: Mapping[str, tuple[int, ...]], tower: TowerSpec) -> str:
    """Return the version; of designs that look the same, the released one."""
    if family == "rwkv7":
        if any(key.startswith("vtc.") for key in shapes):
            return "7.03"
        return "7.01" if tower.kind == "siglip" or (tower.kind == "features" and tower.width == 768) else "7.00"
    if f"{prefix}blocks.0.att.mem_read.weight" in shapes:
        return "6.21"
    if f"{prefix}blocks.0.cross.receptance.weight" in shapes:
        return "6.22"
    if tower.tiles > 1 or (tower.kind == "features" and tower.width == 6400):
        return "6.13"
    by_tower = {"siglip": "6.10", "pair": "6.11", "fused": "6.12"}
    by_width = {2048: "6.01", 1152: "6.10", 2176: "6.11", 3200: "6.12"}
    if tower.kind == "clip":
        assert tower.clip is not None
        return "6.00" if shapes.get("proj.weight", (0, 0))[-1] == tower.clip.width else "6.01"
    return by_tower.get(tower.kind) or by_width.get(tower.width, "6.00")


def _vision_options(
    checkpoint: Checkpoint, config: ExportConfig, variant: Variant, tower: TowerSpec, prefix: str
) -> dict[str, Any]:
    """Return the fields of `ArchSpec` that concern pictures."""
    scan = config.scan or variant.scan
    if config.scan and not variant.scan:
        raise ConfigError(
            f"scan is {config.scan!r}, but v{variant.version} reads images as it reads text", hint="remove scan"
        )
    grid = -1 if config.grid_size is None else config.grid_size
    return {
        "version": variant.version,
        "tower": tower,
        "projector": find_projector(checkpoint.shapes),
        "num_token_per_image": _tokens(config, variant, tower, grid),
        "image_position": config.image_position or variant.image_position,
        "grid_size": grid if tower.kind == "clip" else None,
        "scan": SCANS[scan] if scan else None,
        "state_encoder": _state_encoder(checkpoint, config) if variant.state_encoder else None,
        "compressor_layers": count_blocks(checkpoint, "vtc.blocks.") if variant.compressed_per else 0,
        "sigmoid_gate": f"{prefix}blocks.0.att.mem_gate.bias" in checkpoint.shapes,
    }


def _tokens(config: ExportConfig, variant: Variant, tower: TowerSpec, grid: int) -> int:
    """Return how many embeddings the vision graph makes of one image."""
    if tower.kind == "clip":
        assert tower.clip is not None
        return clip_tokens(tower.clip.side, grid)
    if variant.version == "6.10" and tower.kind == "siglip":
        return tower.cells + 1
    if variant.scan or variant.compressed_per:
        return tower.cells
    return config.num_token_per_image or min(variant.tokens or tower.cells, tower.cells)


def _state_encoder(checkpoint: Checkpoint, config: ExportConfig) -> StateEncoderSpec:
    longest, each = config.state_encoder_max_feature_len, config.state_encoder_num_token_per_image
    if longest and each:
        raise ConfigError(
            "state_encoder_max_feature_len and state_encoder_num_token_per_image are both set", wanted="one of them"
        )
    if each and math.isqrt(each) ** 2 != each:
        raise ConfigError(f"state_encoder_num_token_per_image is {each}", wanted="a square number")
    return StateEncoderSpec(
        count_blocks(checkpoint, "state_encoder.blocks."),
        config.state_encoder_strategy or "single",
        None if each else longest or _STATE_FEATURES,
        each,
    )


def _image_token(config: ExportConfig, variant: Variant | None, vocab: int) -> int | None:
    if variant is None or (not variant.image_token and config.image_token_id is None):
        return None
    return vocab - 1 if config.image_token_id is None else config.image_token_id


def _check_variant(version: str, variant: Variant | None, family: str, tower: TowerSpec) -> None:
    if variant is None or variant.family != family:
        known = " or ".join(v.version for v in VARIANTS.values() if v.family == family)
        raise ConfigError(f"version is {version!r}, but the language model is {family}", wanted=known)
    if tower.kind not in (variant.tower, "features"):
        fitting = [v.version for v in VARIANTS.values() if v.family == family and v.tower == tower.kind]
        raise ConfigError(f"version is {version!r}, but the tower is {tower.kind!r}", wanted=" or ".join(fitting))
    if tower.kind == "fused" and (tower.tiles > 1) != (version == "6.13"):
        raise ConfigError(
            f"version is {version!r}, but the projector takes {tower.width} features",
            wanted="6.13 (UHD), whose projector takes twice what the towers make, or a version without tiles",
        )


def _check_options(spec: ArchSpec, config: ExportConfig) -> None:
    for name, token in (("stop_token_id", spec.stop_token_id), ("image_token_id", spec.image_token_id)):
        if token is not None and not 0 <= token < spec.vocab_size:
            raise ConfigError(
                f"{name} is {token}", wanted=f"0 to {spec.vocab_size - 1}", hint=f"set {name} in --config"
            )
    if spec.tower is None:
        for name in ("num_token_per_image", "image_token_id", "image_position", "scan", "grid_size"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name} is set, but the checkpoint is a text model", hint=f"remove {name}")
        return
    if config.grid_size is not None and spec.grid_size is None:
        raise ConfigError("grid_size is set, but the tower is not CLIP", hint="use num_token_per_image")
    if config.num_token_per_image is not None and (spec.scan or spec.compressor_layers):
        raise ConfigError(f"num_token_per_image is set, but v{spec.version} does not pool", hint="remove it")
    if spec.scan or spec.compressor_layers:
        return
    for name, number in (("tower cells", spec.tower.cells), ("num_token_per_image", spec.num_token_per_image)):
        if math.isqrt(number) ** 2 != number or number > spec.tower.cells:
            raise ConfigError(f"{name} is {number}", wanted=f"a square number of at most {spec.tower.cells}")


def _check_config(spec: ArchSpec, config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Hold the informative keys of the configuration against what was inferred."""
    dtypes = checkpoint.stored_dtypes
    found: dict[str, Any] = {
        "n_keys": len(checkpoint.main_keys),
        "stored_dtype": dtypes[0] if len(dtypes) == 1 else ", ".join(dtypes),
        "proj": spec.projector,
        "family": spec.version,
        "n_state_encoder_layer": spec.state_encoder.n_layer if spec.state_encoder else None,
        "lm.arch": "x060" if spec.family == "rwkv6" else "x070",
        "lm.n_layer": spec.n_layer,
        "lm.n_embd": spec.n_embd,
        "lm.vocab_size": spec.vocab_size,
        "lm.n_head": spec.n_head,
        "lm.head_size": spec.head_size,
        "lm.dim_att": spec.n_embd,
        "lm.dim_ffn": spec.dim_ffn,
        **{f"lm.lora.{name}": rank for name, rank in spec.ranks.items()},
    }
    said: dict[str, Any] = {key: getattr(config, key) for key in ("n_keys", "stored_dtype", "proj")}
    said["n_state_encoder_layer"] = config.n_state_encoder_layer
    if config.family is not None:
        said["family"] = version_of(config.family) or config.family
    for key, value in config.lm.items():
        said.update({f"lm.lora.{k}": v for k, v in value.items()} if key == "lora" else {f"lm.{key}": value})
    for key, value in said.items():
        if value is not None and value != found.get(key):
            raise ConfigError(
                f"{key} is {value!r} in the configuration and {found.get(key)!r} in {checkpoint.name}",
                hint="pass the configuration of this checkpoint, or leave the key out",
            )


def _check_tensors(spec: ArchSpec, checkpoint: Checkpoint) -> None:
    sources = model_sources(spec).values()
    wanted = {key for source in sources for key in source.keys}
    missing = sorted(wanted - set(checkpoint.shapes))
    extra = sorted(key for key in set(checkpoint.shapes) - wanted if not _is_dead(key, spec))
    shapes = sorted({item for source in sources for item in source.mismatches(checkpoint.shapes)})
    problems = [
        _listed(f"{len(missing)} tensors are missing", missing),
        _listed(f"{len(extra)} are unknown", extra),
    ]
    wrong = [f"{key} {list(checkpoint.shapes[key])} instead of {shape}" for key, shape in shapes]
    problems.append(_listed(f"{len(shapes)} have a wrong shape", wrong))
    if missing or extra or shapes:
        raise CheckpointError(
            f"{checkpoint.name} is not a complete {title(spec)}: " + "; ".join(filter(None, problems)),
            wanted=f"exactly the {len(wanted)} tensors of this model",
            hint="check that the file is the whole, unmodified state dict",
        )


def _is_dead(key: str, spec: ArchSpec) -> bool:
    if re.match(re.escape(spec.prefix) + _DEAD_LM, key):
        return True
    if spec.projector == "mlp-uhd" and key == "proj.gate.weight":
        return True
    if spec.state_encoder and key in unused_keys(spec):
        return True
    if spec.tower is None or not key.startswith("vit."):
        return False
    if spec.tower.kind == "features":
        return True  # the configuration asks for features, so a tower in the file stays unused
    for vit in (spec.tower.dino, spec.tower.siglip):
        if (
            vit
            and not vit.final
            and re.match(rf"{re.escape(vit.prefix)}(encoder\.)?(blocks|layers?)\.{vit.depth - 1}\.", key)
        ):
            return True
    return re.match(_DEAD_TOWER, key) is not None


def title(spec: ArchSpec) -> str:
    """Return what a model is called, e.g. "VisualRWKV-7 v7.00 model"."""
    if spec.tower is None:
        return f"{'RWKV-6' if spec.family == 'rwkv6' else 'RWKV-7'} text model"
    return f"{VARIANTS[spec.version].title} model"


def _listed(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title}: {', '.join(items[:_SHOWN])}{more}"
