"""Reading .safetensors into NumPy float32, bfloat16 included, with NumPy alone: for environments without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a float file, as float32; the file is mapped, and each array is a copy when asked for."""
    return dict(iterate_tensors(path))


def iterate_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and float32 array of every tensor, one at a time. Raises `ValueError` for another dtype."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        raw = data[start:stop]
        if entry["dtype"] == "BF16":
            array = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in ("F32", "F16"):
            array = raw.view("<f4" if entry["dtype"] == "F32" else "<f2").astype(np.float32)
        else:
            raise ValueError(f"{path}: {name} is {entry['dtype']}")
        yield name, array.reshape(entry["shape"])
