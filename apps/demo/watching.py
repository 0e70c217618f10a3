"""Measure how a bundle watches: frames come one by one, and it is asked about the newest and about what has left view.

    python -m apps.demo.watching build/demo-int8-cpu --plot watching.png

Two ways are compared on the same frames and questions. "state": one session sees every frame once. "window": for
every new frame a fresh session sees the last few frames again, as a model with a window of that length would. Every
question is asked on a fork, so no question sees another. Runs on what a device has: no torch.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.bundles import find_bundle
from apps.demo.evaluate import HELD_BELOW, OPTIONS, SCALES, interval
from apps.demo.questions import KINDS, Item, about_frame, ask, ask_earlier, ask_seen
from apps.demo.scenes import Scene, changed, draw, scene_of
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import ConfigError, VisualRWKVError

MODES = ("state", "window")
# What questions are about; "gone" is first and seen together.
TOPICS = {
    "current": "the newest frame",
    "first": "the first frame",
    "seen": "was something in view before?",
    "gone": "what came before",
}
AGAIN = 0.25  # share of frames that show the scene of the frame before, changed a little or not at all
CURRENT = 2  # questions about the newest frame after every frame
ATTEMPTS = 200
EXAMPLES = """\
examples:
  python -m apps.demo.watching build/demo-int8-cpu
  python -m apps.demo.watching build/demo-int8-cpu --sequences 200 --frames 24 --window 8
  python -m apps.demo.watching build/demo-int8-cpu --json watching.json --plot watching.png
"""
Key = tuple[str, str, int]  # mode, topic, frames seen
Report = Callable[[int, int], None]


@dataclass
class Watch:
    """Right and asked questions, and the seconds spent on looking."""

    right: dict[Key, int] = field(default_factory=dict)
    asked: dict[Key, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    frames: int = 0  # in all sequences

    def add(self, mode: str, topic: str, seen: int, right: bool) -> None:
        """Count one answer."""
        for name in (topic,) if topic == "current" else (topic, "gone"):
            key = (mode, name, seen)
            self.asked[key] = self.asked.get(key, 0) + 1
            self.right[key] = self.right.get(key, 0) + right

    def rows(self) -> list[dict[str, Any]]:
        """One row per mode, topic and number of frames: asked, right, accuracy and its 95 % interval."""
        rows = []
        for key in sorted(self.asked, key=lambda k: (MODES.index(k[0]), list(TOPICS).index(k[1]), k[2])):
            right, asked = self.right[key], self.asked[key]
            low, high = interval(right, asked)
            counts = {"asked": asked, "right": right, "accuracy": right / asked, "low": low, "high": high}
            rows.append({"mode": key[0], "about": key[1], "frames": key[2], **counts})
        return rows

    def look_ms(self) -> dict[str, float]:
        """Milliseconds of looking for every new frame, by mode."""
        return {mode: round(1e3 * seconds / max(self.frames, 1), 2) for mode, seconds in self.seconds.items()}


def sequence(seed: int, count: int) -> list[Scene]:
    """Return the scenes of `count` frames; some are a later view of the one before."""
    rng = random.Random(f"{seed} frames")
    scenes = [scene_of(seed)]
    while len(scenes) < count:
        again = rng.random() < AGAIN
        scenes.append(changed(rng, scenes[-1])[0] if again else scene_of(rng.randrange(HELD_BELOW)))
    return scenes


def questions(scenes: Sequence[Scene], seed: int) -> list[tuple[str, Item]]:
    """Return topics and questions after the last of `scenes`: about it, and where there is one, about earlier ones."""
    rng, seen = random.Random(f"{seed} {len(scenes)} asked"), len(scenes)
    asked = [("current", _about(scenes, seen - 1, rng)) for _ in range(CURRENT)]
    if seen > 1:
        whole = ask_earlier(scenes[0], rng) if rng.random() < 0.5 else None
        asked.append(("first", whole or _about(scenes, 0, rng)))
        if item := ask_seen(scenes, rng):
            asked.append(("seen", item))
    return asked


def _about(scenes: Sequence[Scene], frame: int, rng: random.Random) -> Item:
    """A question of any kind about one frame; every scene allows one about the light at least."""
    for _ in range(ATTEMPTS):
        if item := ask(scenes[frame], rng.choice(list(KINDS)), rng):
            return about_frame(item, frame, len(scenes), rng) if len(scenes) > 1 else item
    raise AssertionError("a scene without questions")


def watch(
    model: VisualRWKV,
    seeds: Sequence[int],
    frames: int,
    window: int,
    report: Report = lambda done, total: None,
) -> Watch:
    """Show every seed's sequence both ways and ask the same questions after every frame.

    Args:
        model: anything with sessions like the runtime's.
        seeds: of the sequences' first scenes.
        frames: how many every sequence has.
        window: how many the fresh session of "window" sees.
        report: called with sequences done and in all.
    """
    result = Watch()
    for done, seed in enumerate(seeds):
        rng = random.Random(f"{seed} drawn")
        scenes = sequence(seed, frames)
        pictures = [draw(scene, rng.choice(SCALES)) for scene in scenes]
        going = model.session()
        for seen in range(1, frames + 1):
            asked = questions(scenes[:seen], seed)
            fresh = model.session()
            result.seconds["state"] += _look(going, pictures[seen - 1 : seen])
            result.seconds["window"] += _look(fresh, pictures[max(0, seen - window) : seen])
            result.frames += 1
            for mode, session in zip(MODES, (going, fresh), strict=True):
                for topic, item in asked:
                    result.add(mode, topic, seen, _answer(session.fork(), item.question) == item.answer)
        report(done + 1, len(seeds))
    return result


def _look(session: Any, pictures: Sequence[np.ndarray]) -> float:
    start = time.perf_counter()
    for picture in pictures:
        session.see(picture)
    return time.perf_counter() - start


def _answer(session: Any, question: str, options: GenerateOptions = OPTIONS) -> str:
    return "".join([chunk.text for chunk in session.ask(question, options=options)])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text: accuracy and its 95 % interval in percent, after every number of frames."""
    found = {(r["mode"], r["about"], r["frames"]): r for r in rows}
    lines = []
    for topic, title in TOPICS.items():
        lines += [f"{title}", f"{'frames':>8}{'one state':>24}{'window':>24}{'asked':>8}"]
        for seen in sorted({n for _, about, n in found if about == topic}):
            both = [found[mode, topic, seen] for mode in MODES]
            cells = (f"{r['accuracy']:.1%}  {r['low'] * 100:5.1f} - {r['high'] * 100:5.1f}" for r in both)
            lines.append(f"{seen:>8}" + "".join(f"{cell:>24}" for cell in cells) + f"{both[0]['asked']:>8}")
    return "\n".join(lines)


