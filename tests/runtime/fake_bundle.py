"""A bundle for the fake backend: the real manifest, vocabulary and table, and graphs nobody reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.bundle import fingerprint, sha256_file
from runtime.spec import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Budget,
    EmbeddingSpec,
    FileSpec,
    GraphSpec,
    Manifest,
    PrecisionRule,
    PromptSpec,
    Provenance,
    SlotSpec,
    TensorSpec,
    TokenizerSpec,
    ViewSpec,
    VisionSpec,
)

WIDTH, LAYERS, TOKENS = 8, 2, 3
EMPTY_GRAPH = b"\x08\x09"  # an ONNX file of version 9 with nothing in it


def write_fake_bundle(folder: Path) -> Path:
    """Write a bundle with 256 one-byte tokens, "\\n\\n" (257) as the stop and 258 as the image; return its folder."""
    folder.mkdir(parents=True)
    entries = [f"{i + 1} {(chr(i) if i < 128 else bytes([i]))!r} 1" for i in range(256)]
    (folder / "vocab.txt").write_text("\n".join([*entries, f"257 {chr(10) * 2!r} 2"]) + "\n", encoding="utf-8")
    rows = 259
    np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32).tofile(folder / "embedding.bin")
    for name in ("step.onnx", "vision.onnx"):
        (folder / name).write_bytes(EMPTY_GRAPH)
    slots = tuple(
        SlotSpec(name, "float32", (LAYERS, "B", WIDTH), ("layer", "batch", "channel"), "carried")
        for name in ("att_shift", "ffn_shift")
    )
    states = tuple(TensorSpec(s.name, s.dtype, s.shape) for s in slots)
    step = GraphSpec(
        "step",
        "step.onnx",
        (TensorSpec("embeddings", "float32", ("B", "T", WIDTH)), *states),
        (
            TensorSpec("logits", "float32", ("B", rows)),
            *(TensorSpec(f"{s.name}_out", s.dtype, s.shape) for s in slots),
        ),
        (),
    )
    vision = GraphSpec(
        "vision",
        "vision.onnx",
        (TensorSpec("siglip", "float32", ("I", 3, 4, 4)),),
        (TensorSpec("embeddings", "float32", ("I", TOKENS, WIDTH)),),
        (),
    )
    view = ViewSpec("siglip", 4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "stretch", "pixels")
    files = {p.name: FileSpec(p.stat().st_size, sha256_file(p)) for p in sorted(folder.iterdir())}
    manifest = Manifest(
        SCHEMA_VERSION,
        folder.name,
        "fake",
        "cpu",
        "fp32",
        fingerprint(files),
        rows,
        WIDTH,
        slots,
        (step, vision),
        EmbeddingSpec("embedding.bin", "float32", rows, WIDTH),
        VisionSpec((view,), TOKENS, None),
        PromptSpec("User: ", "Assistant:", "\n\n", "first", "\n"),
        TokenizerSpec("vocab.txt", (257,), 258, 257, "none"),
        (PrecisionRule("*", "float32", 1, 4, "fake"),),
        Budget(1, 1, 1, 1),
        Provenance("tests", "nowhere", "0" * 64),
        files,
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return folder
