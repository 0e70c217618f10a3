"""Say what this machine is, what it can run, and whether a bundle fits: `python -m apps.doctor --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from apps.doctor import report
from apps.doctor.fit import fit
from apps.doctor.machine import Machine
from apps.doctor.probes import examine
from apps.doctor.trial import attempt
from apps.doctor.verdicts import EXPORTER, advice, verdicts

EXAMPLES = """\
examples:
  python -m apps.doctor
      What this machine is, and what each target and precision can do here, and why not.
  python -m apps.doctor build/demo-int8-cpu
      Also whether this bundle is whole, and fits into the memory that is free now.
  python -m apps.doctor build/demo-int8-cpu --sessions 8
  python -m apps.doctor build/demo-int8-cpu --try
      Load it, and ask it something.
  python -m apps.doctor --json
      One JSON object, for programs.

It changes nothing and sends nothing. The exit status is 0 if something (with a bundle: that bundle) can run here."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m apps.doctor",
        description="Say what this machine is, what it can run and why not, and whether a bundle fits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bundle", nargs="?", type=Path, help="an exported model to check")
    p.add_argument("--sessions", type=_count, default=1, metavar="N", help="conversations at a time (default: 1)")
    p.add_argument("--no-verify", action="store_true", help="do not read every file of the bundle")
    p.add_argument("--try", action="store_true", dest="attempt", help="load the bundle and ask it a question")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def main(
    argv: Sequence[str] | None = None,
    *,
    examine: Callable[..., Machine] = examine,
    packages: frozenset[str] | None = None,
) -> int:
    """Run the command line; return 0, 1 when nothing (or not the bundle) can run here, 2 for a wrong command.

    `examine` and `packages` replace the look at this machine, for tests.
    """
    command = parser()
    args = command.parse_args(argv)
    if args.attempt and args.bundle is None:
        command.error("--try needs a bundle")
    machine = examine(bundle=args.bundle)
    if packages is None:
        packages = frozenset(name for name in EXPORTER if find_spec(name) is not None)
    judged, hints = verdicts(machine, packages), advice(machine)
    fitting = fit(machine, args.bundle, sessions=args.sessions, verify=not args.no_verify) if args.bundle else None
    trial = attempt(args.bundle) if fitting and args.attempt and fitting.answer != "no" else None
    told = report.Report(machine, judged, hints, fitting, trial)
    print(json.dumps(told.data(), indent=1, ensure_ascii=False) if args.json else told.text())
    answer = fitting.answer if fitting else judged[0].answer
    answer = "no" if trial and not trial.good else answer
    return 1 if answer == "no" else 0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
