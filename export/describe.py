"""What the manifest says about pictures and prompts: from an `ArchSpec` and its variant."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from export.archspec import ArchSpec
from export.towers.vision import VisionModel
from export.variants import VARIANTS
from runtime.spec import CompressorSpec, ContextSpec, PromptSpec, ScanSpec, VisionSpec

_PROMPT = PromptSpec("User: ", "Assistant:", "\n\n", "first", "\n")
_COMPRESSOR_CHUNK = 16  # of the official training kernel


def prompt_spec(spec: ArchSpec) -> PromptSpec:
    """Return the conversation template of a model."""
    if not spec.has_vision:
        return _PROMPT
    variant = VARIANTS[spec.version]
    prompt = replace(_PROMPT, image_position=spec.image_position, text_only=variant.text_only)
    return replace(prompt, left_out="") if spec.version == "6.10" else prompt  # it repeats the question unchanged


def vision_spec(spec: ArchSpec) -> VisionSpec | None:
    """Return how a model sees, or None for a text model."""
    if spec.tower is None:
        return None
    variant = VARIANTS[spec.version]
    with torch.device("meta"):
        module = VisionModel(spec)
    embeddings = module.outputs[0].shape[1]
    assert isinstance(embeddings, int)
    context = compressor = None
    if encoder := spec.state_encoder:
        chunks = spec.n_layer if encoder.strategy == "fold" else 1
        cells = spec.tower.cells
        context = ContextSpec("image_state", cells, encoder.max_feature_len, encoder.tokens_per_image, chunks)
    if spec.compressor_layers:
        assert variant.compressed_per
        compressor = CompressorSpec(variant.tokens or embeddings, variant.compressed_per, _COMPRESSOR_CHUNK)
    return VisionSpec(module.view_specs(), embeddings, variant.regions, _scan(spec, embeddings), context, compressor)


def _scan(spec: ArchSpec, tokens: int) -> ScanSpec | None:
    if spec.scan is None or spec.tower is None:
        return None
    fixed = VARIANTS[spec.version].fixed
    if spec.tower.kind == "features":  # features come with the extra token, or without it: a square tells
        fixed = 0 if math.isqrt(tokens) ** 2 == tokens else fixed
    return ScanSpec(spec.scan, fixed)
