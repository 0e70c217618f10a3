"""What the CUDA compiler says about every kernel: registers, spills, shared memory, for each architecture."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from plugins_trt.builder import KERNELS, ROOT
from plugins_trt.errors import PluginError
from plugins_trt.toolchain import find_nvcc

_TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture."""

    kernel: str  # "wkv7_prepare<float16, float32>"
    architecture: int
    registers: int
    spilled: int  # bytes stored to and loaded from local memory
    stack: int  # bytes


def measure(architectures: Sequence[int], *, nvcc: str | Path | None = None, jobs: int = 2) -> list[Usage]:
    """Compile every kernel for every architecture and return what each uses.

    Raises:
        PluginError: no compiler, an architecture it does not know, or a kernel that does not compile.
    """
    found = find_nvcc(nvcc)
    unknown = sorted(set(architectures) - set(found.architectures))
    if unknown:
        raise PluginError(
            f"{found.path} does not know sm_{', sm_'.join(map(str, unknown))}",
            wanted=f"of {', '.join(map(str, found.architectures))}",
            hint="a newer CUDA, or other architectures with --arch",
        )
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        work = [(name, a) for name in KERNELS for a in architectures]
        texts = pool.map(lambda one: _compile(str(found.path), one[0], one[1], Path(folder)), work)
        return [use for (_, a), text in zip(work, texts, strict=True) for use in parse(text, a)]


def parse(text: str, architecture: int) -> Iterator[Usage]:
    """Yield what ptxas -v reports for one architecture."""
    entries = re.split(r"Compiling entry function '", text)[1:]
    for entry in entries:
        name = entry.split("'", 1)[0]
        registers = re.search(r"Used (\d+) registers", entry)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        if registers is None or frame is None:
            raise PluginError(f"ptxas said nothing of {name}", hint="its output was:\n" + entry[:500])
        yield Usage(readable(name), architecture, int(registers[1]), int(frame[2]) + int(frame[3]), int(frame[1]))


def readable(symbol: str) -> str:
    """Return a kernel's name and template arguments from its mangled symbol; shorter than what c++filt gives."""
    found = re.match(r"_ZN5vrwkv(\d+)", symbol)
    if found is None:
        return symbol
    start = found.end()
    name = symbol[start : start + int(found[1])]
    rest = symbol[start + int(found[1]) :]
    arguments, repeated = [], None
    scan = re.compile(r"13__nv_bfloat16|6__half|Lb[01]E|NS_6Codes8ILb[01]EEE|f|S\d*_")
    position = 1 if rest.startswith("I") else len(rest)
    while (piece := scan.match(rest, position)) is not None:
        text = piece[0]
        if text in _TYPES:
            repeated = _TYPES[text]
            arguments.append(repeated)
        elif text.startswith("Lb"):
            arguments.append("grouped" if "matmul" in name and text[2] == "1" else "" if "matmul" in name else
                             "delta" if text[2] == "1" else "")  # fmt: skip
        elif text.startswith("NS_"):
            arguments.append("groups of 32" if "1" in text[-4] else "")
        else:
            arguments.append(repeated or "?")
        position = piece.end()
    return f"{name}<{', '.join(a for a in arguments if a)}>"


def table(uses: Sequence[Usage]) -> str:
    """Return a Markdown table: a row per kernel, a column per architecture, registers and what is spilled."""
    architectures = sorted({use.architecture for use in uses})
    cells = {(use.kernel, use.architecture): use for use in uses}
    lines = [
        "| kernel | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|",
    ]
    for kernel in dict.fromkeys(use.kernel for use in uses):
        row = []
        for a in architectures:
            use = cells[kernel, a]
            row.append(f"{use.registers}" + (f" (spills {use.spilled} B)" if use.spilled else ""))
        lines.append(f"| {kernel} | " + " | ".join(row) + " |")
    spilled = sum(use.spilled > 0 for use in uses)
    return "\n".join([*lines, "", f"Registers per thread; {spilled} of {len(uses)} kernels spill."])


def _compile(nvcc: str, name: str, architecture: int, folder: Path) -> str:
    out = folder / f"{name.replace('/', '_')}.{architecture}.cubin"
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o", str(out),
               str(ROOT / name)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{name} does not compile for sm_{architecture}:\n{done.stderr[:3000]}")
    return done.stderr