def chart(rows: Sequence[dict[str, Any]], window: int, path: Path) -> None:
    """Draw accuracy over frames for both modes, with 95 % intervals (needs matplotlib)."""
    from matplotlib.figure import Figure

    labels = {"state": "one state, every frame once", "window": f"the last {window} frames, seen again every time"}
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, topic in zip(figure.subplots(1, 2, sharey=True), ("current", "gone"), strict=True):
        for mode, label in labels.items():
            points = [r for r in rows if (r["mode"], r["about"]) == (mode, topic)]
            seen = [r["frames"] for r in points]
            axis.fill_between(seen, [r["low"] for r in points], [r["high"] for r in points], alpha=0.2)
            axis.plot(seen, [r["accuracy"] for r in points], marker=".", label=label, linewidth=1.4)
        axis.set(xlabel="frames seen", title=f"questions: {TOPICS[topic]}", ylim=(0, 1.03))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("right answers")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(
        "python -m apps.demo.watching",
        description=(__doc__ or "").split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, help="exported demo model")
    p.add_argument("--sequences", type=int, default=120, metavar="N", help="default: %(default)s")
    p.add_argument("--frames", type=int, default=16, metavar="N", help="of every sequence (default: %(default)s)")
    p.add_argument("--window", type=int, default=4, metavar="N", help="frames of the window (default: %(default)s)")
    p.add_argument("--seed", type=int, default=70_000, metavar="S", help="first scene (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="N", help="compute threads")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    return p


def main(argv: Sequence[str] | None = None, *, load: Callable[..., VisualRWKV] = VisualRWKV.load) -> int:
    """Run the command line; `load` is for tests."""
    args = parser().parse_args(argv)
    try:
        for name in ("sequences", "frames", "window"):
            if getattr(args, name) < 1:
                raise ConfigError(f"--{name} {getattr(args, name)}", wanted="at least 1")
        if args.seed < 0 or args.seed + args.sequences > HELD_BELOW:
            raise ConfigError(
                f"seeds {args.seed} to {args.seed + args.sequences - 1}",
                wanted=f"held-out scenes: 0 to {HELD_BELOW - 1}",
            )
        seeds = range(args.seed, args.seed + args.sequences)
        with load(find_bundle(args.bundle), threads=args.threads) as model:
            result = watch(model, seeds, args.frames, args.window, _progress)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows, look_ms = result.rows(), result.look_ms()
    print(table(rows))
    print("looking, for every new frame: " + ", ".join(f"{mode} {ms:.1f} ms" for mode, ms in look_ms.items()))
    if args.json:
        kept = {k: getattr(args, k) for k in ("seed", "sequences", "frames", "window")}
        figures = {"bundle": args.bundle.name, **kept, "look_ms": look_ms, "rows": rows}
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        chart(rows, args.window, args.plot)
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done % max(1, total // 10) == 0:
        end = "\n" if done == total or not sys.stderr.isatty() else ""
        print(f"\r{done} of {total} sequences", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
