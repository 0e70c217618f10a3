"""Measure a bundle on scenes it never saw: exact match of greedy answers, per question kind and language.

    python -m apps.demo.evaluate build/demo-int8-cpu --scenes 500

Every question is asked right after the picture; "second turn" and "third turn" are asked in one conversation.
"change", "earlier" and "frames" are about two to four pictures, shown together or in turns of their own.
Runs on what a device has: no torch.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.bundles import find_bundle
from apps.demo.questions import KINDS, Item, about_frame, ask, ask_change, ask_earlier
from apps.demo.scenes import Scene, changed, draw, scene_of
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import ConfigError, VisualRWKVError

STORIES = ("change", "earlier", "frames")
HELD_BELOW = 100_000  # seeds of held-out scenes
SCALES = (1, 1, 2, 4)  # how much larger than the model's input a picture is drawn, as in training
APART = 0.3  # share of stories with a question of its own about every earlier picture
ATTEMPTS = 200
LANGUAGES = {"en": "English", "zh": "Chinese"}
TURNS = ("first turn", "second turn", "third turn")
OPTIONS = GenerateOptions(max_tokens=16)
EXAMPLES = """\
examples:
  python -m apps.demo.evaluate build/demo-int8-cpu
  python -m apps.demo.evaluate build/demo-int8-cpu --scenes 250 --kinds change earlier frames
  python -m apps.demo.evaluate build/demo-int8-cpu --mistakes 20 --json figures.json
"""
Report = Callable[[int, int], None]


@dataclass
class Tally:
    """Right and asked questions by kind and language."""

    right: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: dict[tuple[str, str], int] = field(default_factory=dict)
    mistakes: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, item: Item, said: str) -> None:
        """Count one answer; it is right if it is the true one, letter by letter."""
        key, right = (kind, item.language), said == item.answer
        self.asked[key] = self.asked.get(key, 0) + 1
        self.right[key] = self.right.get(key, 0) + right
        if not right:
            self.mistakes.append({"kind": kind, "question": item.question, "answer": item.answer, "said": said})

    def row(self, kinds: Iterable[str], languages: Iterable[str]) -> dict[str, Any]:
        """Sum over kinds and languages: asked, right, accuracy and its 95 % interval."""
        keys = {(k, z) for k in kinds for z in languages} & set(self.asked)
        right, asked = sum(self.right[key] for key in keys), sum(self.asked[key] for key in keys)
        low, high = interval(right, asked)
        return {
            "asked": asked,
            "right": right,
            "accuracy": right / asked if asked else 0.0,
            "low": low,
            "high": high,
        }


def interval(right: int, asked: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion."""
    if not asked:
        return 0.0, 1.0
    z, p = 1.96, right / asked
    middle = p + z * z / (2 * asked)
    reach = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def evaluate(
    model: VisualRWKV, seeds: Sequence[int], kinds: Sequence[str], report: Report = lambda done, total: None
) -> Tally:
    """Ask about the scenes of `seeds`.

    Args:
        model: anything with sessions like the runtime's.
        seeds: of scenes.
        kinds: of KINDS and STORIES; every kind is asked once per scene and language.
        report: called with scenes done and in all.
    """
    tally = Tally()
    single = [kind for kind in kinds if kind in KINDS]
    for done, seed in enumerate(seeds):
        if single:
            _one_picture(model, seed, single, tally)
        for kind in kinds:
            if kind in STORIES and (told := story(kind, seed)):
                scenes, item = told
                tally.add(item.kind, item, _tell(model, scenes, item, seed))
        report(done + 1, len(seeds))
    return tally


def _draws(seed: int, kind: str) -> random.Random:
    """What decides a question, whichever other kinds are measured."""
    return random.Random(f"{seed} {kind}")


def _one_picture(model: VisualRWKV, seed: int, kinds: Sequence[str], tally: Tally) -> None:
    scene = scene_of(seed)
    session = model.session()
    session.see(picture_of(seed))
    seen = session.snapshot()
    sources = {kind: _draws(seed, kind) for kind in kinds}
    items = [item for kind, rng in sources.items() for z in LANGUAGES if (item := ask(scene, kind, rng, z))]
    for item in items:
        tally.add(item.kind, item, _answer(session, item.question))
        session.restore(seen)
    for turn, item in zip(TURNS, _draws(seed, "turns").sample(items, min(len(TURNS), len(items))), strict=False):
        said = _answer(session, item.question)
        if turn != TURNS[0]:  # first turns are counted above
            tally.add(turn, item, said)


