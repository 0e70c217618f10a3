"""Random-weight checkpoints in the official key naming and sizes, for measuring what small models cannot show.

python -m benchmarks.random_checkpoint 0.1B v700-0B1.pth            # VisualRWKV v7.00 with the full fused tower
python -m benchmarks.random_checkpoint 1.5B text-1B5.pth --text     # language model only
python -m benchmarks.random_checkpoint v6-1.6B v60-1B6.safetensors  # VisualRWKV v6.0 with the full CLIP tower
python -m benchmarks.random_checkpoint 7B text-7B.safetensors --text

A .safetensors file is written tensor by tensor, so a 7B model needs no 14 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Size:
    """One released RWKV-7 size: layers, width, ranks of the w, a, v, g paths."""

    layers: int
    width: int
    ranks: tuple[int, int, int, int]


SIZES = {
    "0.1B": Size(12, 768, (64, 64, 32, 128)),
    "0.4B": Size(24, 1024, (64, 64, 32, 128)),
    "1.5B": Size(24, 2048, (96, 96, 64, 256)),
    "3B": Size(32, 2560, (96, 96, 64, 320)),
    "7B": Size(32, 4096, (128, 128, 96, 480)),
}
RWKV6_SIZES = {  # layers, width, FFN, ranks of the mixing and decay paths; nothing below 1.6B was released
    "v6-0.4B": (24, 1024, 3584, 32, 64),
    "v6-1.6B": (24, 2048, 7168, 32, 64),
    "v6-3B": (32, 2560, 8960, 32, 64),
    "v6-7B": (32, 4096, 14336, 64, 128),
}
VOCABULARY = 65536
FEATURES = 1024 + 1152 + 1024

Shapes = Iterator[tuple[str, tuple[int, ...], float]]  # key, shape, scale of the random values, or a mark
NEAR_ONE, LOG_DECAY = -1.0, -2.0  # marks instead of scales: values around 1, and around -4


def language_model(size: Size, prefix: str) -> Shapes:
    """Yield the tensors of an RWKV-7 language model."""
    c, matrix = size.width, size.width**-0.5
    yield f"{prefix}emb.weight", (VOCABULARY, c), 0.5
    yield f"{prefix}head.weight", (VOCABULARY, c), matrix
    yield from _norm(f"{prefix}ln_out", c)
    yield from _norm(f"{prefix}blocks.0.ln0", c)
    for i in range(size.layers):
        block = f"{prefix}blocks.{i}."
        yield from _norm(f"{block}ln1", c)
        yield from _norm(f"{block}ln2", c)
        yield from _norm(f"{block}att.ln_x", c)
        for name in (
            "x_r",
            "x_w",
            "x_k",
            "x_v",
            "x_a",
            "x_g",
            "w0",
            "a0",
            *(["v0"] if i else []),
            "k_k",
            "k_a",
        ):
            yield f"{block}att.{name}", (1, 1, c), NEAR_ONE if name.startswith("k_") else 0.5
        for name, rank in zip("wavg", size.ranks, strict=True):
            if name != "v" or i:
                yield f"{block}att.{name}1", (c, rank), matrix
                yield f"{block}att.{name}2", (rank, c), rank**-0.5
        yield f"{block}att.r_k", (c // 64, 64), 0.1
        for name in ("receptance", "key", "value", "output"):
            yield f"{block}att.{name}.weight", (c, c), matrix
        yield f"{block}ffn.x_k", (1, 1, c), 0.5
        yield f"{block}ffn.key.weight", (4 * c, c), matrix
        yield f"{block}ffn.value.weight", (c, 4 * c), 0.5 * matrix


def rwkv6_language_model(size: str, prefix: str) -> Shapes:
    """Yield the tensors of an RWKV-6 language model.

    Its decays lie where training leaves them and its layers write little, each 1 / sqrt(layers), into the residual
    stream: without that, 24 random layers multiply every rounding by more than any trained model does.
    """
    layers, c, ffn, maa, decay = RWKV6_SIZES[size]
    matrix, written = c**-0.5, (c * layers) ** -0.5
    yield f"{prefix}emb.weight", (VOCABULARY, c), 0.5
    yield f"{prefix}head.weight", (VOCABULARY, c), matrix
    yield from _norm(f"{prefix}ln_out", c)
    yield from _norm(f"{prefix}blocks.0.ln0", c)
    for i in range(layers):
        block = f"{prefix}blocks.{i}."
        for name in ("ln1", "ln2", "att.ln_x"):
            yield from _norm(block + name, c)
        for name in ("x", "w", "k", "v", "r", "g"):
            yield f"{block}att.time_maa_{name}", (1, 1, c), 0.5
        yield f"{block}att.time_maa_w1", (c, 5 * maa), matrix
        yield f"{block}att.time_maa_w2", (5, maa, c), 0.1 * maa**-0.5
        yield f"{block}att.time_decay", (1, 1, c), LOG_DECAY
        yield f"{block}att.time_decay_w1", (c, decay), matrix
        yield f"{block}att.time_decay_w2", (decay, c), 0.1 * decay**-0.5
        yield f"{block}att.time_faaaa", (c // 64, 64), 0.3
        for name in ("receptance", "key", "value", "gate"):
            yield f"{block}att.{name}.weight", (c, c), matrix
        yield f"{block}att.output.weight", (c, c), written
        yield f"{block}ffn.time_maa_k", (1, 1, c), 0.5
        yield f"{block}ffn.time_maa_r", (1, 1, c), 0.5
        yield f"{block}ffn.key.weight", (ffn, c), matrix
        yield f"{block}ffn.value.weight", (c, ffn), written
        yield f"{block}ffn.receptance.weight", (c, c), matrix


def clip_tower(width: int) -> Shapes:
    """Yield CLIP ViT-L/14 at 336 pixels and v6.0's linear projector."""
    prefix, c = "vit.vision_model.", 1024
    yield f"{prefix}embeddings.class_embedding", (c,), 0.5
    yield f"{prefix}embeddings.patch_embedding.weight", (c, 3, 14, 14), 0.04
    yield f"{prefix}embeddings.position_embedding.weight", (577, c), 0.2
    yield from _norm(f"{prefix}pre_layrnorm", c)
    yield from _norm(f"{prefix}post_layernorm", c)
    for j in range(24):
        layer = f"{prefix}encoder.layers.{j}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}self_attn.{name}", c, c)
        yield from _norm(f"{layer}layer_norm1", c)
        yield from _norm(f"{layer}layer_norm2", c)
        yield from _linear(f"{layer}mlp.fc1", c, 4096)
        yield from _linear(f"{layer}mlp.fc2", 4096, c)
    yield "proj.weight", (width, c), c**-0.5


