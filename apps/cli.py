"""`visualrwkv`: one word for every command of this SDK. Imports nothing but the command that was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Verb:
    """A command: the module whose `main(argv)` runs it, one line about it, and the extra its packages come with."""

    module: str
    about: str
    extra: str = ""


VERBS = {
    "export": Verb("export.__main__", "turn a checkpoint into a verified bundle", "export"),
    "quantize": Verb("quant.__main__", "make a bundle smaller, and say what that cost", "export"),
    "inspect": Verb("apps.inspect", "say what a checkpoint or a bundle is"),
    "chat": Verb("apps.chat.__main__", "talk with a bundle in the terminal"),
    "webcam": Verb("apps.webcam_qa", "watch a camera, a stream, a video or a folder, and ask about it", "serve"),
    "serve": Verb("apps.serve.__main__", "serve a bundle over OpenAI's chat protocol", "serve"),
    "bench": Verb("apps.bench.__main__", "measure a bundle on this machine"),
    "evaluate": Verb("apps.evaluate.__main__", "score bundles on public benchmarks, or on drawn scenes"),
    "doctor": Verb("apps.doctor.__main__", "say what this machine is, and what it can run"),
}

# What other tools call it.
ALIASES = {
    "convert": "export", "build": "export", "info": "inspect", "show": "inspect", "camera": "webcam",
    "watch": "webcam", "eval": "evaluate", "check": "doctor", "env": "doctor", "quantise": "quantize",
    "quant": "quantize", "server": "serve", "benchmark": "bench", "talk": "chat",
}  # fmt: skip


def usage() -> str:
    """Return what --help prints."""
    verbs = "\n".join(f"  {name:<10}{verb.about}" for name, verb in VERBS.items())
    return f"""usage: visualrwkv VERB [OPTIONS]

Visual language models for cameras and robots, with memory that does not grow.

verbs:
{verbs}

examples:
  visualrwkv doctor                            what this machine can run
  visualrwkv export --int8                     the embedded demo model -> build/demo-int8-cpu
  visualrwkv webcam --source 0                 ask about what the camera shows
  visualrwkv serve build/demo-int8-cpu         for OpenAI's clients, on this machine

`visualrwkv VERB --help` tells all about one of them; --version the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb in `argv[0]` with the rest, and return its exit status.

    0 is success, 1 an error that was explained, 2 a wrong command line, 130 Ctrl-C.
    """
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if verb == "help":
        verb, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    if verb in ("-V", "--version"):
        print(f"visualrwkv-edge {_version()}")
        return 0
    if verb not in VERBS:
        print(f"visualrwkv: {_unknown(verb)}" if verb else usage(), file=sys.stderr)
        return 2
    return _run(verb, rest)


def _run(name: str, argv: list[str]) -> int:
    verb = VERBS[name]
    try:
        status = import_module(verb.module).main(argv)
        sys.stdout.flush()
        return int(status or 0)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "apps", "export", "quant", "runtime"):
            raise  # ours: a broken installation is worth its traceback
        extra = f"[{verb.extra}]" if verb.extra else ""
        print(
            f'visualrwkv {name}: the package {missing!r} is not installed\n  try: pip install "visualrwkv-edge{extra}"',
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if not _ours(error):
            raise
        print(f"visualrwkv {name}: {error}", file=sys.stderr)
        return 1


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    found = ALIASES.get(word) or next(iter(get_close_matches(word, VERBS, 1, 0.5)), None)
    hint = f"did you mean {found!r}?" if found else "`visualrwkv --help` lists the verbs"
    return f"there is no verb {word!r}\n  wanted: {', '.join(VERBS)}\n  try: {hint}"


def _ours(error: Exception) -> bool:
    """Whether it was raised on purpose; asked without importing the runtime, which then is there already."""
    errors = sys.modules.get("runtime.errors")
    return errors is not None and isinstance(error, errors.VisualRWKVError)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("visualrwkv-edge")
    except PackageNotFoundError:
        return "(not installed: run from its folder)"


if __name__ == "__main__":
    sys.exit(main())
