"""Step graphs of a real size through TensorRT-RTX, without a GPU: every plugin taken, and no weight stored as floats.

python -m benchmarks.rtx_step                               RWKV-7 1.5B's shapes: 24 x 2048; half an hour of CPU
python -m benchmarks.rtx_step --layers 2 --vocabulary 512   two of those layers; a few minutes
python -m benchmarks.rtx_step --precision int8 --arch 89 --json step.json

For every precision it writes the exporter's own graph with random weights, runs it on onnxruntime beside the float32
graph, lets TensorRT-RTX parse and compile it for each architecture, and looks into the engine: how many layers became
plugins, which constants it holds, and whether a matrix of codes is turned into floats in the device's memory.
Needs the plugins (`python -m plugins_trt build`, or --library) and TensorRT-RTX; leaves nothing behind but --json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import rtx_graph, rtx_program
from runtime import tensorrt
from runtime.backends.ort import OrtBackend
from runtime.errors import TargetUnavailable
from runtime.spec import GraphSpec

# Layers that only a function body makes: had one of ours become no plugin, they would be here.
FALLBACK = (
    "CONDITION",
    "LOOP",
    "ITERATOR",
    "RECURRENCE",
    "TRIP_LIMIT",
    "LOOP_OUTPUT",
    "CONDITIONAL_INPUT",
    "CUMULATIVE",
)
LENGTH = 33  # positions compared: two chunks of the recurrence's body and one more


@dataclass(frozen=True)
class Row:
    """One engine, and what was found in it."""

    precision: str
    architecture: str
    plugins: int  # layers that became plugins
    wanted: int  # nodes of ours in the file
    fallback: int  # layers of kinds that only function bodies make
    codes: int  # matrices of codes in the file
    codes_kept: int  # of them, constants of the engine in the same type
    widened: int  # matrices of codes that have a copy in floats, stored or computed into the device's memory
    weights_mb: float  # of the file
    engine_mb: float
    scratch_mb: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether every operator of ours is a plugin and every matrix of codes stays one."""
        return self.plugins == self.wanted and not self.fallback and self.codes_kept == self.codes and not self.widened


def examine(found: tensorrt.TensorRT, graph: GraphSpec, path: Path, library: Path, architecture: str) -> Row:
    """Compile one file for one architecture and look into the engine."""
    kinds = tensorrt.layer_kinds(found, path, library)
    began = time.monotonic()
    engine = tensorrt.build(found, graph, path, capability=architecture, library=library)
    seconds = time.monotonic() - began
    declared, matrices = rtx_program.tensors(engine), rtx_graph.matrices(path)
    codes = matrices["int8"] + matrices["int4"]
    floats = rtx_program.constants(declared, "half") | rtx_program.constants(declared, "float")
    stored = sum(max(0, floats[count] - matrices["float"][count]) for count in codes)
    kept = {kind: rtx_program.constants(declared, kind) for kind in ("int8", "int4")}
    return Row(
        precision="",
        architecture=architecture,
        plugins=kinds["PLUGIN_V3"],
        wanted=sum(rtx_graph.our_nodes(path).values()),
        fallback=sum(kinds[kind] for kind in FALLBACK),
        codes=codes.total(),
        codes_kept=sum(min(kept[kind][count], n) for kind in kept for count, n in matrices[kind].items()),
        widened=stored + rtx_program.widened(declared, codes).total(),
        weights_mb=path.with_name(f"{path.name}.data").stat().st_size / 1e6,
        engine_mb=len(engine) / 1e6,
        scratch_mb=rtx_program.scratch_bytes(engine) / 1e6,
        seconds=seconds,
    )


