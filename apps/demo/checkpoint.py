"""Make the demo model's files from a training state.

    python -m apps.demo.checkpoint STATE.pt

writes `demo.safetensors` (float16, official names) and `demo.json` (what tensors cannot tell the exporter).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from apps.demo.model import DemoModel, Shape
from runtime.errors import CheckpointError, VisualRWKVError
from runtime.tokenizer import Tokenizer

OFFICIAL = ("rwkv.", "vit.", "proj.")
VOCABULARY = Path(__file__).with_name("vocab.txt")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a training state; raises `CheckpointError` if it cannot be read or holds something else."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} cannot be read: {reason}", wanted="a training state") from None
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise CheckpointError(f"{path} holds no tensors by name", wanted="a training state")
    return tensors


def shape_of(tensors: Mapping[str, Tensor]) -> Shape:
    """Return the sizes of a state's model."""
    if "rwkv.emb.weight" not in tensors:
        raise CheckpointError("the state has no language model", wanted="a state of the phase `joint`")
    rows, width = tensors["rwkv.emb.weight"].shape
    layers = {key.split(".")[2] for key in tensors if key.startswith("rwkv.blocks.")}
    return Shape(rows, width, len(layers))


def official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a checkpoint of this model holds, float16: `rwkv.*`, `vit.*` and `proj.*`.

    Raises:
        CheckpointError: tensors are missing or of a wrong shape, or not finite in float16.
    """
    wanted = {k: x.shape for k, x in DemoModel(shape_of(tensors)).state_dict().items() if k.startswith(OFFICIAL)}
    found = {k: x for k, x in tensors.items() if k.startswith(OFFICIAL)}
    wrong = sorted(k for k in {*wanted, *found} if k not in found or wanted.get(k) != found[k].shape)
    if wrong:
        raise CheckpointError(f"the state is not a whole demo model: {wrong[0]} is missing or of another shape")
    halves = {k: x.detach().half().contiguous() for k, x in found.items()}
    for name, half in halves.items():
        if not bool(half.isfinite().all()):
            raise CheckpointError(f"{name} is not finite in float16", hint="take an earlier state")
    return halves


def export_config(shape: Shape, vocabulary: Path = VOCABULARY) -> dict[str, Any]:
    """Return the content of `demo.json`; the image is the last row of the table."""
    return {
        "version": "7.01",
        "image_token_id": shape.rows - 1,
        "stop_token_id": Tokenizer(vocabulary).encode("\n\n")[0],
        "num_token_per_image": shape.grid**2,
        "padding": "none",
        "vocabulary": vocabulary.name,
        "vision": {
            "type": "siglip",
            "image_size": shape.image,
            "patch_size": shape.patch,
            "hidden_size": shape.vision,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "intermediate_size": shape.vision_inner,
        },
    }


def write_model(tensors: Mapping[str, Tensor], folder: Path) -> tuple[Path, Path]:
    """Write `demo.safetensors` and `demo.json` for the vocabulary of this folder; return both paths."""
    halves, shape = official(tensors), shape_of(tensors)
    words = len(VOCABULARY.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    if shape.rows != words + 2:
        raise CheckpointError(
            f"{shape.rows} embedding rows for a vocabulary of {words} tokens",
            wanted=f"{words + 2}: end of text, the tokens, the image",
            hint="bring the vocab.txt that the state was trained with",
        )
    weights, config = folder / "demo.safetensors", folder / "demo.json"
    save_file(halves, weights)
    weights.chmod(0o644)  # it is made readable for its owner only
    text = json.dumps(export_config(shape), indent=2, ensure_ascii=False)
    config.write_text(f"{text}\n", encoding="utf-8")
    return weights, config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m apps.demo.checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("state", type=Path, help="a training state of the phase `joint`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: this one)")
    args = parser.parse_args(argv)
    try:
        weights, config = write_model(read_state(args.state), args.out)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB, float16; {config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
