"""The random-weight models of the comparisons, made once in a work folder: checkpoint, our bundles, .gguf files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.process import REPOSITORY
from runtime.errors import ExportError
from runtime.spec import MANIFEST_FILE

WORK = Path("build/peers/models")


def checkpoint(size: str, work: Path = WORK) -> Path:
    """Return a random-weight RWKV-7 language model of a released size, as .safetensors."""
    path = work / f"text-{size}.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.safetensors")
        _run([sys.executable, "-m", "benchmarks.random_checkpoint", size, str(part), "--text"])
        part.replace(path)
    return path


def bundle(size: str, precision: str, work: Path = WORK) -> Path:
    """Return our bundle of it: "fp32", "int8" or "int4"."""
    path = work / f"text-{size}-{precision}"
    if not (path / MANIFEST_FILE).is_file():
        source = checkpoint(size, work)
        _run([sys.executable, "-m", "export", str(source), f"--{precision}", "--overwrite", "--out", str(path)])
    return path


def gguf(size: str, kind: str, python: Path, work: Path = WORK) -> Path:
    """Return llama.cpp's file of the same weights: "f16", "q8_0" or "q4_0"; `python` is of its environment."""
    path = work / f"text-{size}-{kind}.gguf"
    if not path.exists():
        _run([str(python), "-m", "benchmarks.peers.gguf_rwkv7", str(checkpoint(size, work)), str(path), kind])
    return path


def _run(command: list[str]) -> None:
    print(" ".join(command), file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if subprocess.run(command, check=False, stdout=sys.stderr, env=environment).returncode:
        raise ExportError(f"{' '.join(command)} failed", hint="run it by itself to see why")