def outputs(graph: GraphSpec, path: Path, threads: int = 1) -> list[np.ndarray]:
    """Return logits and state after `LENGTH` positions and one more, on onnxruntime; weights stay in the file."""
    backend = OrtBackend(threads, keep_mapped=(graph.name,))
    try:
        runner = backend.load(graph, path)
        rng = np.random.default_rng(3)
        state: dict[str, np.ndarray] = {}
        for length in (LENGTH, 1):
            sizes = {"B": 1, "T": length}
            inputs = {spec.name: backend.allocate(spec.resolve(**sizes), spec.dtype) for spec in graph.inputs}
            made = {spec.name: backend.allocate(spec.resolve(**sizes), spec.dtype) for spec in graph.outputs}
            inputs["embeddings"].write(rng.standard_normal(inputs["embeddings"].shape).astype(np.float32))
            for name, array in state.items():
                inputs[name.removesuffix("_out")].write(array)
            runner.run(inputs, made)
            state = {name: buffer.read().copy() for name, buffer in made.items() if name != "logits"}
        return [made["logits"].read().copy(), *state.values()]
    finally:
        backend.close()


def difference(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Return the largest relative error of any output (root of the mean square)."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))


def table(rows: Sequence[Row], errors: dict[str, float]) -> str:
    """Return the report as Markdown."""
    lines = [
        "| precision | sm | plugins (wanted) | fallback | codes kept (of) | widened | file MB | engine MB | scratch MB "
        "| build s | onnxruntime against float32 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = f"{errors[row.precision]:.1e}" if row.precision in errors else ""
        lines.append(
            f"| {row.precision} | {row.architecture} | {row.plugins} ({row.wanted}) | {row.fallback} "
            f"| {row.codes_kept} ({row.codes}) | {row.widened} | {row.weights_mb:.1f} | {row.engine_mb:.1f} "
            f"| {row.scratch_mb:.0f} | {row.seconds:.0f} | {error} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    command = argparse.ArgumentParser(
        "python -m benchmarks.rtx_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--layers", type=int, default=24)
    command.add_argument("--width", type=int, default=2048)
    command.add_argument("--vocabulary", type=int, default=65536)
    command.add_argument("--precision", nargs="+", default=["fp16", "int8", "int4"], choices=("fp16", "int8", "int4"))
    command.add_argument("--arch", nargs="+", default=["86", "89", "120"])
    command.add_argument("--library", type=Path, help="the plugins (default: those built on this machine)")
    command.add_argument("--scratch", type=Path, help="where graphs are written while it runs (1.5B: 10 GB)")
    command.add_argument(
        "--graph", type=Path, metavar="FILE", help="the float32 graph, kept there for the next run of the same sizes"
    )
    command.add_argument("--no-compare", action="store_true", help="do not run the graphs on onnxruntime")
    command.add_argument("--json", type=Path)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where a check failed or something is missing."""
    args = parser().parse_args(argv)
    try:
        found, library = tensorrt.find("tensorrt_rtx"), args.library or _library()
    except TargetUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    spec = rtx_graph.text_model(args.layers, args.width, args.vocabulary)
    rows: list[Row] = []
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        _say("writing the float32 graph")
        source = args.graph or Path(scratch) / "fp32.onnx"
        graph = rtx_graph.write_step(spec, source)
        wanted = [] if args.no_compare else outputs(graph, source)
        for precision in args.precision:
            _say(f"{precision}: writing")
            path = Path(scratch) / f"{precision}.onnx"
            rtx_graph.rewrite_step(source, path, precision, "rtx")
            if wanted:
                _say(f"{precision}: onnxruntime")
                errors[precision] = difference(outputs(graph, path), wanted)
            for architecture in args.arch:
                _say(f"{precision}: TensorRT-RTX for sm_{architecture}")
                row = examine(found, graph, path, library, architecture)
                rows.append(Row(**{**asdict(row), "precision": precision}))
                _say(table(rows[-1:], errors).splitlines()[-1])
            path.unlink()
            path.with_name(f"{path.name}.data").unlink()
    print(f"{found.name}, RWKV-7 {args.layers} x {args.width}, {args.vocabulary} tokens, random weights\n")
    print(table(rows, errors))
    if args.json:
        report = {"tensorrt": found.name, "rows": [asdict(row) for row in rows], "errors": errors}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.good for row in rows) else 1


def _library() -> Path:
    import plugins_trt

    try:
        return plugins_trt.library()
    except plugins_trt.PluginError as error:
        raise TargetUnavailable(f"the plugins are not built: {error}", hint="python -m plugins_trt build") from error


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