def fused_tower() -> Shapes:
    """Yield the tensors of the full-size DINOv2-L, SigLIP-SO400M and SAM-B towers."""
    yield "vit.dino_featurizer.cls_token", (1, 1, 1024), 0.5
    yield "vit.dino_featurizer.reg_token", (1, 4, 1024), 0.5
    yield from _vit("vit.dino_featurizer.", 1024, 4096, 24, scaled=True)
    yield from _vit("vit.siglip_featurizer.", 1152, 4304, 27, scaled=False)
    yield from _attention_pool("vit.siglip_featurizer.attn_pool.", 1152, 4304)
    yield from _sam("vit.sam_featurizer.")


def projector(width: int) -> Shapes:
    """Yield the gated MLP projector of v7.00."""
    yield "proj.gate.weight", (FEATURES, FEATURES), FEATURES**-0.5
    yield "proj.o_proj.weight", (width, FEATURES), FEATURES**-0.5
    yield from _norm("proj.ln_v", width)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,), NEAR_ONE
    yield f"{name}.bias", (width,), 0.1


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs), inputs**-0.5
    yield f"{name}.bias", (outputs,), 0.1


def _vit(prefix: str, width: int, mlp: int, depth: int, *, scaled: bool) -> Shapes:
    yield f"{prefix}pos_embed", (1, 1024, width), 0.2
    yield f"{prefix}patch_embed.proj.weight", (width, 3, 14, 14), 0.04
    yield f"{prefix}patch_embed.proj.bias", (width,), 0.1
    for j in range(depth):
        block = f"{prefix}blocks.{j}."
        yield from _norm(f"{block}norm1", width)
        yield from _linear(f"{block}attn.qkv", width, 3 * width)
        yield from _linear(f"{block}attn.proj", width, width)
        yield from _norm(f"{block}norm2", width)
        yield from _linear(f"{block}mlp.fc1", width, mlp)
        yield from _linear(f"{block}mlp.fc2", mlp, width)
        if scaled:
            yield f"{block}ls1.gamma", (width,), 0.3
            yield f"{block}ls2.gamma", (width,), 0.3
    yield from _norm(f"{prefix}norm", width)


