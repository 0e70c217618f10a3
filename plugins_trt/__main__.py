"""python -m plugins_trt: build the plugin library, or report what its kernels use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from plugins_trt.builder import build, library, sources
from plugins_trt.errors import PluginError
from plugins_trt.report import measure, table
from plugins_trt.toolchain import choose_architectures, find_nvcc

_EXAMPLES = """examples:
  python -m plugins_trt build                    for every GPU this CUDA knows; minutes
  python -m plugins_trt build --arch 87          for one: Jetson Orin (Thor is 110, RTX 40 is 89, RTX 50 is 120)
  python -m plugins_trt build --headers DIR      with TensorRT's own headers instead of our declaration
  python -m plugins_trt build --emulate          kernels on the CPU, for tests; needs g++ only
  python -m plugins_trt report --arch 87,120     registers and spills of every kernel
  python -m plugins_trt path                     where the built library is
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's definition."""
    p = argparse.ArgumentParser(
        prog="python -m plugins_trt", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = p.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("build", help="build the plugin library")
    making.add_argument("--arch", help="compute capabilities, such as 87,89,120; default: all this CUDA knows")
    making.add_argument("--headers", metavar="DIR", help="where TensorRT's NvInferRuntime.h is")
    making.add_argument("--emulate", action="store_true", help="build the kernels for the CPU, for tests")
    making.add_argument("--out", metavar="DIR", help="where to put the library; default: the user's cache")
    making.add_argument("--nvcc", metavar="FILE", help="the CUDA compiler")
    making.add_argument("--compiler", metavar="FILE", help="the C++ compiler")
    making.add_argument("--jobs", type=int, metavar="N", help="compilers at a time; default: one per processor")
    telling = verbs.add_parser("report", help="registers and spills per kernel and architecture")
    telling.add_argument("--arch", help="compute capabilities; default: all this CUDA knows")
    telling.add_argument("--nvcc", metavar="FILE", help="the CUDA compiler")
    telling.add_argument("--jobs", type=int, default=2, metavar="N", help="compilers at a time; default: 2")
    verbs.add_parser("path", help="print where the built library is")
    verbs.add_parser("sources", help="print every source file that building needs")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        if chosen.verb == "build":
            path = build(
                architectures=chosen.arch, headers=chosen.headers, emulate=chosen.emulate, out=chosen.out,
                nvcc=chosen.nvcc, compiler=chosen.compiler, jobs=chosen.jobs,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
            print(path)
        elif chosen.verb == "report":
            found = find_nvcc(chosen.nvcc)
            uses = measure(choose_architectures(chosen.arch, found), nvcc=found.path, jobs=chosen.jobs)
            print(f"CUDA {found.version[0]}.{found.version[1]}\n\n{table(uses)}")
            return int(any(use.spilled for use in uses))
        elif chosen.verb == "path":
            print(library())
        else:
            print(*sources(), sep="\n")
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was replaced", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
