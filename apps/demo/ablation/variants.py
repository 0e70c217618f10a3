"""The variants: one difference each, everything else (data, seeds, steps, sizes) the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Variant:
    """One model."""

    name: str
    title: str
    position: Literal["first", "last", "middle"] = "middle"  # of the picture in the question
    bidirectional: bool = True  # odd layers read the picture backwards
    dynamic: bool = True  # token shift and decay depend on the data (RWKV-6); off: learnt constants, as in RWKV-5
    encoder: int = 0  # layers of HM's state encoder

    @property
    def version(self) -> str:
        """The official form: v6.0, here on precomputed features without a class token, or HM v6.21."""
        return "6.21" if self.encoder else "6.00"


_SANDWICH = Variant("sandwich", "bidirectional, sandwich")
_PLAIN = Variant("plain", "unidirectional, image first", "first", bidirectional=False)
VARIANTS = {
    v.name: v
    for v in (
        _SANDWICH,
        replace(_SANDWICH, name="first", title="bidirectional, image first", position="first"),
        replace(_SANDWICH, name="last", title="bidirectional, image last", position="last"),
        replace(_SANDWICH, name="forward", title="unidirectional, sandwich", bidirectional=False),
        replace(_SANDWICH, name="static", title="bidirectional, sandwich, static recurrence", dynamic=False),
        replace(_PLAIN, name="hm", title="HM: image states, unidirectional, image first", encoder=2),
        _PLAIN,
    )
}


@dataclass(frozen=True)
class Claim:
    """What the papers report: `better` answers at least as well as `worse`."""

    better: str
    worse: str
    says: str


CLAIMS = (
    Claim("sandwich", "first", "sandwich >= image first"),
    Claim("first", "last", "image first >= image last"),
    Claim("sandwich", "last", "sandwich >= image last"),
    Claim("sandwich", "forward", "bidirectional >= unidirectional (sandwich)"),
    Claim("first", "plain", "bidirectional >= unidirectional (image first)"),
    Claim("sandwich", "static", "data-dependent recurrence on >= off"),
    Claim("hm", "plain", "HM >= plain v6"),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of all variants."""

    rows: int  # of the embedding; the last one is the image token
    width: int = 128
    layers: int = 4
    features: int = 128  # channels of the frozen tower
    tokens: int = 16  # of a picture
    mix_rank: int = 32
    decay_rank: int = 32

    @property
    def inner(self) -> int:
        """Width of the channel mix (official: 3.5 C, down to a multiple of 32)."""
        return int(self.width * 3.5) // 32 * 32


def export_config(variant: Variant, sizes: Sizes, stop: int, vocabulary: str) -> dict[str, Any]:
    """What a checkpoint of this variant cannot tell the exporter, as the content of its `--config` file."""
    config: dict[str, Any] = {
        "version": variant.version,
        "image_token_id": sizes.rows - 1,
        "stop_token_id": stop,
        "vocabulary": vocabulary,
        "image_position": variant.position,
        "vision": {"type": "features", "cells": sizes.tokens, "width": sizes.features},
    }
    if variant.encoder:
        tokens = dict.fromkeys(("num_token_per_image", "state_encoder_num_token_per_image"), sizes.tokens)
        return {**config, "state_encoder_strategy": "single", **tokens}
    return {**config, "scan": "bidirectional" if variant.bidirectional else "unidirectional"}
