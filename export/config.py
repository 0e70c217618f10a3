"""The `--config` file: what tensors cannot tell, and what the user wants checked.

Every key is optional; a key nobody knows is an error, so that a misspelt option is never silently ignored.
Three forms
are read: one object with the keys of `ExportConfig`; the same with the informative keys of the golden set
(`family`, `lm`, `n_keys`, `stored_dtype`, ...), which are checked against the checkpoint; and a file of such
objects by checkpoint file name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from export.variants import SCANS, VARIANTS, version_of
from runtime.errors import ConfigError
from runtime.spec import ImagePosition, Padding

VERSIONS = (*VARIANTS, "text")
_CHOICES: dict[str, tuple[str, ...]] = {
    "version": VERSIONS,
    "padding": ("none", "left16"),
    "image_position": ("first", "last", "middle"),
    "scan": tuple(SCANS),
    "state_encoder_strategy": ("single", "fold"),
}
_POSITIVE = ("num_token_per_image", "state_encoder_max_feature_len", "state_encoder_num_token_per_image")

_VIT = {"image_size": int, "patch_size": int}
_TIMM = {**_VIT, "embed_dim": int, "depth": int, "num_heads": int, "mlp_hidden": int}
_SIGLIP = {
    **_VIT, "hidden_size": int, "num_hidden_layers": int, "num_attention_heads": int,
    "intermediate_size": int, "hidden_act": str, "layer_norm_eps": float,
}  # fmt: skip
_SECTIONS: dict[str, dict[str, Any]] = {
    "sam+dino+siglip": {
        "dino": {**_TIMM, "reg_tokens": int},
        "siglip": _TIMM,
        "sam": {
            **_TIMM, "window_size": int, "global_attn_indexes": list, "out_chans": int,
        },
    },
    "dino+siglip": {"dino": {**_TIMM, "reg_tokens": int}, "siglip": _TIMM},
    "siglip": _SIGLIP,
    "clip": _SIGLIP,
    "features": {"width": int, "cells": int},
}  # fmt: skip
_LM = {
    "arch": str, "n_layer": int, "n_embd": int, "vocab_size": int, "n_head": int, "head_size": int,
    "dim_att": int, "dim_ffn": int, "lora": dict.fromkeys(("w", "a", "v", "g", "maa", "decay"), int),
}  # fmt: skip
_TOP: dict[str, Any] = {
    "version": str, "image_token_id": int, "stop_token_id": int, "num_token_per_image": int, "padding": str,
    "vocabulary": str, "lm": _LM, "family": str, "stored_dtype": str, "n_keys": int, "proj": str,
    "n_state_encoder_layer": int, "image_position": str, "scan": str, "grid_size": int, "state_encoder_strategy": str,
    "state_encoder_max_feature_len": int, "state_encoder_num_token_per_image": int,
}  # fmt: skip


@dataclass(frozen=True)
class VisionConfig:
    """The `vision` section.

    `sizes` holds its numbers by dotted path, e.g. {"dino.num_heads": 16} or {"num_attention_heads": 12}.
    """

    type: Literal["sam+dino+siglip", "dino+siglip", "siglip", "clip", "features"]
    sizes: dict[str, Any] = field(default_factory=dict)

    def number(self, path: str) -> int | None:
        """Return a whole number by dotted path, or None where the file does not say."""
        return cast("int | None", self.sizes.get(path))


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export; None means: infer, or take the released models' value."""

    version: str | None = None
    image_token_id: int | None = None
    stop_token_id: int | None = None
    num_token_per_image: int | None = None
    padding: Padding | None = None
    image_position: ImagePosition | None = None
    scan: str | None = None  # "unidirectional", "bidirectional" or "multidirectional"
    grid_size: int | None = None  # CLIP's pooling: -1, 0, 1 or more
    state_encoder_strategy: Literal["single", "fold"] | None = None
    state_encoder_max_feature_len: int | None = None
    state_encoder_num_token_per_image: int | None = None
    vocabulary: Path | None = None
    vision: VisionConfig | None = None
    towerless: bool = False  # "vision": null
    lm: dict[str, Any] = field(default_factory=dict)  # checked only
    family: str | None = None  # checked only, like the rest
    stored_dtype: str | None = None
    n_keys: int | None = None
    proj: str | None = None
    n_state_encoder_layer: int | None = None

    @classmethod
    def load(cls, path: Path, checkpoint_name: str) -> ExportConfig:
        """Read a configuration file.

        Args:
            path: JSON; its `vocabulary` is relative to the file's folder.
            checkpoint_name: file name of the checkpoint, for a file that holds several configurations.

        Raises:
            ConfigError: the file cannot be read, or a key or value is wrong.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="check --config") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}", hint="check --config") from None
        if isinstance(data, dict) and data and all(Path(key).suffix in (".pth", ".safetensors") for key in data):
            if checkpoint_name not in data:
                raise ConfigError(f"{path} has no entry for {checkpoint_name}", wanted=f"one of {', '.join(data)}")
            data = data[checkpoint_name]
        return cls.from_dict(data, Path(path).parent)

    @classmethod
    def from_dict(cls, data: Any, folder: Path = Path()) -> ExportConfig:
        """Check decoded JSON and return the configuration; raises `ConfigError` naming the wrong key."""
        _check(data, {**_TOP, "vision": None}, "")
        values = {key: value for key, value in data.items() if key != "vision"}
        version = values.get("version") or version_of(values.get("family") or "")
        for key, choices in _CHOICES.items():
            if key in values and values[key] not in choices:
                raise _wrong(key, values[key], " or ".join(choices))
        for key, least in (*((key, 1) for key in _POSITIVE), ("stop_token_id", 0), ("grid_size", -1)):
            if key in values and values[key] < least:
                raise _wrong(key, values[key], "a positive whole number" if least >= 0 else "-1, 0 or more")
        if values.get("image_token_id", 0) < 0:
            del values["image_token_id"]  # v6.0's placeholder is no token
        if "vocabulary" in values:
            values["vocabulary"] = folder / values["vocabulary"]
        return cls(
            **{**values, "version": version},
            vision=_vision(data.get("vision")),
            towerless="vision" in data and data["vision"] is None,
        )


def _vision(data: Any) -> VisionConfig | None:
    if data is None:
        return None
    if not isinstance(data, dict) or data.get("type") not in _SECTIONS:
        found = data.get("type") if isinstance(data, dict) else data
        raise _wrong("vision.type", found, " or ".join(_SECTIONS))
    kind = data["type"]
    _check(data, {"type": str, **_SECTIONS[kind]}, "vision.")
    sizes: dict[str, Any] = {}
    for key, value in data.items():
        sizes.update({f"{key}.{inner}": x for inner, x in value.items()} if isinstance(value, dict) else {key: value})
    del sizes["type"]
    for key, value in sizes.items():
        items = value if isinstance(value, list) else [value]
        if any(type(item) is not int or item < 0 for item in items) and not isinstance(value, (str, float)):
            raise _wrong(f"vision.{key}", value, "whole numbers of 0 or more")
        if type(value) is int and value == 0 and not key.endswith("reg_tokens"):
            raise _wrong(f"vision.{key}", value, "a positive whole number")
    return VisionConfig(kind, sizes)


def _check(data: Any, known: dict[str, Any], path: str) -> None:
    """Refuse unknown keys and wrong types; `known` maps a key to its type, inner keys or None (any)."""
    if not isinstance(data, dict):
        raise _wrong(path.rstrip(".") or "the configuration", data, "an object")
    for key, value in data.items():
        if key not in known:
            raise ConfigError(
                f"unknown key {path}{key}", wanted=f"one of {', '.join(known)}", hint="check its spelling"
            )
        kind = known[key]
        if isinstance(kind, dict):
            _check(value, kind, f"{path}{key}.")
        elif kind is float and type(value) in (int, float):
            continue
        elif kind is not None and type(value) is not kind:
            raise _wrong(path + key, value, {int: "a whole number", str: "a text"}.get(kind, f"a {kind.__name__}"))


def _wrong(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key} is {str(value)[:80]!r}", wanted=wanted, hint="correct the configuration file")
