"""Draw the sample video and write its questions.

    python -m apps.demo.video --kinds colour shape count --seed 3

makes `sample.mp4` and `sample.json` (the form of apps/questions.py) in this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from apps.demo.film import STORIES, Film, plan
from apps.demo.questions import KINDS
from apps.demo.scenes import SIDE, draw
from runtime.errors import SourceError, VisualRWKVError

SCALE = 8  # video pixels for a scene unit: 512 x 512
MOST_BYTES = 1_000_000


def write_video(film: Film, path: Path, fps: float) -> int:
    """Draw a film into an .mp4 file; return its size in bytes.

    Raises:
        SourceError: OpenCV cannot write the file.
    """
    size = (SIDE * SCALE, SIDE * SCALE)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise SourceError(f"{path} cannot be written as video", hint="does the folder exist?")
    try:
        for number in range(round(film.seconds * fps)):
            writer.write(draw(film.scene(number / fps), SCALE))
    finally:
        writer.release()
    return path.stat().st_size


def write_questions(film: Film, path: Path) -> None:
    """Write the film's questions as JSON, one a line."""
    lines = ",\n".join(f"  {json.dumps(asked.entry(), ensure_ascii=False)}" for asked in film.asked)
    path.write_text(f'{{"questions": [\n{lines}\n]}}\n', encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser("python -m apps.demo.video", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("sample.mp4"), help="default: %(default)s")
    p.add_argument("--kinds", nargs="+", choices=(*KINDS, *STORIES), default=list(KINDS))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--shots", type=int, default=5, metavar="N", help="scenes (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of a scene (default: %(default)s)")
    p.add_argument("--questions", type=int, default=2, metavar="N", help="about each (default: %(default)s)")
    p.add_argument("--fps", type=float, default=10.0, help="default: %(default)s")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 also where the video is larger than the repository should hold."""
    args = parser().parse_args(argv)
    try:
        film = plan(args.kinds, args.seed, args.shots, args.seconds, args.questions)
        size = write_video(film, args.out, args.fps)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_questions(film, args.out.with_suffix(".json"))
    for asked in film.asked:
        print(f"{asked.time_s:5.1f} s  {asked.item.kind:<9} {asked.item.question}  {asked.item.answer}")
    print(f"{args.out}: {film.seconds:.0f} s, {size / 1e6:.2f} MB, {len(film.asked)} questions")
    return 0 if size <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