def story(kind: str, seed: int) -> tuple[list[Scene], Item] | None:
    """Return pictures and a question about them, asked after the last; None where nothing could be asked."""
    rng = _draws(seed, kind)
    count = 2 if kind == "change" else rng.choices((2, 3, 4), (6, 2, 2))[0]
    for attempt in range(ATTEMPTS):
        first = scene_of(seed if not attempt else rng.randrange(HELD_BELOW))
        scenes = [first, *(scene_of(rng.randrange(HELD_BELOW)) for _ in range(count - 1))]
        if kind == "change":
            later, change = changed(rng, first)
            return [first, later], ask_change(change, rng)
        if kind == "earlier":
            item = ask_earlier(first, rng)
        else:
            frame = rng.randrange(count)
            item = ask(scenes[frame], rng.choice(list(KINDS)), rng)
            item = item and about_frame(item, frame, count, rng)
        if item:
            return scenes, item
    return None


def _tell(model: VisualRWKV, scenes: Sequence[Scene], item: Item, seed: int) -> str:
    """Show the pictures, at once or with a question about each, and ask."""
    session, rng = model.session(), _draws(seed, "told")
    apart = rng.random() < APART
    for i, scene in enumerate(scenes):
        session.see(draw(scene, rng.choice(SCALES)))
        small = ask(scene, "light", rng) if apart and i < len(scenes) - 1 else None
        if small:
            _answer(session, small.question)
    return _answer(session, item.question)


def picture_of(seed: int) -> np.ndarray:
    """Return the picture of a seed's scene, BGR uint8 [64 k, 64 k, 3], at the scale training would take."""
    return draw(scene_of(seed), random.Random(seed).choice(SCALES))


def _answer(session: Any, question: str) -> str:
    return "".join([chunk.text for chunk in session.ask(question, options=OPTIONS)])


def rows_of(tally: Tally) -> list[dict[str, Any]]:
    """Return one row per kind, then the later turns and the mean over all first-turn questions."""
    kinds = sorted({kind for kind, _ in tally.asked} - set(TURNS))
    later = [turn for turn in TURNS if any(kind == turn for kind, _ in tally.asked)]
    rows = []
    for name, members in [*((k, [k]) for k in kinds), ("all kinds", kinds), *((t, [t]) for t in later)]:
        languages = {z: tally.row(members, [z]) for z in LANGUAGES}
        rows.append({"kind": name, **tally.row(members, LANGUAGES), "languages": languages})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text: accuracy with its interval in percent, and how many were asked."""
    head = f"{'kind':<14}{'accuracy':>9}  {'95 % interval':<15}{'asked':>7}"
    lines = [head + "".join(f"{name:>10}" for name in LANGUAGES.values())]
    for row in rows:
        line = f"{row['kind']:<14}{row['accuracy']:>8.1%}  "
        between = f"{row['low'] * 100:.1f} - {row['high'] * 100:.1f}"
        line += f"{between:<15}{row['asked']:>7}"
        for each in row["languages"].values():
            line += f"{each['accuracy']:>10.1%}" if each["asked"] else f"{'':>10}"
        lines.append(line)
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        "python -m apps.demo.evaluate",
        description=__doc__.split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, help="exported demo model")
    p.add_argument("--scenes", type=int, default=500, metavar="N", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=50_000, metavar="S", help="first scene (default: %(default)s)")
    p.add_argument(
        "--kinds",
        nargs="+",
        choices=(*KINDS, *STORIES),
        default=list(KINDS),
        help="default: all about one picture",
    )
    p.add_argument("--threads", type=int, metavar="N", help="compute threads")
    p.add_argument("--mistakes", type=int, default=0, metavar="N", help="show N wrong answers")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return p


def main(argv: Sequence[str] | None = None, *, load: Callable[..., VisualRWKV] = VisualRWKV.load) -> int:
    """Run the command line; `load` is for tests."""
    args = parser().parse_args(argv)
    try:
        if args.scenes < 1 or args.seed < 0 or args.seed + args.scenes > HELD_BELOW:
            raise ConfigError(
                f"seeds {args.seed} to {args.seed + args.scenes - 1}",
                wanted=f"held-out scenes: 0 to {HELD_BELOW - 1}",
            )
        started = time.monotonic()
        with load(find_bundle(args.bundle), threads=args.threads) as model:
            tally = evaluate(model, range(args.seed, args.seed + args.scenes), args.kinds, _progress)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = rows_of(tally)
    print(table(rows))
    for mistake in tally.mistakes[: args.mistakes]:
        print("  {question}  is {answer!r}, said {said!r}".format(**mistake))
    if args.json:
        figures = {
            "bundle": args.bundle.name,
            "seed": args.seed,
            "scenes": args.scenes,
            "seconds": round(time.monotonic() - started, 1),
            "rows": rows,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done % max(1, total // 10) == 0:
        end = "\n" if done == total or not sys.stderr.isatty() else ""
        print(f"\r{done} of {total} scenes", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
