"""Where the rounding errors of a quantised language model come from: weights or activations, and which layers.

    python -m benchmarks.quant_error                           # random-weight RWKV-7 of 2, 12 and 24 layers, 256 wide
    python -m benchmarks.quant_error model.pth [--config JSON] # any checkpoint that `python -m export` takes

Relative error of the logits, in percent, mean over seeded random prompts. Weights are rounded by `quant.weights`,
activations as onnxruntime's MatMulNBits rounds them (8 bits per token and block; the errors that
`python -m export` finds through the kernel itself are the same to 0.1 points). Prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import random_checkpoint
from export.arch.language import LanguageModel, embedding_table
from export.checkpoint import Checkpoint
from export.config import ExportConfig
from export.infer import infer
from export.models import language_model
from export.weights import materialise
from quant.recipe import PATHS, RECIPES, Recipe, Rule, block_count
from quant.weights import FORMATS, dequantize, quantize

PROMPTS, TOKENS, COMPARED = 4, 48, 16


def flat(recipe: Recipe, fmt: str) -> Recipe:
    """The recipe's own matrices, all in one format."""
    rules = (Rule(rule.pattern, fmt, "") for rule in recipe.rules if rule not in PATHS)
    return Recipe(f"all {fmt}", (*rules, *PATHS), "float32")


def mixed(first: str, share: float, body: str) -> Recipe:
    """The first `share` of the layers in one format, the others in another, the head in int8-b32."""
    names = {rule.pattern for rule in RECIPES["int4"].rules if rule not in PATHS}
    head = Rule("head.head", "int8-b32", "")
    early = tuple(Rule(name, first, "", share) for name in sorted(names - {head.pattern}))
    late = tuple(Rule(rule.pattern, body, "") for rule in early)
    return Recipe(f"{Fraction(share).limit_denominator(64)} {first}, {body}", (*early, *late, head, *PATHS), "float32")


RECIPES_COMPARED = [flat(RECIPES["int8"], f"int8-b{block}") for block in (16, 32, 64)]
RECIPES_COMPARED += [mixed("float16", share, "int8-b32") for share in (1 / 32, 1 / 8, 1 / 4)]
RECIPES_COMPARED += [mixed("float16", 1 / 32, "int8-b16"), RECIPES["int8"], flat(RECIPES["int4"], "int4-b32")]
RECIPES_COMPARED += [mixed("int8-b32", share, "int4-b32") for share in (1 / 4, 1 / 2)]
RECIPES_COMPARED += [mixed("int8-b32", 1 / 2, "int4-b16"), RECIPES["int4"]]


def stored(model: LanguageModel, recipe: Recipe) -> float:
    """Return the megabytes of the model's weights as a recipe stores them."""
    parameters = dict(model.named_parameters())
    blocks, total = block_count(parameters), 0
    for name, weight in parameters.items():
        kept = recipe.rule(name, blocks).format if weight.dim() == 2 else "float32"
        if kept in FORMATS:
            parts = FORMATS[kept].shapes(*weight.shape)
            total += sum(math.prod(part) * (4 if i == 1 else 1) for i, part in enumerate(parts))
        else:
            total += weight.numel() * np.dtype(kept).itemsize
    return round(total / 1e6, 2)


class Rounded:
    """Stands for a weight in `x @ weight`, and rounds x first."""

    def __init__(self, weight: torch.Tensor, block: int) -> None:
        self.weight, self.block = weight, block

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> torch.Tensor:
        x, self = args
        return round_activations(x, self.block) @ self.weight


def round_activations(x: torch.Tensor, block: int) -> torch.Tensor:
    """Round to 8 bits per block of the last axis; 0: leave as it is."""
    if block == 0:
        return x
    grouped = F.pad(x, (0, -x.shape[-1] % block)).reshape(*x.shape[:-1], -1, block)
    scale = (grouped.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (torch.round(grouped / scale) * scale).flatten(-2)[..., : x.shape[-1]]


@contextmanager
def rounded(model: LanguageModel, recipe: Recipe, *, weights: bool, activations: bool) -> Iterator[None]:
    """Round the matrices a recipe names, and what they are multiplied with, inside the block."""
    parameters = dict(model.named_parameters())
    blocks, taken = block_count(parameters), []
    for name, weight in parameters.items():
        kept = recipe.rule(name, blocks).format if weight.dim() == 2 else "float32"
        fmt = FORMATS.get(kept)
        if kept != "float32":
            array = weight.detach().numpy()
            if weights and fmt:
                array = dequantize(quantize(array, fmt), len(array), fmt)
            elif weights:
                array = array.astype(kept).astype(np.float32)
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            delattr(module, leaf)
            setattr(module, leaf, Rounded(torch.from_numpy(array), fmt.block if activations and fmt else 0))
            taken.append((module, leaf, weight))
    yield
    for module, leaf, weight in taken:
        delattr(module, leaf)
        module.register_parameter(leaf, weight)


@torch.inference_mode()
def measure(path: Path, config: ExportConfig) -> dict[str, dict[str, float]]:
    """Return by recipe the errors made by weights, by activations and by both, in percent, and the MB it stores."""
    with Checkpoint.open(path, ()) as checkpoint:
        spec = infer(checkpoint, config)
        model = language_model(spec)
        materialise(model, checkpoint)
        table = torch.cat(list(embedding_table(checkpoint, spec)))
    prompts = [table[torch.randint(1, len(table) - 1, (TOKENS,))][None] for _ in range(PROMPTS)]

    def logits() -> list[torch.Tensor]:
        states = [torch.zeros(slot.resolve(1)) for slot in model.slots]
        return [model.head(model.hidden(prompt, *states)[0][0, -COMPARED:]) for prompt in prompts]

    wanted = logits()
    errors: dict[str, dict[str, float]] = {}
    for recipe in RECIPES_COMPARED:
        errors[recipe.name] = {"MB": stored(model, recipe)}
        for kind in ("weights", "activations", "both"):
            with rounded(model, recipe, weights=kind != "activations", activations=kind != "weights"):
                pairs = zip(logits(), wanted, strict=True)
                each = [float((found - exact).square().mean() / exact.square().mean()) ** 0.5 for found, exact in pairs]
            errors[recipe.name][kind] = round(100 * float(np.mean(each)), 2)
    return errors


def random_model(layers: int) -> Callable[[Path], Path]:
    """Return a function that writes a random-weight model of so many layers into a folder."""

    def write(folder: Path) -> Path:
        random_checkpoint.VOCABULARY = 2048
        random_checkpoint.SIZES["small"] = random_checkpoint.Size(layers, 256, (32, 32, 16, 32))
        random_checkpoint.write(folder / f"{layers} layers.pth", "small", text_only=True)
        return folder / f"{layers} layers.pth"

    return write


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [args.checkpoint] if args.checkpoint else [random_model(n)(Path(folder)) for n in (2, 12, 24)]
        for path in paths:
            config = ExportConfig.load(args.config, path.name) if args.config else ExportConfig()
            results[path.stem] = measure(path, config)
            for recipe, errors in results[path.stem].items():
                figures = (f"{kind} {error:5.2f} %" for kind, error in errors.items() if kind != "MB")
                print(f"{path.stem:12} {recipe:26}", *figures, f"{errors['MB']:7.2f} MB", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
