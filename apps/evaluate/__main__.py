"""Score exported bundles on public benchmarks, from data sets on this machine.

    python -m apps.evaluate build/demo-int8-cpu --task demo --limit 100

Answers are kept as they come: after Ctrl-C or a crash, the same command goes on. Several bundles are compared with
each other, question by question. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.bundles import find_bundle
from apps.evaluate import page
from apps.evaluate.answers import Answer, Answers
from apps.evaluate.intervals import Difference
from apps.evaluate.published import published
from apps.evaluate.report import Progress, as_json, details, table
from apps.evaluate.run import Pace, ask_all
from apps.evaluate.sample import Problem, Sample
from apps.evaluate.scores import Score, apart, score
from apps.evaluate.source import Data, Notes
from apps.evaluate.submit import FORMATS, write_submission
from apps.evaluate.tasks import Plan, listing, plan, tasks_of
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import ConfigError, VisualRWKVError

MAX_BAD = 1.0  # percent of a task's rows
EXAMPLES = """\
examples:
  python -m apps.evaluate build/demo-int8-cpu --task demo
  python -m apps.evaluate build/v7-0b1 --task pope,gqa,textvqa --data ~/datasets
  python -m apps.evaluate build/v7-0b1 build/v7-0b1-int4 --task pope --data ~/datasets --limit 500 --inspect 50
  python -m apps.evaluate build/v7-0b1 --task mmbench --data ~/datasets --submit
  python -m apps.evaluate --list

--data DIR holds a folder for each task (DIR/pope, DIR/gqa, ...), either a data set as lmms-eval downloads it or the
question files and pictures of the LLaVA and VisualRWKV scripts; --list says which files are looked for.
Scores are those of lmms-eval's scorers, figures called "official" those of the scripts behind the papers. Intervals
and differences come from a bootstrap over pictures; p from McNemar's exact test."""

Said = dict[tuple[str, str], dict[str, Answer]]  # by task and bundle, then by question


@dataclass
class Results:
    """What a whole run found."""

    scores: list[Score] = field(default_factory=list)
    paces: dict[tuple[str, str], Pace] = field(default_factory=dict)
    apart: dict[tuple[str, str], Difference] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        "python -m apps.evaluate",
        description=(__doc__ or "").split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, nargs="*", help="exported bundles; several are compared with the first")
    p.add_argument("--task", default="demo", metavar="A,B", help="which benchmarks (default: %(default)s)")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder with the data sets")
    p.add_argument("--images", type=Path, metavar="DIR", help="where pictures named in question files lie")
    p.add_argument("--split", metavar="NAME", help="instead of the one that the papers use")
    p.add_argument("--against", type=Path, action="append", default=[], metavar="BUNDLE", help="one more bundle")
    p.add_argument("--limit", type=int, metavar="N", help="first N questions (scenes, pairs, rotated questions) only")
    p.add_argument("--prompts", choices=("official", "lmms-eval"), default="official", help="default: %(default)s")
    p.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: 128; demo: 16)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="questions at a time (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="N", help="compute threads")
    p.add_argument("--device", default="auto", help="default: %(default)s")
    p.add_argument("--out", type=Path, default=Path("build/evaluate"), metavar="DIR", help="default: %(default)s")
    p.add_argument("--fresh", action="store_true", help="begin again instead of going on")
    p.add_argument(
        "--max-bad", type=float, default=MAX_BAD, metavar="P", help="percent of bad rows (default: %(default)s)"
    )
    p.add_argument("--inspect", type=int, default=0, metavar="N", help="write an HTML page with N questions")
    p.add_argument("--submit", action="store_true", help=f"write files for the servers ({', '.join(FORMATS)})")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    p.add_argument("--list", action="store_true", help="list the tasks and the files they are read from")
    return p


def main(argv: Sequence[str] | None = None, *, load: Callable[..., VisualRWKV] = VisualRWKV.load) -> int:
    """Run the command line; `load` is for tests."""
    args = parser().parse_args(argv)
    if args.list:
        print(listing())
        return 0
    try:
        results = evaluate(args, load)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    except VisualRWKVError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print(table(results.scores, results.paces, results.apart))
    for found in results.scores:
        if text := details(found):
            print(text)
    for path in results.files:
        print(f"written: {path}")
    if args.json:
        gaps = results.apart
        data = [as_json(s, results.paces.get((s.task, s.bundle)), gaps.get((s.task, s.bundle))) for s in results.scores]
        args.json.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def evaluate(args: argparse.Namespace, load: Callable[..., VisualRWKV]) -> Results:
    """Ask every bundle every task, score the answers, and write what was asked for."""
    tasks = tasks_of(args.task)
    bundles = [find_bundle(path) for path in (*args.bundle, *args.against)]
    names = _names(bundles)
    if not bundles:
        raise ConfigError("no bundle", hint="python -m apps.evaluate build/demo-int8-cpu --task demo")
    for name, value in (("--batch", args.batch), ("--limit", 1 if args.limit is None else args.limit)):
        if value < 1:
            raise ConfigError(f"{name} {value}", wanted="1 or more")
    if args.data is None and any(task.name != "demo" for task in tasks):
        raise ConfigError("no --data", wanted="a folder with the data sets; nothing is downloaded")
    data = Data(args.data or Path(), args.images, args.split, args.prompts, args.limit)
    plans = [plan(task, data, args.limit) for task in tasks]
    for each in plans:
        _note(each)
        check_bad(each, args.max_bad)
    results, said = Results(), Said()
    for path, name in zip(bundles, names, strict=True):
        with load(path, args.device, threads=args.threads, sessions=args.batch, undo_bytes=0) as model:
            for each in plans:
                said[each.task.name, name] = _ask(args, each, data, model, name, results)
    results.scores.sort(key=lambda found: [each.task.name for each in plans].index(found.task))
    for each in plans:
        own = [found for found in results.scores if found.task == each.task.name]
        for other in own[1:]:
            if gap := apart(each, own[0], other):
                results.apart[other.task, other.bundle] = gap
        if args.inspect:
            path = args.out / f"{each.task.name}.html"
            page.write(path, _page(each, data, own, said, args.inspect))
            results.files.append(path)
    return results


