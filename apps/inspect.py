"""Say what a bundle or a checkpoint is, without running it: `python -m apps.inspect --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import memory
from runtime.bundle import Bundle
from runtime.cache import CACHE_BYTES
from runtime.errors import InputError, VisualRWKVError
from runtime.spec import Manifest
from runtime.undo import UNDO_BYTES

EXAMPLES = """\
examples:
  python -m apps.inspect build/demo-int8-cpu
      What a bundle is, what it was made from, and the memory it takes. Every file is compared with its digest.
  python -m apps.inspect build/demo-int8-cpu --sessions 4 --json
  python -m apps.inspect VisualRWKV-v7-0B1.pth
      What a checkpoint is, and what each precision would cost (`python -m export --inspect` takes more options).
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m apps.inspect",
        description="Say what a bundle or a checkpoint is, without running it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("path", type=Path, help="a bundle folder, or a .pth or .safetensors file")
    p.add_argument("--sessions", type=int, default=1, metavar="N", help="memory for so many (default: %(default)s)")
    p.add_argument("--no-verify", action="store_true", help="do not read every file to compare its digest")
    p.add_argument("--json", action="store_true", help="one JSON object, for programs (bundles only)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 1 for an error it explains."""
    args = parser().parse_args(argv)
    try:
        if args.path.is_file():
            if args.json:
                raise InputError(f"{args.path} is a file", wanted="a bundle folder with --json")
            from export.__main__ import main as export

            return export([str(args.path), "--inspect"])
        bundle = Bundle.open(args.path, verify=not args.no_verify)
        told = describe(bundle.manifest, args.sessions)
        print(json.dumps(told, indent=1, ensure_ascii=False) if args.json else text(told))
    except VisualRWKVError as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 1
    return 0


def describe(manifest: Manifest, sessions: int = 1) -> dict[str, Any]:
    """Return what a manifest says, sorted for people; "memory" is exact, in bytes (`runtime.memory.MemoryBudget`)."""
    needed = memory.budget(manifest, sessions=sessions, cache_bytes=CACHE_BYTES, undo_bytes=UNDO_BYTES)
    vision, size = manifest.vision, sum(file.bytes for file in manifest.files.values())
    return {
        "model": manifest.name,
        "family": manifest.family,
        "target": manifest.target,
        "precision": manifest.precision,
        "weights": _weights(manifest),
        "pictures": {view.name: f"{view.width} x {view.height} {view.fit}" for view in vision.views} if vision else {},
        "image tokens": vision.tokens if vision else 0,
        "pictures stand": manifest.prompt.image_position if vision else "nowhere",
        "padding": manifest.tokenizer.padding,
        "baked system prompt": manifest.warm.prompt if manifest.warm else "",
        "graphs": {graph.name: graph.file for graph in manifest.graphs},
        "state": {slot.name: "x".join(map(str, slot.shape)) for slot in manifest.slots},
        "files": {"count": len(manifest.files), "bytes": size},
        "made from": manifest.provenance.source,
        "source sha256": manifest.provenance.source_sha256,
        "exporter": manifest.provenance.exporter,
        "fingerprint": manifest.fingerprint,
        "memory": {**vars(needed), "per_session": needed.per_session, "total": needed.total, "table": str(needed)},
    }


def _weights(manifest: Manifest) -> dict[str, str]:
    """Sum the precision map up by format: how many tensors, how large, and why."""
    sums: dict[str, tuple[int, int, list[str]]] = {}
    for rule in manifest.precision_map:
        count, size, reasons = sums.get(rule.format, (0, 0, []))
        reasons += [rule.reason] if rule.reason not in reasons else []
        sums[rule.format] = count + rule.count, size + rule.bytes, reasons
    return {
        name: f"{count} tensors, {size / 1e6:.2f} MB ({'; '.join(reasons)})"
        for name, (count, size, reasons) in sums.items()
    }


def text(told: dict[str, Any]) -> str:
    """Return a description of `describe` for a terminal."""
    lines = []
    for name, value in told.items():
        if name == "memory":
            lines += ["", "memory, the interpreter and the engine's workspace aside:", value["table"]]
        elif isinstance(value, dict):
            entries = [f"{key}: {what}" for key, what in value.items()] or ["none"]
            lines += [f"{name if index == 0 else '':<22}{entry}" for index, entry in enumerate(entries)]
        elif value != "":
            lines.append(f"{name:<22}{value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
