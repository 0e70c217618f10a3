"""Names and shapes of a checkpoint -> `ArchSpec`, then the strict check that nothing is missing or left over.

The modules themselves say which tensors they want, so the check cannot drift from what is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from export.arch.rwkv7 import RWKV7, embedding_sources
from export.archspec import ArchSpec as ArchSpec
from export.archspec import TowerSpec
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer_towers import count_blocks, find_tower
from export.towers.vision import VisionModel
from export.weights import WeightSource
from runtime.errors import CheckpointError, ConfigError

_SHOWN = 5
_RELEASED = "a released VisualRWKV-7 model (v7.00, v7.01, v7.02) or an RWKV-7 text model"
_OLD = re.compile(r"(rwkv\.)?blocks\.\d+\.att\.(time_mix_k|time_first)$")
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
    prefix = _language_prefix(checkpoint)
    vocab, width = _matrix(checkpoint, f"{prefix}emb.weight")
    heads, head_size = _matrix(checkpoint, f"{prefix}blocks.0.att.r_k")
    layers = count_blocks(checkpoint, f"{prefix}blocks.")
    ranks = {name: _rank(checkpoint, prefix, name, layers) for name in ("w", "a", "v", "g")}
    has_vision = any(key.startswith("proj.") for key in shapes)
    if config.vision and config.vision.type == "clip":
        raise ConfigError("vision.type is 'clip'", wanted="a tower of an RWKV-7 model", hint="CLIP belongs to RWKV-6")
    if (config.vision or config.version in ("7.00", "7.01", "7.02")) and not has_vision:
        raise ConfigError(
            f"the configuration describes a visual model, but {checkpoint.name} has no projector (proj.*)",
            hint="pass the whole checkpoint, or the file with its vit.* and proj.* keys as --vision",
        )
    tower: TowerSpec | None = find_tower(checkpoint, config) if has_vision else None
    version = _version(config, tower)
    tokens = (config.num_token_per_image or tower.cells) if tower else 0
    spec = ArchSpec(
        family="rwkv7",
        version=version,
        prefix=prefix,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        head_size=head_size,
        dim_ffn=_matrix(checkpoint, f"{prefix}blocks.0.ffn.key.weight")[0],
        vocab_size=vocab,
        rank_w=ranks["w"],
        rank_a=ranks["a"],
        rank_v=ranks["v"],
        rank_g=ranks["g"],
        tower=tower,
        projector=_projector(shapes) if tower else None,
        num_token_per_image=tokens,
        image_token_id=_or(config.image_token_id, vocab - 1) if tower else None,
        stop_token_id=_or(config.stop_token_id, 261),
        padding=config.padding or ("left16" if tower else "none"),
    )
    _check_options(spec, config)
    _check_config(spec, config, checkpoint)
    _check_tensors(spec, checkpoint)
    return spec


def _language_prefix(checkpoint: Checkpoint) -> Literal["", "rwkv."]:
    """Return the prefix of an RWKV-7 model's keys; a `CheckpointError` names what the file is otherwise."""
    keys = set(checkpoint.shapes)
    prefix: Literal["", "rwkv."] = "rwkv." if any(key.startswith("rwkv.") for key in keys) else ""
    other = ""
    if any(key.startswith("vrwkv.") for key in keys):
        other = "VisualRWKV v7.10 (a research design with an RWKV vision stem)"
    elif any(key.startswith("vtc.") for key in keys):
        other = "VisualRWKV v7.03 or v7.04 (with a visual token compressor)"
    elif f"{prefix}blocks.0.att.time_maa_w1" in keys:
        other = f"RWKV-6: {_rwkv6_family(checkpoint, prefix)}"
    elif any(_OLD.match(key) for key in keys):
        other = "RWKV-5 or older"
    if other:
        what = "RWKV-6 is not supported" if other.startswith("RWKV-6") else "this family is not supported"
        raise CheckpointError(
            f"{checkpoint.name} is {other}; {what} by this version",
            wanted=_RELEASED,
            hint="use a v7 checkpoint",
        )
    if f"{prefix}blocks.0.att.r_k" not in keys:
        shown = ", ".join(sorted(keys)[:_SHOWN])
        raise CheckpointError(
            f"{checkpoint.name} is no RWKV model known here; its {len(keys)} tensors begin {shown}",
            wanted=_RELEASED,
            hint="a vision tower goes to --vision, beside the language model",
        )
    return prefix


def _rwkv6_family(checkpoint: Checkpoint, prefix: str) -> str:
    """Name an RWKV-6 model."""
    keys, shapes = set(checkpoint.shapes), checkpoint.shapes
    for key, name in (
        ("blocks.0.att.mem_read.weight", "VisualRWKV-HM v6.21"),
        ("blocks.0.cross.receptance.weight", "VisualRWKV v6.22"),
        ("cross_blocks.0.att.query.weight", "VisualRWKV v6.23"),
    ):
        if prefix + key in keys:
            return name
    if "vit.vision_model.embeddings.class_embedding" in keys:
        hidden = shapes["vit.vision_model.embeddings.class_embedding"][-1]
        return "VisualRWKV v6.0" if shapes.get("proj.weight", (0, 0))[-1] == hidden else "VisualRWKV v6.01"
    if any(key.startswith("vit.vision_model.") for key in keys):
        return "VisualRWKV v6.10"
    if any(key.startswith("vit.") for key in keys):
        sam = any(key.startswith("vit.sam_featurizer.") for key in keys)
        return "VisualRWKV HD, UHD or v6.20" if sam else "VisualRWKV v6.11"
    return "a VisualRWKV-6 model without its tower" if prefix else "a text model"


