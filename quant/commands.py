"""What `python -m quant` does."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import quant.apply
import quant.search
from quant import recipe as recipes
from quant.compare import Stage, record, replay, same_vision
from quant.conversation import QUESTIONS, Gallery
from quant.dequantised import twin
from quant.folder import destination
from quant.gate import QUALITY_FILE, gate, keep
from quant.graph import Rounding, round_plainly
from quant.moments import calibrated, collect
from quant.pictures import drawn, find_pictures, questions_of
from quant.probe import Probe
from quant.recipe import RECIPES
from quant.report import plot, read_per_token, rows, stage_table, task_table, tensor_table
from quant.task import answer_both, read_task
from quant.vision import fit_vision
from runtime.bundle import Bundle
from runtime.errors import BundleError

DRAWN = 8  # pictures where there are none of the user's own
LISTED = 20


def progress(stage: str, done: int, total: int) -> None:
    """Show a stage in one line that is written over, or, where nobody watches, once it is done."""
    last = bool(total) and done >= total
    if sys.stderr.isatty():
        share = f"{100 * done // total:>4} %" if total else ""
        print(f"\r{stage:<36}{share}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last and (stage, total) != _told[-1]:
        print(stage, file=sys.stderr, flush=True)
        _told[-1] = stage, total


_told: list[tuple[str, int]] = [("", 0)]


def report(args: argparse.Namespace) -> None:
    """Print what a bundle is made of and, with its float bundle, what it loses."""
    bundle = Bundle.open(args.bundle)
    if bundle.manifest.precision not in ("int8", "int4"):
        raise BundleError(f"{args.bundle} is in {bundle.manifest.precision}", wanted="a bundle in int8 or int4")
    manifest = bundle.manifest
    print(
        f"{args.bundle}: {manifest.family}, {manifest.precision}, {read_per_token(bundle) / 1e6:.2f} MB read per token"
    )
    for rule in manifest.precision_map:
        print(
            f"  {rule.tensors:<38}{rule.format:<10}{rule.count:>5} tensors{rule.bytes / 1e6:>10.2f} MB  {rule.reason}"
        )
    if args.against is None:
        print(tensor_table(rows(bundle), len(rows(bundle)) if args.all else LISTED))
        if QUALITY_FILE in manifest.files:
            kept = json.loads(bundle.file(QUALITY_FILE).read_text(encoding="utf-8"))
            print("as compared with its float model when it was made:")
            print(stage_table(tuple(Stage(**stage) for stage in kept["stages"])))
        print("errors, drift and a task: --against FLOAT_BUNDLE (python -m export --fp32)")
        return
    exact = _float(args.against)
    gallery, questions = _pictures(args.images)
    moments = collect(exact, RECIPES["int4"], gallery, threads=args.threads, questions=questions, progress=progress)
    found = rows(bundle, exact, moments)
    recording = record(exact, gallery, args.drift, threads=args.threads, questions=questions, progress=progress)

    def replayed(other: Bundle) -> tuple[Stage, ...]:
        alike = same_vision(exact, other)
        return tuple(replay(recording, other, gallery, same_vision=alike, threads=args.threads, progress=progress))

    stages = replayed(bundle)
    weights_only: tuple[Stage, ...] = ()
    if args.weights_only:
        with tempfile.TemporaryDirectory() as folder:
            weights_only = replayed(twin(bundle, Path(folder)))
    task = read_task(args.task) if args.task else None
    result = answer_both(exact, bundle, task, threads=args.threads, progress=progress) if task else None
    print(tensor_table(found, len(found) if args.all else LISTED))
    print(stage_table(stages, weights_only))
    if result:
        print(task_table(result))
    if args.plot:
        plot(stages, args.plot, f"{manifest.name} against {exact.manifest.name}")
    if args.json:
        figures = {
            "stages": [asdict(stage) for stage in stages],
            "weights_only": [asdict(stage) for stage in weights_only],
            "task": asdict(result) if result else None,
            "matrices": [asdict(row) for row in found],
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def apply(args: argparse.Namespace) -> None:
    """Quantise a float bundle, compare the two, and write the new one."""
    exact = _float(args.bundle)
    recipe = recipes.load(args.recipe) if args.recipe else RECIPES[args.precision]
    task = read_task(args.task) if args.task else None
    gallery, questions = _pictures(args.calibrate)
    if args.int8_vision:
        recipe, cosine = fit_vision(exact, recipe, gallery, threads=args.threads, progress=progress)
        print(f"vision tower in 8 bits: least cosine of an image embedding {cosine:.5f}")
    rounding: Rounding = round_plainly
    if args.calibrate:
        moments = collect(exact, recipe, gallery, threads=args.threads, questions=questions, progress=progress)
        rounding = calibrated(moments)
    with destination(args.out, args.overwrite) as folder:
        made = quant.apply.quantise(exact, folder, recipe, name=args.out.name, rounding=rounding, progress=progress)
        if args.drift != 0:
            judged = gate(exact, made, gallery, drift=args.drift, task=task, threads=args.threads, progress=progress)
            made = keep(made, judged)
            print(stage_table(judged.stages))
            if judged.task:
                print(task_table(judged.task))
    read = read_per_token(Bundle(args.out, made.manifest)) / 1e6
    print(f"{made.manifest.precision}: {args.out}, {read:.2f} MB read per token")


def search(args: argparse.Namespace) -> None:
    """Find the smallest formats within a loss, and write them as a recipe."""
    exact = _float(args.bundle)
    gallery, questions = _pictures(args.images)
    wanted = RECIPES["int4"]  # which matrices: all it would quantise
    rounding: Rounding = round_plainly
    if args.images:
        moments = collect(exact, wanted, gallery, threads=args.threads, questions=questions, progress=progress)
        rounding = calibrated(moments)
    with Probe(exact, wanted, gallery, threads=args.threads, questions=questions) as probe:
        whole = sum(weight.nbytes for weight in probe.weights.values())
        found = quant.search.search(probe, args.loss, rounding, progress=progress)
    print(f"{'matrix':<28}{'format':<10}{'alone: int4-b32':>16}{'int4-b16':>10}{'int8-b32':>10}")
    for rule in found.recipe.rules:
        alone = found.alone[rule.pattern]
        figures = "".join(
            f"{alone[fmt]:>{width}.2%}" for fmt, width in zip(quant.search.LADDER, (16, 10, 10), strict=False)
        )
        print(f"{rule.pattern:<28}{rule.format:<10}{figures}")
    print(f"together {found.loss:.2%} of the logits (asked: {args.loss:.2%})")
    print(f"{found.bytes / 1e6:.2f} of {whole / 1e6:.2f} MB")
    if args.json:
        args.json.write_text(recipes.to_json(found.recipe), encoding="utf-8")
        print(f"python -m quant apply {args.bundle} --recipe {args.json} --out BUNDLE")


def _float(path: Path) -> Bundle:
    bundle = Bundle.open(path)
    if bundle.manifest.precision != "fp32":
        raise BundleError(f"{path} is in {bundle.manifest.precision}", wanted="a float bundle: python -m export --fp32")
    return bundle


def _pictures(source: str | None) -> tuple[Gallery, Sequence[str]]:
    if source is None:
        return drawn(DRAWN), QUESTIONS
    pictures = find_pictures(source)
    print(f"{source}: {pictures}", file=sys.stderr)
    return pictures, questions_of(source) or QUESTIONS
