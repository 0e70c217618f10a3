"""How fast a bundle is on this machine, and how close to what its memory allows: `python -m apps.bench --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apps.bench.measure import Plan, measure
from apps.bench.parity import check_apart
from apps.bench.report import compare, plot, read_earlier, table
from apps.bundles import DEFAULT_BUNDLE, find_bundle
from runtime.errors import ConfigError, InputError, ParityError, VisualRWKVError

EXAMPLES = """\
examples:
  python -m apps.bench build/demo-int8-cpu
      First token of a fresh frame by stage, decoding at three contexts, memory, the limit that memory bandwidth sets.
  python -m apps.bench build/demo-int8-cpu --threads 2 --json before.json
  python -m apps.bench build/demo-int8-cpu --threads 2 --compare before.json
      Before and after a change: ratios.
  python -m apps.bench build/my-model --contexts 0,1024,24576 --plot speed.png

The model is checked first; without green parity no figure is printed. Everything is measured in turns, and the table
holds medians and quartiles over rounds: close other programs, and compare ratios rather than figures of different days.
The last line is JSON."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m apps.bench",
        description="Measure a bundle on this machine: first token by stage, decoding, memory, energy.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE, help="default: %(default)s")
    p.add_argument("--threads", type=int, metavar="N", help="compute threads (default: one core stays free)")
    p.add_argument("--device", default="auto", metavar="D", help="what runs the graphs (default: %(default)s)")
    p.add_argument(
        "--contexts",
        type=_contexts,
        default=Plan.contexts,
        metavar="N,N,...",
        help="decode after so many tokens (default: 0,1024,4096)",
    )
    p.add_argument("--rounds", type=int, default=Plan.rounds, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--tokens", type=int, default=Plan.tokens, metavar="N", help="decoded per context and round (%(default)s)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the measurement")
    p.add_argument("--compare", type=Path, metavar="FILE", help="print ratios against an earlier measurement")
    p.add_argument("--plot", type=Path, metavar="PNG", help="draw it (needs matplotlib)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 when the model is wrong or cannot run, 2 for a wrong command."""
    args = parser().parse_args(argv)
    try:
        print(json.dumps(_run(args)))
        return 0
    except KeyboardInterrupt:
        print("\nstopped: nothing was written", file=sys.stderr)
        return 130
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _run(args: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(contexts=args.contexts, rounds=args.rounds, tokens=args.tokens)
    earlier = read_earlier(args.compare) if args.compare else None
    bundle = find_bundle(args.bundle)
    for target in (args.json, args.plot):
        if target is not None and not target.parent.is_dir():
            raise InputError(f"there is no folder {target.parent} to write {target.name} into")
    if args.plot and find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib", hint="pip install matplotlib")
    _tell("checking that the model is right")
    parity = check_apart(bundle, args.device, args.threads)
    if not parity["green"]:
        rows = [f"{row['what']}: error {row['error']:.1e}, limit {row['limit']:.0e}" for row in parity["rows"]]
        raise ParityError(
            f"{bundle} computes something wrong on {parity['backend']}, so its speed says nothing:\n    "
            + "\n    ".join(rows),
            hint="python -m export again; if it stays, --device onnxruntime, and report it",
        )
    found = {**measure(bundle, plan, device=args.device, threads=args.threads, report=_tell), "parity": parity["rows"]}
    _tell("")
    print(table(found))
    for row in parity["rows"]:
        print(f"parity, {row['what']}: error {row['error']:.1e}, limit {row['limit']:.0e}")
    if earlier is not None:
        text, found["ratios"] = compare(found, earlier)
        print("", text, "", sep="\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(found, args.plot)
    return found


def _tell(text: str) -> None:
    """Say what is going on, on one line that is overwritten, where a person watches."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="" if text else "\r", file=sys.stderr, flush=True)


def _contexts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,1024,4096") from None


if __name__ == "__main__":
    sys.exit(main())