def check_bad(found: Plan, limit: float) -> None:
    """Raise `ConfigError` if more than `limit` percent of a task's rows are bad, and list the first of them."""
    bad = len(found.problems)
    if bad and 100 * bad > limit * max(1, found.rows):
        listed = "\n".join(f"    {p.where}: {p.what.splitlines()[0]}" for p in found.problems[:5])
        raise ConfigError(
            f"{bad} of {found.rows} rows of {found.task.title} are bad\n{listed}",
            wanted=f"at most {limit:g} %",
            hint="mend the data, or --max-bad P",
        )


def _ask(
    args: argparse.Namespace, each: Plan, data: Data, model: VisualRWKV, name: str, results: Results
) -> dict[str, Answer]:
    manifest, task = model.manifest, each.task
    max_tokens = args.max_tokens or task.max_tokens
    settings: dict[str, Any] = {
        "bundle": manifest.fingerprint,
        "task": task.name,
        "prompts": args.prompts,
        "split": args.split,
        "max_tokens": max_tokens,
        "backend": model.engine.backend.name,
    }
    with Answers(args.out / name / f"{task.name}.jsonl", settings, fresh=args.fresh) as answers:
        if stale := answers.stale(each.samples):
            raise ConfigError(f"{len(stale)} questions of {task.title} are others now, {stale[0]} among them",
                              hint="--fresh asks all again")  # fmt: skip
        progress = Progress(f"{task.title}, {name}")
        wanted = each.keys
        before = len(wanted & answers.found.keys())
        options = GenerateOptions(max_tokens=max_tokens)
        new = list[Problem]()
        samples = _pictured(each, data, wanted - answers.found.keys(), new)
        pace = ask_all(
            model, samples, answers, len(wanted), before=before, batch=args.batch, options=options, report=progress
        )
        progress.close()
    met = [*new, *pace.problems]
    check_bad(replace(each, problems=[*each.problems, *met]), args.max_bad)
    found = score(each, name, answers.found, met)
    found.published = published(manifest.family, manifest.width, task.name)
    results.scores.append(found)
    results.paces[task.name, name] = pace
    if args.submit and task.name in FORMATS:
        results.files.append(write_submission(each, answers.found, args.out / name / f"{task.name}-submission"))
    return answers.found


def _pictured(each: Plan, data: Data, keys: Collection[str], problems: list[Problem]) -> Iterator[Sample]:
    """Yield the samples with these keys, with their pictures; what is wrong with pictures is added to `problems`."""
    known = {problem.where for problem in each.problems}
    left = set(keys)
    rows = each.task.source.read(data, True, Notes()) if left else ()
    for item in rows:
        if isinstance(item, Problem):
            problems += [item] if item.where not in known else []
        elif item.key in left:
            left.discard(item.key)
            yield item
            if not left:
                return


def _page(each: Plan, data: Data, scores: list[Score], said: Said, count: int) -> str:
    keys = page.choose(each, scores, count)
    samples = {sample.key: sample for sample in _pictured(each, data, keys, [])}
    ordered = [samples[key] for key in keys if key in samples]
    return page.render(each, ordered, scores, {s.bundle: said[each.task.name, s.bundle] for s in scores})


def _names(bundles: Sequence[Path]) -> list[str]:
    """Folder names, with their parents' where they are the same."""
    names = [path.resolve().name for path in bundles]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}-{path.resolve().name}" for path in bundles]
    if len(set(names)) < len(names):
        raise ConfigError("the same bundle twice", wanted="different bundles to compare")
    return names


def _note(each: Plan) -> None:
    if each.notes.unknown:
        columns = ", ".join(f"{name} ({count})" for name, count in sorted(each.notes.unknown.items()))
        print(f"{each.task.title}: columns nobody asked for, by rows: {columns}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
