"""Talk with a bundle in the terminal: `python -m apps.chat --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.chat.screen import Screen
    from apps.chat.talk import Talk

EXAMPLES = """\
examples:
  python -m apps.chat build/demo-int8-cpu
      Type questions, drop pictures into the window; /help lists the commands.
  python -m apps.chat --image kitchen.jpg --question "What colour is the cup?"
      One question, one answer, nothing else on the output.
  printf '%s\\n' "'my picture.png' How many circles are there?" /undo "Is there a star?" | python -m apps.chat
      Lines from a pipe: one answer each line.
  python -m apps.chat --state kitchen.state
      Go on with a conversation that /save has kept.

The embedded demo model (build/demo-int8-cpu) knows scenes of coloured shapes, digits and words, nothing else."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m apps.chat",
        description="Talk with a bundle in the terminal, about pictures and without.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, nargs="?", help="exported model (default: build/demo-int8-cpu)")
    p.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help="look at this first")
    p.add_argument("--question", action="append", default=[], metavar="TEXT", help="ask this, answer, and leave")
    p.add_argument("--state", type=Path, metavar="FILE", help="go on with a saved conversation")
    p.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of an answer (default: %(default)s)")
    p.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: %(default)s")
    p.add_argument("--seed", type=int, metavar="N", help="repeat the same draws")
    p.add_argument("--threads", type=int, metavar="N", help="compute threads (default: one core stays free)")
    p.add_argument("--plain", action="store_true", help="no colours, no Markdown")
    return p


def main(argv: Sequence[str] | None = None, *, load: Callable[..., Any] | None = None) -> int:
    """Run the command line; return the exit status. `load` takes the place of `VisualRWKV.load`."""
    args = parser().parse_args(argv)
    from runtime.errors import VisualRWKVError

    try:
        return _chat(args, load)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _chat(args: argparse.Namespace, load: Callable[..., Any] | None) -> int:
    from apps.bundles import DEFAULT_BUNDLE, find_bundle
    from apps.chat.talk import Talk
    from runtime import GenerateOptions, VisualRWKV

    options = GenerateOptions(
        max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    person = sys.stdin.isatty() and sys.stdout.isatty() and not args.question
    bundle = find_bundle(args.bundle or DEFAULT_BUNDLE, ask=person)
    with (load or VisualRWKV.load)(bundle, threads=args.threads) as model:
        screen = _screen(person, args.plain)
        talk = Talk(model, screen, options, args.state)
        talk.look(args.image)
        for question in args.question:
            talk.ask(question)
        if args.question:
            return 0
        if person:
            screen.note(f"{model.manifest.name}: type a question, drop a picture, /help for more")
        return _lines(talk, screen, person)


def _lines(talk: Talk, screen: Screen, person: bool) -> int:
    """Read lines until there are no more; return 1 if one of a pipe failed."""
    from runtime.errors import VisualRWKVError

    if person:
        import readline  # noqa: F401  # arrows and search in what was typed
    failed = interrupted = False
    while True:
        try:
            text = input("> " if person else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted or not person:
                raise
            interrupted = True
            print()
            screen.note("Ctrl-C again, or /quit, leaves")
            continue
        try:
            if not talk.line(text):
                break
            interrupted = talk.stopped
            if interrupted and not person:
                raise KeyboardInterrupt
        except VisualRWKVError as error:
            screen.error(str(error))
            failed = True
    return 1 if failed and not person else 0


def _screen(person: bool, plain: bool) -> Screen:
    from apps.chat.screen import Plain, Rich, Terminal

    if not person:
        return Plain()
    try:
        return Terminal() if plain else Rich()
    except ModuleNotFoundError:
        return Terminal()


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Chinese shows "?", and nothing fails
    sys.exit(main())
