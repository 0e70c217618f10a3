"""`python -m quant`: what a bundle lost to smaller weights, and making smaller bundles without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import TargetUnavailable, VisualRWKVError

EPILOG = """\
examples:
  python -m quant report build/demo-int8-cpu        formats, sizes, bytes read per token, the figures of the export
  python -m quant report build/demo-int4-cpu --against build/demo-fp32-cpu --drift 100000 --plot drift.png
  python -m quant report build/demo-int4-cpu --against build/demo-fp32-cpu --task build/demo-task --weights-only
  python -m quant apply build/demo-fp32-cpu --int4 --calibrate photos/ --out build/demo-int4-mine
  python -m quant try build/demo-fp32-cpu --images photos/ --loss 0.03 --json recipe.json
  python -m quant apply build/demo-fp32-cpu --recipe recipe.json --calibrate photos/ --out build/demo-small

A float bundle is one of `python -m export --fp32`. Pictures are a folder, a video file or a camera's number; a file
questions.txt in the folder holds what is asked about them, a line each. A task is a file of questions, pictures and
right answers (`quant/task.py`; `python -m apps.demo.task FOLDER` writes one). What a bundle may lose: quant/limits.py.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        "python -m quant", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = command.add_subparsers(dest="verb", required=True, metavar="{report,apply,try}")
    report = verbs.add_parser("report", help="what a quantised bundle is made of and what it loses")
    report.add_argument("bundle", type=Path)
    report.add_argument("--against", type=Path, metavar="FLOAT", help="its float bundle, for errors measured now")
    report.add_argument("--drift", type=int, default=1000, metavar="TOKENS", help="of one conversation (default: 1000)")
    report.add_argument("--plot", type=Path, metavar="PNG", help="draw the drift (needs matplotlib)")
    report.add_argument("--task", type=Path, metavar="FILE", help="questions with right answers")
    report.add_argument("--weights-only", action="store_true", help="also without the kernel's rounding of activations")
    report.add_argument("--all", action="store_true", help="list every matrix, not the 20 most sensitive")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    apply = verbs.add_parser("apply", help="float bundle -> quantised bundle")
    apply.add_argument("bundle", type=Path)
    formats = apply.add_mutually_exclusive_group(required=True)
    formats.add_argument("--int8", dest="precision", action="store_const", const="int8")
    formats.add_argument("--int4", dest="precision", action="store_const", const="int4")
    formats.add_argument("--recipe", type=Path, metavar="JSON", help="formats by name, as `try --json` writes them")
    apply.add_argument("--out", type=Path, required=True, help="bundle folder")
    apply.add_argument("--overwrite", action="store_true", help="replace the bundle in --out")
    apply.add_argument("--calibrate", metavar="SOURCE", help="pictures to fit the rounding to")
    apply.add_argument("--int8-vision", action="store_true", help="8-bit weights of the vision tower, too, for size")
    apply.add_argument("--drift", type=int, metavar="TOKENS", help="compare so far into a conversation (0: not at all)")
    apply.add_argument("--task", type=Path, metavar="FILE", help="questions with right answers, for the gate")
    search = verbs.add_parser("try", help="find the smallest formats within a loss")
    search.add_argument("bundle", type=Path, help="a float bundle")
    search.add_argument("--loss", type=float, default=0.05, help="relative error of the logits (default: 0.05)")
    search.add_argument("--json", type=Path, metavar="FILE", help="write the recipe")
    for verb in (report, search):
        verb.add_argument("--images", metavar="SOURCE", help="pictures to talk about (default: drawn ones)")
    for verb in (report, apply, search):
        verb.add_argument("--threads", type=int, metavar="N", help="compute threads (default: all cores but one)")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error it explains, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        try:  # here, not above: a device has no onnx
            from quant import commands
        except ImportError as error:
            raise TargetUnavailable(
                f"the packages that read graphs are not installed: {error}",
                hint='pip install "visualrwkv-edge[export]"',
            ) from error
        {"report": commands.report, "apply": commands.apply, "try": commands.search}[args.verb](args)
    except VisualRWKVError as error:
        print(f"quant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quant: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
