"""`python -m export`: turn an official VisualRWKV checkpoint into a verified bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import TargetUnavailable, VisualRWKVError

if TYPE_CHECKING:
    from rich.console import Console

    from export.build import Report
    from export.config import ExportConfig

DEMO = Path(__file__).resolve().parent.parent / "apps" / "demo"

EPILOG = """\
examples:
  python -m export --int8                           the embedded demo model -> build/demo-int8-cpu
  python -m export VisualRWKV-v7-0B1.pth --int8     an official checkpoint, everything inferred
  python -m export model.pth --vision siglip.safetensors
                                                    vision tower in a file of its own
  python -m export small.pth --config small.json    what tensors cannot tell: head counts, tokens per image
  python -m export model.pth --int4 --calibrate photos/
                                                    fit the rounding to your own pictures (or a video, or camera 0)
  python -m export --inspect VisualRWKV-v6-1B6.pth  what a file is and what each precision costs; exports nothing

The bundle is checked against torch before it appears: image embeddings, logits, state and greedy tokens. int8 and int4
are also compared with their float model on prompts and far into a conversation; quant/limits.py says what may be lost.
The recurrent state, decays, norms and LoRA paths stay float32 in every precision.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        "python -m export",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("checkpoint", nargs="?", type=Path, help=".pth or .safetensors (default: the demo model)")
    precision = command.add_mutually_exclusive_group()
    for name, text in (
        ("fp32", "float32 weights (default)"),
        ("fp16", "float16 weights on disk, computed in float32 on a CPU"),
        ("int8", "8-bit weights of the language model, its first twelfth in float32"),
        ("int4", "4-bit weights of the language model, its first three eighths and its head in 8 bits"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    command.add_argument(
        "--target",
        default="cpu",
        help="where the bundle will run: cpu (default), cuda (onnxruntime), jetson (or jetson-orin, jetson-thor), "
        "tensorrt, or rtx, whose engines are built here without a GPU",
    )
    command.add_argument(
        "--arch",
        type=lambda text: tuple(text.split(",")),
        default=("86", "89", "120"),
        metavar="86,89,120",
        help="GPU architectures that --target rtx builds engines for (default: %(metavar)s)",
    )
    command.add_argument("--out", type=Path, help="bundle folder (default: build/NAME-PRECISION-TARGET)")
    command.add_argument("--overwrite", action="store_true", help="replace the bundle in --out")
    command.add_argument(
        "--config", type=Path, help="JSON with what tensors cannot tell (see docs in export/config.py)"
    )
    command.add_argument(
        "--vision", type=Path, nargs="+", default=[], metavar="FILE", help="vision towers in own files"
    )
    command.add_argument(
        "--scan",
        choices=("unidirectional", "bidirectional", "multidirectional"),
        help="how the layers of a v6 model read pictures (default: as it was evaluated)",
    )
    command.add_argument(
        "--image-position",
        choices=("first", "middle", "last"),
        help="where pictures stand in the prompt; middle repeats the question around them (default: as trained)",
    )
    command.add_argument(
        "--system-prompt", default="", metavar="TEXT", help="what every session begins after, baked in as a state"
    )
    command.add_argument(
        "--calibrate",
        metavar="SOURCE",
        help="fit int8 or int4 to pictures: a folder, a video file or a camera's number",
    )
    command.add_argument(
        "--drift",
        type=int,
        metavar="TOKENS",
        help="compare int8 or int4 with float so far into a conversation (default: 1000, less for big models; 0: not)",
    )
    command.add_argument("--task", type=Path, metavar="FILE", help="questions with right answers to compare on, too")
    command.add_argument("--inspect", action="store_true", help="say what the checkpoint is, and stop")
    command.set_defaults(precision="fp32")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error it explains, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        _export(args)
    except VisualRWKVError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _export(args: argparse.Namespace) -> None:
    try:  # here, not above: torch takes seconds to import, and a device has neither torch nor rich
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        from export.build import export_bundle
        from export.config import ExportConfig
    except ImportError as error:
        raise TargetUnavailable(
            f"the exporter's packages are not installed: {error}", hint='pip install "visualrwkv-edge[export]"'
        ) from error
    checkpoint, config_path, name = args.checkpoint, args.config, "demo"
    if checkpoint is None:
        checkpoint, config_path = DEMO / "demo.safetensors", config_path or DEMO / "demo.json"
    else:
        name = checkpoint.stem
    config = ExportConfig.load(config_path, checkpoint.name) if config_path else ExportConfig()
    chosen = {"scan": args.scan, "image_position": args.image_position}
    config = replace(config, **{key: value for key, value in chosen.items() if value is not None})
    if args.inspect:
        _inspect(checkpoint, tuple(args.vision), config)
        return
    out = args.out or Path("build") / f"{name}-{args.precision}-{args.target}"
    console = Console()
    bar = BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn()
    with Progress(TextColumn("{task.description:<28}"), *bar, console=console) as bars:
        stages: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                for earlier in stages.values():
                    bars.update(earlier, total=1, completed=1)
                stages[stage] = bars.add_task(stage, total=None)
            if total:
                bars.update(stages[stage], total=total, completed=done)

        report = export_bundle(
            checkpoint,
            out,
            precision=args.precision,
            target=args.target,
            config=config,
            vision_files=tuple(args.vision),
            overwrite=args.overwrite,
            system_prompt=args.system_prompt,
            architectures=args.arch,
            calibrate=args.calibrate,
            drift=args.drift,
            task=args.task,
            progress=progress,
        )
        for task in stages.values():
            bars.update(task, total=1, completed=1)
    _print(report, console)


def _inspect(path: Path, vision_files: tuple[Path, ...], config: ExportConfig) -> None:
    from rich.console import Console

    from export.checkpoint import Checkpoint
    from export.infer import infer
    from export.inspect import tables

    with Checkpoint.open(path, vision_files) as checkpoint:
        for table in tables(checkpoint, infer(checkpoint, config)):
            Console().print(table)


def _print(report: Report, console: Console) -> None:
    from rich.table import Table

    parity = Table("parity with torch", "relative error", "largest difference", "limit")
    for row in report.parity.rows:
        parity.add_row(row.name, f"{row.error:.1e}", f"{row.worst:.1e}", f"{row.limit:.0e}")
    console.print(parity)
    if report.quality is not None:
        from quant.report import stage_table, task_table

        console.print("\nagainst the float model:", highlight=False)
        print(stage_table(report.quality.stages))
        if report.quality.task is not None:
            print(task_table(report.quality.task))
    manifest = report.bundle.manifest
    budget = Table("memory", "MB")
    for label, size in (
        ("language model weights", manifest.budget.weights),
        ("vision encoder weights", manifest.budget.vision),
        ("embedding table (mapped, rows in use only)", manifest.budget.embedding_table),
        ("state, per session", manifest.budget.state_per_session),
    ):
        budget.add_row(label, f"{size / 1e6:.2f}")
    console.print(budget)
    console.print(
        f"{manifest.family}, {manifest.precision}, target {manifest.target}: [bold]{report.bundle.path}[/bold]"
    )


if __name__ == "__main__":
    sys.exit(main())