def _version(config: ExportConfig, tower: TowerSpec | None) -> str:
    if tower is None:
        return config.version or "text"
    if config.version:
        return config.version
    # A tower-less checkpoint is told by its projector's input: 768 is SigLIP2-base (7.01), 3200 the fused
    # tower.
    return "7.01" if tower.kind == "siglip" or (tower.kind == "features" and tower.width == 768) else "7.00"


def _projector(shapes: Mapping[str, tuple[int, ...]]) -> Literal["mlp", "linear"]:
    return "linear" if "proj.weight" in shapes else "mlp"


def _matrix(checkpoint: Checkpoint, key: str) -> tuple[int, int]:
    shape = checkpoint.shapes.get(key)
    if shape is None or len(shape) != 2 or 0 in shape:
        found = f"{key} has shape {list(shape)}" if shape else f"{key} is missing"
        raise CheckpointError(f"{checkpoint.name}: {found}", wanted="a matrix")
    return shape[0], shape[1]


def _rank(checkpoint: Checkpoint, prefix: str, name: str, layers: int) -> int:
    if name == "v" and layers == 1:
        return 0
    return _matrix(checkpoint, f"{prefix}blocks.{1 if name == 'v' else 0}.att.{name}1")[1]


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _check_options(spec: ArchSpec, config: ExportConfig) -> None:
    if spec.n_head * spec.head_size != spec.n_embd:
        raise CheckpointError(
            f"{spec.n_head} heads of {spec.head_size} channels in a width of {spec.n_embd}",
            wanted="att.r_k of shape [heads, width / heads]",
        )
    for name, token in (("stop_token_id", spec.stop_token_id), ("image_token_id", spec.image_token_id)):
        if token is not None and not 0 <= token < spec.vocab_size:
            raise ConfigError(
                f"{name} is {token}", wanted=f"0 to {spec.vocab_size - 1}", hint=f"set {name} in --config"
            )
    if spec.tower is None:
        for name in ("num_token_per_image", "image_token_id"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name} is set, but the checkpoint is a text model", hint=f"remove {name}")
        return
    for name, number in (
        ("tower cells", spec.tower.cells),
        ("num_token_per_image", spec.num_token_per_image),
    ):
        if round(number**0.5) ** 2 != number or number > spec.tower.cells:
            raise ConfigError(f"{name} is {number}", wanted=f"a square number of at most {spec.tower.cells}")
    fitting = {"fused": ("7.00",), "siglip": ("7.01", "7.02"), "features": ("7.00", "7.01", "7.02")}
    if spec.version not in fitting[spec.tower.kind]:
        raise ConfigError(
            f"version is {spec.version!r}, but the tower is {spec.tower.kind!r}",
            wanted=" or ".join(fitting[spec.tower.kind]),
        )


def _check_config(spec: ArchSpec, config: ExportConfig, checkpoint: Checkpoint) -> None:
    """Hold the informative keys of the configuration against what was inferred."""
    dtypes = checkpoint.stored_dtypes
    found: dict[str, Any] = {
        "n_keys": len(checkpoint.main_keys),
        "stored_dtype": dtypes[0] if len(dtypes) == 1 else ", ".join(dtypes),
        "proj": spec.projector,
        "family": spec.version if spec.version == "text" else f"v{spec.version}",
        "n_state_encoder_layer": None,
        "lm.arch": "x070",
        "lm.n_layer": spec.n_layer,
        "lm.n_embd": spec.n_embd,
        "lm.vocab_size": spec.vocab_size,
        "lm.n_head": spec.n_head,
        "lm.head_size": spec.head_size,
        "lm.dim_att": spec.n_embd,
        "lm.dim_ffn": spec.dim_ffn,
        **{f"lm.lora.{name}": getattr(spec, f"rank_{name}") for name in ("w", "a", "v", "g")},
    }
    said: dict[str, Any] = {
        key: getattr(config, key) for key in ("n_keys", "stored_dtype", "proj", "family", "n_state_encoder_layer")
    }
    for key, value in config.lm.items():
        said.update({f"lm.lora.{k}": v for k, v in value.items()} if key == "lora" else {f"lm.{key}": value})
    for key, value in said.items():
        if value is not None and value != found.get(key):
            raise ConfigError(
                f"{key} is {value!r} in the configuration and {found.get(key)!r} in {checkpoint.name}",
                hint="pass the configuration of this checkpoint, or leave the key out",
            )


def model_sources(spec: ArchSpec) -> dict[str, WeightSource]:
    """Return every weight the model needs: "lm.*", "vision.*" and "embedding.*"."""
    with torch.device("meta"):
        sources = {f"lm.{name}": source for name, source in RWKV7(spec).sources().items()}
        if spec.has_vision:
            sources.update({f"vision.{name}": source for name, source in VisionModel(spec).sources().items()})
    sources.update({f"embedding.{name}": source for name, source in embedding_sources(spec).items()})
    return sources


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
            f"{checkpoint.name} is not a complete {_title(spec)}: " + "; ".join(filter(None, problems)),
            wanted=f"exactly the {len(wanted)} tensors of this model",
            hint="check that the file is the whole, unmodified state dict",
        )


def _is_dead(key: str, spec: ArchSpec) -> bool:
    if re.match(re.escape(spec.prefix) + _DEAD_LM, key):
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


def _title(spec: ArchSpec) -> str:
    return "RWKV-7 text model" if spec.tower is None else f"VisualRWKV v{spec.version} model"


def _listed(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title}: {', '.join(items[:_SHOWN])}{more}"