def _attention_pool(prefix: str, width: int, mlp: int) -> Shapes:
    yield f"{prefix}latent", (1, 1, width), 0.2
    yield from _linear(f"{prefix}q", width, width)
    yield from _linear(f"{prefix}kv", width, 2 * width)
    yield from _linear(f"{prefix}proj", width, width)
    yield from _norm(f"{prefix}norm", width)
    yield from _linear(f"{prefix}mlp.fc1", width, mlp)
    yield from _linear(f"{prefix}mlp.fc2", mlp, width)


def _sam(prefix: str) -> Shapes:
    width, head = 768, 64
    yield f"{prefix}pos_embed", (1, 64, 64, width), 0.2
    yield f"{prefix}patch_embed.proj.weight", (width, 3, 16, 16), 0.04
    yield f"{prefix}patch_embed.proj.bias", (width,), 0.1
    for j in range(12):
        block, side = f"{prefix}blocks.{j}.", 64 if j in (2, 5, 8, 11) else 14
        yield from _norm(f"{block}norm1", width)
        yield from _linear(f"{block}attn.qkv", width, 3 * width)
        yield from _linear(f"{block}attn.proj", width, width)
        yield f"{block}attn.rel_pos_h", (2 * side - 1, head), 0.1
        yield f"{block}attn.rel_pos_w", (2 * side - 1, head), 0.1
        yield from _norm(f"{block}norm2", width)
        yield from _linear(f"{block}mlp.lin1", width, 3072)
        yield from _linear(f"{block}mlp.lin2", 3072, width)
    yield f"{prefix}neck.0.weight", (256, width, 1, 1), width**-0.5
    yield from _norm(f"{prefix}neck.1", 256)
    yield f"{prefix}neck.2.weight", (256, 256, 3, 3), (9 * 256) ** -0.5
    yield from _norm(f"{prefix}neck.3", 256)


def shapes_of(size: str, *, text_only: bool) -> list[tuple[str, tuple[int, ...], float]]:
    """Return the tensors of a model."""
    prefix = "" if text_only else "rwkv."
    if size in RWKV6_SIZES:
        shapes = list(rwkv6_language_model(size, prefix))
        return shapes if text_only else [*shapes, *clip_tower(RWKV6_SIZES[size][1])]
    shapes = list(language_model(SIZES[size], prefix))
    return shapes if text_only else [*shapes, *fused_tower(), *projector(SIZES[size].width)]


def write(path: Path, size: str, *, text_only: bool = False, seed: int = 0) -> None:
    """Write a bfloat16 checkpoint of a released size; deterministic in `seed`."""
    shapes = shapes_of(size, text_only=text_only)
    if path.suffix == ".safetensors":
        _stream(path, shapes, seed)
        return
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape, scale in shapes:
        tensors[key] = _scaled(torch.randn(shape, generator=generator), scale)
    torch.save(tensors, path)


def _scaled(values: torch.Tensor, scale: float) -> torch.Tensor:
    marked = {NEAR_ONE: 1 + 0.1 * values, LOG_DECAY: values - 4}
    return marked.get(scale, scale * values).bfloat16()


def _stream(path: Path, shapes: list[tuple[str, tuple[int, ...], float]], seed: int) -> None:
    """Write .safetensors one tensor at a time, every tensor a stretch of one pool of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 24, generator=generator)
    header, end = {}, 0
    for key, shape, _ in shapes:
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, scale in shapes:
            left = math.prod(shape)
            while left:
                at = int(torch.randint(len(pool) // 2, (), generator=generator))
                part = pool[at : at + min(left, len(pool) // 2)]
                file.write(_scaled(part, scale).view(torch.int16).numpy().tobytes())
                left -= len(part)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=[*SIZES, *RWKV6_SIZES])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="store_true", help="no vision tower")
    args = parser.parse_args()
    write(args.out, args.size, text_only=args.text)


if __name__ == "__main__":
    main()
