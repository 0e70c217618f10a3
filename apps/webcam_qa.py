"""Watch a camera and answer questions about what it shows: `python -m apps.webcam_qa --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from apps.annotate import Recorder
from apps.bundles import DEFAULT_BUNDLE, find_bundle
from apps.conversation import Conversation
from apps.latest import LatestFrame
from apps.questions import Inbox, Question, read_questions
from apps.sources import Source, first_camera, open_source
from apps.watcher import Watcher
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import ConfigError, SourceError, VisualRWKVError

SAMPLE = Path(__file__).parent / "demo" / "sample.mp4"
KEY = "VISUALRWKV_KEY"  # environment variable, the same as the server's

EXAMPLES = f"""\
examples:
  python -m apps.webcam_qa
      The first camera; type questions, /help for more. Without a camera: the sample video and its questions.
  python -m apps.webcam_qa --source 0 --question "Is anyone there?" --every 10
      Ask the same question every ten seconds.
  python -m apps.webcam_qa --source rtsp://user:password@camera.local/stream --save watch.mp4
      A network camera, with questions and answers written into a video.
  python -m apps.webcam_qa --source kitchen.mp4 --question "What colour is the cup?"
  python -m apps.webcam_qa --source kitchen.mp4 --questions kitchen.json --check
      Questions asked at given times, compared with the true answers: exit code 1 unless all are right.
  echo "How many circles are there?" | python -m apps.webcam_qa --source pictures/
  python -m apps.webcam_qa --serve
      The same as a page in a browser, at http://127.0.0.1:8000. Its camera is the browser's, or --source.
  {KEY}=$(openssl rand -hex 16) python -m apps.webcam_qa --serve --source 0 --host 0.0.0.0
      For other machines too; they need the token, which is in the address that is printed.

A camera that disappears is opened again and again; the conversation goes on with the last frame.
Stop with /quit or Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m apps.webcam_qa",
        description="Watch a camera, a video, a stream or a folder of pictures, and ask about it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, help="exported model (default: %(default)s)")
    p.add_argument(
        "--source",
        help="camera number, video file, folder, rtsp:// or http:// address (default: first camera)",
    )
    what = p.add_argument_group("questions")
    what.add_argument("--question", action="append", metavar="TEXT", help="ask this; may be given several times")
    what.add_argument("--every", type=_positive, metavar="SECONDS", help="ask --question again and again")
    what.add_argument("--questions", type=Path, metavar="FILE", help="JSON file of timed questions and answers")
    what.add_argument(
        "--check",
        nargs="?",
        type=_count,
        const=-1,
        metavar="N",
        help="fail unless N (default: all) are right",
    )
    what.add_argument(
        "--conversation",
        action=argparse.BooleanOptionalAction,
        help="keep one conversation (default when typing) or ask each question afresh (default otherwise)",
    )
    how = p.add_argument_group("answers")
    how.add_argument("--max-tokens", type=_count, default=64, metavar="N", help="default: %(default)s")
    how.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    how.add_argument("--seed", type=int, metavar="N", help="repeat the same draws")
    how.add_argument("--padding", choices=("none", "left16"), help="default: what the bundle says")
    how.add_argument("--threads", type=_count, metavar="N", help="compute threads (default: one core stays free)")
    watch = p.add_argument_group("watching")
    watch.add_argument("--save", type=Path, metavar="FILE", help="write an annotated .mp4 or .avi")
    watch.add_argument("--font", type=Path, metavar="FILE", help="font for --save (default: one that has the text)")
    watch.add_argument("--frames", type=_count, metavar="N", help="stop after N frames")
    watch.add_argument("--duration", type=_positive, metavar="S", help="stop after S seconds")
    watch.add_argument("--fps", type=_positive, metavar="F", help="pace of a folder of pictures (default: 1)")
    watch.add_argument("--loop", action="store_true", help="start a file or folder over at its end")
    watch.add_argument("--fast", action="store_true", help="read a file as fast as it decodes, not at its pace")
    page = p.add_argument_group("a page in the browser")
    page.add_argument("--serve", action="store_true", help="serve a page instead of reading the terminal")
    page.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine only)")
    page.add_argument("--port", type=int, metavar="N", help="default: 8000; 0 takes a free one")
    page.add_argument("--token", metavar="TEXT", help=f"needed with another --host; safer as {KEY} in the environment")
    return p


