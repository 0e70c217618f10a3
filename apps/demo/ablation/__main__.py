"""Train and measure the ablation: `python -m apps.demo.ablation train`, then `measure`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from apps.demo.ablation.variants import VARIANTS
from runtime.errors import VisualRWKVError

EXAMPLES = """\
examples:
  python -m apps.demo.ablation train --pool build/demo/pool --out build/ablation --minutes 70
  python -m apps.demo.ablation measure build/ablation --scenes 400
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        "python -m apps.demo.ablation",
        description=__doc__.split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train all variants on the same questions")
    train.add_argument("--pool", type=Path, required=True, help="folder of drawn scenes; filled on first use")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the log")
    train.add_argument("--minutes", type=float, default=70, help="for all variants (default: %(default)s)")
    train.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    train.add_argument("--scenes", type=int, default=64, help="a step (default: %(default)s)")
    train.add_argument("--shards", type=int, default=14, help="of 4000 training scenes (default: %(default)s)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int, default=1)
    measure = commands.add_parser("measure", help="export all variants and compare their answers")
    measure.add_argument("folder", type=Path, help="the --out of `train`")
    measure.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    measure.add_argument("--scenes", type=int, default=400, help="held out (default: %(default)s)")
    measure.add_argument("--questions", type=int, default=4, help="a scene (default: %(default)s)")
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    if args.command == "train":
        import torch

        from apps.demo.ablation.train import Plan, train

        torch.set_num_threads(args.threads)
        plan = Plan(args.minutes, scenes=args.scenes, shards=args.shards, seed=args.seed)
        train(args.variants, args.pool, args.out, plan)
        return 0
    from apps.demo.ablation import measure

    try:
        found = measure.measure(args.folder, args.variants, measure.questions(args.scenes, args.questions))
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(measure.table(found))
    if args.json:
        measure.save({"machine": machine(), "training": measure.training_of(args.folder), **found}, args.json)
    return 0


def machine() -> dict[str, str]:
    """The machine and the versions that figures are from."""
    names = ("torch", "numpy", "onnxruntime")
    return {"machine": platform.machine(), "python": platform.python_version(), **{n: version(n) for n in names}}


if __name__ == "__main__":
    sys.exit(main())
