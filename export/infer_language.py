"""The language model of a checkpoint: its family and sizes, from names and shapes."""

from __future__ import annotations

import re
from typing import Any, Literal

from export.checkpoint import Checkpoint
from export.infer_towers import count_blocks
from runtime.errors import CheckpointError

RELEASED = "a VisualRWKV-6, VisualRWKV-7 or VisualRWKV-HM model, or an RWKV-6 or RWKV-7 text model"
_OLD = re.compile(r"(rwkv\.)?blocks\.\d+\.att\.(time_mix_k|time_first)$")
_SHOWN = 5
_MARKS = {"rwkv7": "att.r_k", "rwkv6": "att.time_faaaa"}  # both [heads, head size]
_RANKS = {
    "rwkv7": {"w": "w1", "a": "a1", "v": "v1", "g": "g1"},
    "rwkv6": {"maa": "time_maa_w2", "decay": "time_decay_w1"},
}


def language_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields of `ArchSpec` that the language model decides.

    Raises `CheckpointError` where it is none of a family known here, or a matrix that tells a size is missing.
    """
    prefix, family = _family(checkpoint)
    vocab, width = matrix(checkpoint, f"{prefix}emb.weight")
    heads, head_size = matrix(checkpoint, f"{prefix}blocks.0.{_MARKS[family]}")
    layers = count_blocks(checkpoint, f"{prefix}blocks.")
    if heads * head_size != width:
        raise CheckpointError(
            f"{heads} heads of {head_size} channels in a width of {width}",
            wanted=f"{_MARKS[family]} of shape [heads, width / heads]",
        )
    return {
        "family": family,
        "prefix": prefix,
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "head_size": head_size,
        "dim_ffn": matrix(checkpoint, f"{prefix}blocks.0.ffn.key.weight")[0],
        "vocab_size": vocab,
        "ranks": {name: _rank(checkpoint, prefix, name, key, layers) for name, key in _RANKS[family].items()},
    }


def matrix(checkpoint: Checkpoint, key: str) -> tuple[int, int]:
    """Return the shape of a matrix, or raise `CheckpointError`."""
    shape = checkpoint.shapes.get(key)
    if shape is None or len(shape) != 2 or 0 in shape:
        found = f"{key} has shape {list(shape)}" if shape else f"{key} is missing"
        raise CheckpointError(f"{checkpoint.name}: {found}", wanted="a matrix")
    return shape[0], shape[1]


def _family(checkpoint: Checkpoint) -> tuple[Literal["", "rwkv."], Literal["rwkv6", "rwkv7"]]:
    """Return the prefix and family of the keys; a `CheckpointError` names what the file is otherwise."""
    keys = set(checkpoint.shapes)
    prefix: Literal["", "rwkv."] = "rwkv." if any(key.startswith("rwkv.") for key in keys) else ""
    other = ""
    if any(key.startswith("vrwkv.") for key in keys):
        other = "VisualRWKV v7.10 (a research design with an RWKV vision stem)"
    elif f"{prefix}cross_blocks.0.att.query.weight" in keys:
        other = "VisualRWKV v6.23 (an attention baseline whose keys and values grow with the pictures)"
    elif any(_OLD.match(key) for key in keys):
        other = "RWKV-5 or older"
    if other:
        raise CheckpointError(
            f"{checkpoint.name} is {other}; this family is not supported by this version", wanted=RELEASED
        )
    if f"{prefix}blocks.0.att.time_maa_w1" in keys:
        return prefix, "rwkv6"
    if f"{prefix}blocks.0.att.r_k" in keys:
        return prefix, "rwkv7"
    raise CheckpointError(
        f"{checkpoint.name} is no RWKV model known here; its {len(keys)} tensors begin "
        f"{', '.join(sorted(keys)[:_SHOWN])}",
        wanted=RELEASED,
        hint="a vision tower goes to --vision, beside the language model",
    )


def _rank(checkpoint: Checkpoint, prefix: str, name: str, key: str, layers: int) -> int:
    if name == "v" and layers == 1:
        return 0
    full = f"{prefix}blocks.{1 if name == 'v' else 0}.att.{key}"
    if name == "maa":  # [5, rank, C]
        shape = checkpoint.shapes.get(full, ())
        if len(shape) != 3:
            raise CheckpointError(f"{checkpoint.name}: {full} has shape {list(shape)}", wanted="[5, rank, width]")
        return shape[1]
    return matrix(checkpoint, full)[1]
