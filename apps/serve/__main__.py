"""Serve a bundle to OpenAI clients: `python -m apps.serve --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from apps.serve.settings import Settings
from apps.web.bind import INSTALL, check_bind, run

KEY = "VISUALRWKV_KEY"  # environment variable
EXAMPLES = f"""\
examples:
  python -m apps.serve build/demo-int8-cpu
      On this machine only, at http://127.0.0.1:8000/v1, without a key.
  {KEY}=$(openssl rand -hex 24) python -m apps.serve model/ --host 0.0.0.0
      For others: the key is needed for everything.
  python -m apps.serve model/ --allow-http --slots 4 --memory-limit 4GB

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
  answer = client.chat.completions.create(
      model="demo-int8-cpu", messages=[{{"role": "user", "content": "How many circles are there?"}}])
  more = client.chat.completions.create(   # only the new turn, from where the answer left off
      model="demo-int8-cpu", messages=[{{"role": "user", "content": "And stars?"}}],
      extra_body={{"state": answer.state}})

Ctrl-C lets running answers end; a second one ends them."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    d = Settings  # its defaults
    p = argparse.ArgumentParser(
        prog="python -m apps.serve",
        description="Serve a bundle over OpenAI's chat protocol.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", type=Path, nargs="?", help="exported model (default: build/demo-int8-cpu)")
    where = p.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    where.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    where.add_argument("--key", help=f"what clients must show (better in the environment, as {KEY})")
    where.add_argument("--origin", action="append", default=[], metavar="URL", help="a web page that may call")
    where.add_argument("--name", default="", help="what clients call the model (default: the bundle's name)")
    limits = p.add_argument_group("limits")
    limits.add_argument("--slots", type=int, default=d.slots, metavar="N", help="answers at a time (%(default)s)")
    limits.add_argument("--waiting", type=int, default=d.waiting, metavar="N", help="requests in line (%(default)s)")
    limits.add_argument("--timeout", type=float, default=d.answer_s, metavar="S", help="of an answer (%(default)s)")
    limits.add_argument("--max-tokens", type=int, default=d.max_tokens, metavar="N", help="of an answer (%(default)s)")
    limits.add_argument("--max-body", default="8MiB", metavar="BYTES", help="of a request (%(default)s)")
    limits.add_argument("--states", type=int, default=d.states, metavar="N", help="conversations kept (%(default)s)")
    limits.add_argument("--state-bytes", default="256MiB", metavar="BYTES", help="and their memory (%(default)s)")
    limits.add_argument("--state-time", type=float, default=d.state_s, metavar="S", help="unused (%(default)s)")
    limits.add_argument("--memory-limit", metavar="BYTES", help="refuse to start where more would be needed")
    limits.add_argument("--allow-http", action="store_true", help="fetch pictures from public http(s) addresses")
    p.add_argument("--threads", type=int, metavar="N", help="compute threads (default: one core stays free)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parser().parse_args(argv)
    from runtime.errors import VisualRWKVError

    try:
        return _serve(args)
    except VisualRWKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def settings_of(args: argparse.Namespace) -> Settings:
    """Turn arguments into settings; raises `ConfigError` for a bad one."""
    from runtime.memory import parse_bytes

    key = args.key if args.key is not None else os.environ.get(KEY) or None
    check_bind(args.host, key)
    return Settings(
        name=args.name,
        key=key,
        origins=tuple(args.origin),
        slots=args.slots,
        waiting=args.waiting,
        answer_s=args.timeout,
        max_body=parse_bytes(args.max_body) or 0,
        max_tokens=args.max_tokens,
        tokens=min(Settings.tokens, args.max_tokens),
        allow_http=args.allow_http,
        states=args.states,
        state_bytes=parse_bytes(args.state_bytes) or 0,
        state_s=args.state_time,
    )


def _serve(args: argparse.Namespace) -> int:
    from apps.bundles import DEFAULT_BUNDLE, find_bundle
    from runtime import VisualRWKV
    from runtime.errors import ConfigError, TargetUnavailable
    from runtime.memory import parse_bytes

    settings = settings_of(args)
    limit = parse_bytes(args.memory_limit)
    if limit is not None:
        limit -= settings.state_bytes
        if limit <= 0:
            raise ConfigError("--memory-limit is below --state-bytes", hint="lower --state-bytes")
    try:
        from apps.serve.app import create_app
    except ModuleNotFoundError as error:
        raise TargetUnavailable(f"the server needs {error.name!r}", hint=INSTALL) from None
    bundle = find_bundle(args.bundle or DEFAULT_BUNDLE, ask=sys.stdin.isatty())
    with VisualRWKV.load(
        bundle, threads=args.threads, sessions=settings.slots, memory_limit=limit, undo_bytes=0
    ) as model:
        app = create_app(model, settings)

        def ready(address: str) -> None:
            key = "with the key" if settings.key else "without a key, for this machine only"
            print(f"{model.manifest.name} at {address}/v1, {key}; Ctrl-C stops it", flush=True)

        def stopping() -> None:
            print("stopping: running answers may end (Ctrl-C again ends them)", flush=True)
            app.stop()

        run(app, args.host, args.port, ready=ready, stopping=stopping)
    return 0


if __name__ == "__main__":
    sys.exit(main())
