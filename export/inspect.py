"""`python -m export --inspect CHECKPOINT`: what a file is, and what each precision would cost, without exporting it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.infer import title
from export.models import graph_modules, language_model
from quant.recipe import RECIPES, Recipe, block_count
from quant.weights import FORMATS
from runtime.spec import SlotSpec

if TYPE_CHECKING:
    from rich.table import Table

_NOT_LANGUAGE = ("vit.", "proj.", "state_encoder.", "vtc.")
_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """Bytes of one precision."""

    precision: str
    per_token: int  # weights of the step graph, all of which a token reads
    pictures: int  # weights of the other graphs
    table: int  # the embedding table: mapped, one row per token


def facts(checkpoint: Checkpoint, spec: ArchSpec) -> dict[str, str]:
    """Return what a checkpoint is, a line each."""
    elements = {key: math.prod(shape) for key, shape in checkpoint.shapes.items()}
    language = sum(
        count for key, count in elements.items() if not key.startswith(("vit.", "proj.", "state_enc", "vtc."))
    )
    ranks = ", ".join(f"{name} {rank}" for name, rank in spec.ranks.items())
    lines = {
        "model": title(spec),
        "file": f"{checkpoint.name}: {len(checkpoint.main_keys)} tensors, {', '.join(checkpoint.stored_dtypes)}, "
        f"{_count(sum(elements.values()))} numbers in all files",
        "language model": f"{'RWKV-6' if spec.family == 'rwkv6' else 'RWKV-7'}, {spec.n_layer} layers x {spec.n_embd}, "
        f"{spec.n_head} heads of {spec.head_size}, FFN {spec.dim_ffn}, vocabulary {spec.vocab_size}, "
        f"{_count(language)} parameters",
        "LoRA ranks": ranks,
    }
    if spec.tower:
        lines["tower"] = _tower(spec)
        lines["projector"] = f"{spec.projector}, {spec.tower.width} -> {spec.n_embd}"
        lines["image tokens"] = str(spec.num_token_per_image)
        order = " / ".join(spec.scan) if spec.scan else "as text"
        lines["pictures"] = f"{spec.image_position} in the prompt; layers read them {order}"
    if spec.state_encoder:
        lines["state encoder"] = f"{spec.state_encoder.n_layer} layers, {spec.state_encoder.strategy}"
    if spec.compressor_layers:
        lines["compressor"] = f"{spec.compressor_layers} layers"
    state = sum(_slot_bytes(slot) for slot in language_model(spec).slots)
    lines["state"] = f"{state / 1e6:.2f} MB of float32 per session, twice with the buffers it is swapped with"
    lines["targets"] = "cpu"
    return lines


def costs(spec: ArchSpec) -> list[Cost]:
    """Return what each precision costs."""
    modules = graph_modules(spec)
    shapes = {g: {name: s.shape for name, s in module.sources().items()} for g, module in modules.items()}
    made = []
    for recipe in RECIPES.values():
        sizes = {graph: _graph_bytes(recipe, named) for graph, named in shapes.items()}
        table = _BYTES[recipe.embedding] * spec.vocab_size * spec.n_embd
        made.append(Cost(recipe.name, sizes.pop("step"), sum(sizes.values()), table))
    return made


def tables(checkpoint: Checkpoint, spec: ArchSpec) -> tuple[Table, Table]:
    """Return both as tables for a terminal."""
    from rich.table import Table

    what = Table(show_header=False)
    for name, value in facts(checkpoint, spec).items():
        what.add_row(name, value)
    price = Table(
        "precision", "read per token, MB", "picture encoder, MB", "embedding table (mapped), MB", "bundle, MB"
    )
    for cost in costs(spec):
        parts = (cost.per_token, cost.pictures, cost.table, cost.per_token + cost.pictures + cost.table)
        price.add_row(cost.precision, *(f"{part / 1e6:,.1f}" for part in parts))
    return what, price


def _graph_bytes(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> int:
    blocks = block_count(shapes)
    total = 0
    for name, shape in shapes.items():
        kind = recipe.rule(name, blocks).format if len(shape) == 2 else "float32"
        if kind in _BYTES:
            total += _BYTES[kind] * math.prod(shape)
        else:
            codes, scales, *zeros = FORMATS[kind].shapes(*shape)
            total += math.prod(codes) + 4 * math.prod(scales) + sum(map(math.prod, zeros))
    return total


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _slot_bytes(slot: SlotSpec) -> int:
    return 4 * math.prod(slot.resolve(1))


def _tower(spec: ArchSpec) -> str:
    assert spec.tower is not None
    tower = spec.tower
    parts = [
        f"{name} {vit.image_size} px, {vit.depth} x {vit.width}, {vit.heads} heads"
        for name, vit in (("DINOv2", tower.dino), ("SigLIP", tower.siglip), ("CLIP", tower.clip))
        if vit
    ]
    if tower.sam:
        parts.append(f"SAM {tower.sam.image_size} px, {len(tower.sam.windows)} x {tower.sam.width}")
    made = f"{tower.cells} cells of {tower.width}"
    tiles = " (the picture and its 2 x 2 tiles)" if tower.tiles > 1 else ""
    return f"{' + '.join(parts) or 'none: features come in'}{tiles} -> {made}"