def main(
    argv: Sequence[str] | None = None,
    *,
    load: Callable[..., VisualRWKV] = VisualRWKV.load,
    stdin: TextIO | None = None,
) -> int:
    """Run the command line; return 0, 1 when something failed or --check did, 2 for a wrong command.

    `load` and `stdin` are for tests and for programs that embed this one.
    """
    args = parser().parse_args(argv)
    stdin = sys.stdin if stdin is None else stdin
    try:
        return _run(args, load, stdin)
    except KeyboardInterrupt:
        print("\nstopped")
        return 1 if args.check else 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _run(args: argparse.Namespace, load: Callable[..., VisualRWKV], stdin: TextIO | None) -> int:
    options = GenerateOptions(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed)
    terminal = stdin is not None and stdin.isatty()
    if args.serve or args.host or args.port is not None or args.token is not None:
        _refuse_for_page(args)
        return _serve(args, options, load, terminal)
    source, script = _what_to_watch(args)
    typed = stdin if not (args.question or script) else None
    if terminal and script and not args.check:
        typed = stdin  # after the questions of a script, a person may go on asking
    _refuse_contradictions(args, script, typed)
    recorder = Recorder(args.save, fps=lambda: source.fps, font_file=args.font) if args.save else None
    bundle = find_bundle(args.bundle, ask=terminal)
    with load(bundle, device="auto", threads=args.threads) as model:
        print(f"watching {source.name} with {bundle}", flush=True)
        reader = LatestFrame(
            source,
            paced=not args.fast,
            keep_at=[t for q in script for t in (*q.earlier_s, q.time_s or 0.0)],
            on_frame=recorder.add if recorder else None,
            max_frames=args.frames,
        )
        conversation = Conversation(model, options, padding=args.padding, keep=bool(args.conversation))
        if recorder:
            conversation.caption = recorder.caption
        watcher = Watcher(reader, conversation, duration_s=args.duration)
        try:
            with reader:
                watcher.run_script(script)
                if args.question:
                    watcher.run_questions(args.question, args.every)
                if typed is not None:
                    conversation.keep = args.conversation is not False
                    watcher.run_typed(Inbox(typed), terminal)
                if reader.error is not None:
                    raise reader.error
        finally:
            if recorder:
                recorder.hold(2.0)
                recorder.close()
                if recorder.lost:
                    print(f'(no font here has {recorder.lost}: drawn as "?"; install one or pass --font FILE)')
            watcher.summary(f"{recorder.path}, {recorder.frames} frames" if recorder else "")
    return watcher.verdict(args.check) if args.check else 0


def _refuse_contradictions(args: argparse.Namespace, script: list[Question], typed: TextIO | None) -> None:
    ask = 'add --question "What do you see?"'
    if args.question and args.questions:
        raise ConfigError("both --question and --questions", wanted="one of them")
    if args.every and not args.question:
        raise ConfigError("--every without a question", hint=ask)
    if args.check and not any(q.expected for q in script):
        raise ConfigError("--check without true answers", hint="add --questions FILE, or watch the sample")
    if not (args.question or script or typed):
        raise ConfigError("there is no input to read questions from", hint=ask)


def _refuse_for_page(args: argparse.Namespace) -> None:
    if not args.serve:
        raise ConfigError("--host, --port or --token without a page", hint="add --serve")
    only = ("question", "every", "questions", "check", "conversation", "save", "font", "frames", "duration")
    given = [f"--{name}" for name in only if getattr(args, name) is not None]
    if given:
        raise ConfigError(f"{' and '.join(given)} with --serve", hint="questions are asked in the page: leave them out")


def _serve(args: argparse.Namespace, options: GenerateOptions, load: Callable[..., VisualRWKV], terminal: bool) -> int:
    """The page: without --source, the camera is the browser's, and the demo model's page shows the sample video too."""
    from apps.page.about import DEMO
    from apps.page.cameras import RobotCamera
    from apps.page.server import serve
    from apps.web.bind import check_bind

    host = args.host or "127.0.0.1"
    token = args.token if args.token is not None else os.environ.get(KEY) or None
    check_bind(host, token)
    source = open_source(args.source, fps=args.fps, loop=True) if args.source is not None else None
    bundle = find_bundle(args.bundle, ask=terminal)
    with load(bundle, device="auto", threads=args.threads) as model, ExitStack() as opened:
        if source is None and model.manifest.provenance.source == DEMO and SAMPLE.is_file():
            source = open_source(str(SAMPLE), loop=True)
        robot = None
        if source is not None:
            robot = RobotCamera(opened.enter_context(LatestFrame(source, paced=not args.fast)))
        serve(
            model,
            options,
            host=host,
            port=8000 if args.port is None else args.port,
            token=token,
            padding=args.padding,
            robot=robot,
            ready=lambda address: print(f"{bundle.name} at {address}  (Ctrl-C stops)", flush=True),
        )
        print("stopped")
    return 0


def _what_to_watch(args: argparse.Namespace) -> tuple[Source, list[Question]]:
    text = args.source
    if text is None:
        camera = first_camera()
        if camera is None and not SAMPLE.is_file():
            raise SourceError("there is no camera", hint="--source FILE, FOLDER or rtsp:// address")
        text = str(SAMPLE if camera is None else camera)
        if camera is None:
            print("no camera found: this is the sample video")
    questions = args.questions
    if questions is None and not args.question and Path(text).resolve() == SAMPLE.resolve():
        questions = SAMPLE.with_suffix(".json")
    return open_source(text, fps=args.fps, loop=args.loop), read_questions(questions) if questions else []


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt  # so that a video being written is finished when a service manager stops us


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Chinese shows "?", and nothing fails
    sys.exit(main())
