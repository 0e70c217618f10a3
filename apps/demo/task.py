"""Write questions about held-out drawn scenes as a task for `python -m quant report BUNDLE --task FOLDER`.

    python -m apps.demo.task build/demo-task --scenes 200

Every kind of question about one picture, in both languages where it can be asked; the scenes are those of
`apps.demo.evaluate`, which training never saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from apps.demo.evaluate import HELD_BELOW, LANGUAGES, _draws, picture_of
from apps.demo.questions import KINDS, ask
from apps.demo.scenes import scene_of
from runtime.errors import ConfigError, VisualRWKVError


def write(folder: Path, seeds: Sequence[int]) -> int:
    """Write pictures and task.jsonl; return how many questions there are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in seeds:
        name = f"{seed:05}.png"
        cv2.imwrite(str(folder / name), picture_of(seed))
        sources = {kind: _draws(seed, kind) for kind in KINDS}
        items = [
            item for kind, rng in sources.items() for z in LANGUAGES if (item := ask(scene_of(seed), kind, rng, z))
        ]
        lines += [{"question": item.question, "image": name, "answer": item.answer} for item in items]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "task.jsonl").write_text(text, encoding="utf-8")
    return len(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m apps.demo.task", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write task.jsonl and the pictures")
    parser.add_argument("--scenes", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=50_000, metavar="S", help="first scene (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.scenes < 1 or args.seed < 0 or args.seed + args.scenes > HELD_BELOW:
            raise ConfigError(
                f"seeds {args.seed} to {args.seed + args.scenes - 1}",
                wanted=f"held-out scenes: 0 to {HELD_BELOW - 1}",
            )
        count = write(args.folder, range(args.seed, args.seed + args.scenes))
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} questions about {args.scenes} pictures: {args.folder / 'task.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
