"""Where the time goes between light and answer, and whether it stays within a budget.

    python -m examples.latency_budget build/demo-int8-cpu --source apps/demo/sample.mp4 --budget-ms 500

Per question: the newest frame is taken, shown, and asked about, in a fresh session. Printed are the median and the
worst of every stage, over all questions. The clock is monotonic; pictures come at the pace of their source.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from apps.latest import LatestFrame
from apps.robot import from_text
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import SourceError, VisualRWKVError

ADVICE = {
    "age": "the camera: more frames a second, a shorter buffer (v4l2:…?fps=30), no re-encoding on the way",
    "see": "the picture: a bundle with a smaller tower, or session.watch(), which has fed the frame before you ask",
    "first": "the question: fewer words, a system prompt baked into the bundle",
    "rest": "the answer: fewer tokens, --int8 or --int4; its first words are of use before its last",
}


@dataclass(frozen=True)
class Round:
    """Seconds of one question's stages, in their order."""

    age: float  # since the frame came out of the camera
    see: float  # preparing, encoding and feeding it
    first: float  # the question, up to the first token
    rest: float  # the other tokens

    @property
    def total(self) -> float:
        """From the frame to the end of the answer."""
        return self.age + self.see + self.first + self.rest


def measure(model: VisualRWKV, reader: LatestFrame, question: str, rounds: int, max_tokens: int) -> list[Round]:
    """Ask about `rounds` different frames, after one that warms up. Raises `SourceError` when there are none."""
    done: list[Round] = []
    number = -1
    for index in range(rounds + 1):
        frame = reader.latest(after=number, timeout=10.0)
        if frame is None:
            break
        number, age = frame.number, reader.age_s
        session = model.session()
        times = [time.perf_counter()]
        session.see(frame.image)
        times.append(time.perf_counter())
        for _ in session.ask(question, options=GenerateOptions(max_tokens=max_tokens)):
            times.append(time.perf_counter())
        first = times[2] if len(times) > 2 else times[1]
        if index:
            done.append(Round(age, times[1] - times[0], first - times[1], times[-1] - first))
    if not done:
        raise SourceError(f"{reader.source.name} gave fewer than two frames", wanted="frames to measure with")
    return done


def report(rounds: list[Round], budget_s: float) -> tuple[str, bool]:
    """Return the table, and whether the worst round stayed within the budget."""
    stages = [field.name for field in fields(Round)]
    values = {name: [getattr(entry, name) for entry in rounds] for name in (*stages, "total")}
    lines = [f"{'':<8}{'median':>10}{'worst':>10}   ms, {len(rounds)} questions"]
    for name, times in values.items():
        lines.append(f"{name:<8}{1e3 * statistics.median(times):>10.1f}{1e3 * max(times):>10.1f}")
    good = max(values["total"]) <= budget_s
    lines.append(f"budget  {1e3 * budget_s:>20.1f}   {'kept' if good else 'missed'}")
    if not good:
        slowest = max(stages, key=lambda name: statistics.median(values[name]))
        lines.append(f"most of it is {slowest!r}; {ADVICE[slowest]}")
    return "\n".join(lines), good


def main() -> int:
    """Run the command line; return 0 if the budget was kept, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", default="0", help="camera number, file, address, v4l2:…, csi:…, gst:… (default: 0)")
    parser.add_argument("--question", default="How many circles are there?")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--budget-ms", type=float, default=500.0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    try:
        source = from_text(args.source)
        with VisualRWKV.load(args.bundle, threads=args.threads, cache_bytes=0) as model, LatestFrame(source) as reader:
            rounds = measure(model, reader, args.question, max(1, args.rounds), args.max_tokens)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text, good = report(rounds, args.budget_ms / 1e3)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
