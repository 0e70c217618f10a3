"""`python -m export.persona`: turn an official RWKV state-tuning file into a persona that sessions can begin with.

State tuning (RWKV-PEFT, "state-tuned" World models) trains nothing but the recurrent state a model starts from:
`blocks.i.att.time_state` [H, N, N] for every layer i, stored [value, key] (the `rwkv` package transposes it on load).
The same rule holds for RWKV-6 and RWKV-7 files. The persona holds the whole slot in the axes of the bundle, float32.
It fits every bundle of that model, whatever its precision.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.tensor_files import open_tensor_file
from runtime.bundle import Bundle, sha256_file
from runtime.errors import CheckpointError, VisualRWKVError
from runtime.guard import Watchdog
from runtime.model import PERSONA
from runtime.spec import Manifest, SlotSpec
from runtime.store import VERSION
from runtime.tensorfile import write_tensors

KEY = re.compile(r"(?:.*\.)?blocks\.(\d+)\.att\.time_state")
STORED = ("head", "value", "key")  # axes of one layer's tensor in the official files


def convert(source: Path, out: Path, bundle: Bundle) -> None:
    """Write `source`, an official .pth or .safetensors file, as a persona for a bundle's model.

    Raises:
        CheckpointError: the file cannot be read safely, holds no initial states, or those of another model.
        StateError: `out` cannot be written.
    """
    slot = _matrix_slot(bundle.manifest)
    array = _stacked(source, slot)
    about = {
        "format": PERSONA,
        "version": str(VERSION),
        "source": source.name,
        "source_sha256": sha256_file(source),
    }
    write_tensors(out, {slot.name: array}, about)


def _matrix_slot(manifest: Manifest) -> SlotSpec:
    """The slot that holds the recurrence's matrices, told by its axes."""
    for slot in manifest.slots:
        if slot.role == "carried" and set(STORED) < set(slot.axes):
            return slot
    raise CheckpointError("the bundle's model has no recurrent matrices", wanted=f"a slot with the axes {STORED}")


def _stacked(source: Path, slot: SlotSpec) -> np.ndarray:
    """Return all layers in the slot's axes and shape, for one sequence."""
    file = open_tensor_file(source)
    found = {int(match[1]): key for key in file.shapes if (match := KEY.fullmatch(key))}
    sizes = dict(zip(slot.axes, slot.resolve(1), strict=True))
    layers, shape = sizes["layer"], tuple(sizes[axis] for axis in STORED)
    if sorted(found) != list(range(layers)) or any(file.shapes[key] != shape for key in found.values()):
        shapes = sorted({file.shapes[key] for key in found.values()})
        raise CheckpointError(
            f"{source} has initial states for {len(found)} layers, of shapes {[list(s) for s in shapes]}",
            wanted=f"blocks.0 to blocks.{layers - 1}.att.time_state, each {list(shape)}",
            hint="take the state file that was trained with this very language model",
        )
    array = np.stack([file.tensor(found[i]).to(torch.float32).numpy() for i in range(layers)])[:, None]
    axes = ("layer", "batch", *STORED)
    array = np.ascontiguousarray(array.transpose([axes.index(axis) for axis in slot.axes]))
    if not np.abs(array).max() <= Watchdog().limit:  # false for NaN, too
        raise CheckpointError(f"{source} holds values that are not finite or beyond {Watchdog().limit:g}")
    return array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    command = argparse.ArgumentParser("python -m export.persona", description=(__doc__ or "").partition("\n")[0])
    command.add_argument("source", type=Path, help="state-tuning file, .pth or .safetensors")
    command.add_argument("out", type=Path, help="persona to write, for model.session(persona=...)")
    command.add_argument("--bundle", type=Path, required=True, help="a bundle of the model it was trained for")
    args = command.parse_args(arguments)
    try:
        convert(args.source, args.out, Bundle.open(args.bundle, verify=False))
    except VisualRWKVError as error:
        print(f"export.persona: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
