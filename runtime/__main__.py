"""Commands for the machine a bundle runs on: compile its TensorRT engines before the first answer waits for them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from runtime.bundle import Bundle
from runtime.errors import ConfigError, VisualRWKVError
from runtime.tensorrt import TARGETS

EXAMPLES = """\
examples:
  python -m runtime build build/demo-int8-jetson
  python -m runtime build build/demo-int8-jetson --again

Engines are kept in the user's cache ($VRWKV_CACHE or ~/.cache) and built again by themselves when the model, the GPU,
TensorRT or our plugins change.
"""


def build(path: Path, again: bool) -> None:
    """Build the engines of a bundle, and say what it takes."""
    from runtime.backends.trt import TrtBackend

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.target not in TARGETS:
        raise ConfigError(
            f"{path} was exported for target {manifest.target!r}, which has nothing to build",
            wanted=f"one of {', '.join(TARGETS)}",
            hint="python -m export --target jetson",
        )
    backend = TrtBackend(progress=_show)
    free, total = backend.memory()
    need = needed_bytes(bundle)
    print(f"{backend.name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free, building takes about {need / 1e9:.1f} GB")
    if need > free:
        print("  that may not be enough: close other programs, or choose a smaller model or --int4", file=sys.stderr)
    try:
        for graph in manifest.graphs:
            start = time.monotonic()
            file = backend.engine(graph, bundle.file(graph.file), again=again)
            _show("", 0, 0)
            print(f"{graph.name}: {file} ({file.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s)")
    finally:
        backend.close()


def needed_bytes(bundle: Bundle) -> int:
    """Estimate what building the largest engine takes: its weights three times over, and half a gigabyte.

    The file's weights, the compiler's copy and the engine it writes; the rest is workspace. Nobody has measured it.
    """
    budget = bundle.manifest.budget
    return 3 * max(budget.weights, budget.vision) + (1 << 29)


def _show(phase: str, step: int, steps: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{phase} {step}/{steps}" if phase else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        "python -m runtime", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="compile a bundle's TensorRT engines for this machine's GPU")
    command.add_argument("bundle", type=Path)
    command.add_argument("--again", action="store_true", help="even if the cache has them")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    try:
        build(args.bundle, args.again)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-built is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
