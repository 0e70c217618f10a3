"""Write lmms-eval tasks that read data sets on this machine: its own tasks, with another place to read from.

python -m apps.evaluate.lmms --task pope,mme --data ~/datasets --out build/lmms
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from apps.evaluate.lmms import MODEL
from apps.evaluate.source import Data, public_files
from apps.evaluate.tasks import Task, tasks_of
from runtime.errors import ConfigError, VisualRWKVError

# Of lmms-eval: the file of its task below lmms_eval/tasks, the split it reads, and the folder of the data set's part.
STOCK = {
    "vqav2": ("vqav2/vqav2_val.yaml", "validation", "**/"),
    "textvqa": ("textvqa/textvqa_val.yaml", "validation", "**/"),
    "scienceqa": ("scienceqa/scienceqa_img.yaml", "test", "**/"),
    "pope": ("pope/pope.yaml", "test", "**/"),
    "mme": ("mme/mme.yaml", "test", "**/"),
    "mmbench": ("mmbench/mmbench_en_dev_static.yaml", "dev", "**/en/"),
    "mmbench_cn": ("mmbench/mmbench_cn_dev.yaml", "dev", "**/cn/"),
}
EXAMPLES = f"""\
examples:
  python -m apps.evaluate.lmms --task pope --data ~/datasets --out build/lmms
  python -m lmms_eval --model {MODEL} --model_args bundle=build/v7-0b1 --tasks pope_here --include_path build/lmms

  python -m apps.serve build/v7-0b1
  python -m lmms_eval --model openai --model_args base_url=http://127.0.0.1:8000/v1,model=v7-0b1,api_key=none \\
      --tasks pope_here --include_path build/lmms

Only data sets in their public schema, in Parquet. lmms-eval's gqa always fetches its pictures itself, and its
mmbench_cn asks a service of OpenAI to read answers: python -m apps.evaluate does neither."""


def task_file(task: Task, data: Path, tasks: Path) -> str:
    """Return the text of a task that is `task` of lmms-eval on local files.

    Args:
        task: one of `STOCK`.
        data: the folder with the data sets.
        tasks: the folder lmms_eval/tasks.

    Raises:
        ConfigError: lmms-eval reads this task's data in a way that cannot be changed, or there is no data.
    """
    if task.name not in STOCK:
        raise ConfigError(f"lmms-eval's task {task.name} cannot read local files", wanted=", ".join(STOCK))
    stock, split, prefix = STOCK[task.name]
    files = [
        str(path.resolve())
        for path in public_files(task.source.folder(Data(data)), (split,), None, prefix=prefix)
        if path.suffix == ".parquet"
    ]
    if not files:
        raise ConfigError(f"no {split}-*.parquet for {task.title} below {data}", wanted=task.source.layouts)
    # JSON is YAML: quoting is no question.
    settings = {
        "include": str(tasks / stock),
        "task": f"{task.name}_here",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: files}},
        "test_split": split,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        "python -m apps.evaluate.lmms",
        description=(__doc__ or "").split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--task", required=True, metavar="A,B", help=f"of {', '.join(STOCK)}")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the data sets")
    p.add_argument("--out", type=Path, default=Path("build/lmms"), metavar="DIR", help="default: %(default)s")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(argv)
    try:
        spec = find_spec("lmms_eval")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError("lmms-eval is not installed", hint="pip install lmms-eval")
        tasks = Path(next(iter(spec.submodule_search_locations))) / "tasks"
        args.out.mkdir(parents=True, exist_ok=True)
        for task in tasks_of(args.task):
            path = args.out / f"{task.name}_here.yaml"
            path.write_text(task_file(task, args.data, tasks), encoding="utf-8")
            print(f"written: {path}")
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
